"""Score a trained network on labelled images, or let it label your own pictures.

    python eval.py runs/...                              its newest checkpoint, on the val split of its target
    python eval.py runs/... --json val.json              the same, with every number in a file
    python eval.py runs/... --save-predictions maps      the same, with every predicted label map
    python eval.py runs/... --images holiday --out drawn pictures and videos without labels, as coloured overlays

A run folder holds its own config, so nothing about the network needs repeating here.

Exit status: 0; 1 with a message that says what to put right, or which pictures could not be read (the others are
labelled then); 128 + N when signal N ended it.
"""

import sys

from dida.machine.signals import Signals
from dida.machine.streams import standard_streams

if __name__ == "__main__":
    with standard_streams(), Signals() as signals, signals.interrupting():
        # Here and not above, because signals are listened to first.
        from dida.cli import eval_command

        eval_command(sys.argv[1:])

"""Train on a labelled source and an unlabelled target.

python train.py --src gta5 --tgt cityscapes                 DIDA with the paper's settings
python train.py --src synthia --method daformer             the baseline it builds on
python train.py --src toy-gta5 --tgt toy-cityscapes         the embedded toy benchmark, on a laptop
python train.py --check-data --src gta5 --tgt cityscapes    is the data in order?
python train.py --resume runs/...                           continue where a run stopped

The loop is dida/loop.py, one iteration of it dida/step.py.

Exit status: 0 when the last step is done; 1 with a message that says what to put right; 128 + N when signal N (Ctrl-C,
SIGTERM, SIGHUP, SIGUSR1) ended the run early, with a checkpoint of the step that it was at.
"""

import sys

from dida.machine.signals import Signals
from dida.machine.streams import standard_streams

if __name__ == "__main__":
    with standard_streams(), Signals() as signals, signals.interrupting():  # until there is something to save
        # Here and not above, because signals are listened to first.
        from dida.cli import train_command

        train_command(sys.argv[1:])

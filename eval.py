"""Score a trained network on labelled images, or let it label your own pictures.

    python eval.py runs/...                              its newest checkpoint, on the val split of its target
    python eval.py runs/... --json val.json              the same, with every number in a file
    python eval.py runs/... --save-predictions maps      the same, with every predicted label map
    python eval.py runs/... --images holiday --out drawn pictures without labels, as coloured overlays

A run folder holds its own config, so nothing about the network needs repeating here.

Exit status: 0; 1 with a message that says what to put right; 128 + N when signal N ended it.
"""

import sys

from dida.signals import Signals


def main(args: list[str]) -> None:
    """Score, or label pictures, and print what came out."""
    # Here and not above, because signals are listened to first. The last one imports PyTorch, and --help and a mistyped
    # option are answered before it.
    from dida.eval_config import EvalConfig
    from dida.options import read_command_line

    config = read_command_line(EvalConfig, args, "eval.py")
    from dida.command import run_evaluation

    run_evaluation(config)


if __name__ == "__main__":
    with Signals() as signals, signals.interrupting():
        main(sys.argv[1:])

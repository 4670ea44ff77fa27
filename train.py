"""Train on a labelled source and an unlabelled target.

python train.py --src gta5 --tgt cityscapes                 DIDA with the paper's settings
python train.py --src synthia --method daformer             the baseline it builds on
python train.py --src toy-gta5 --tgt toy-cityscapes         the embedded toy benchmark, on a laptop
python train.py --check-data --src gta5 --tgt cityscapes    is the data in order?
python train.py --resume runs/...                           continue where a run stopped

The loop is dida/loop.py, one iteration of it dida/step.py.
"""

import sys

from dida.recipes import from_command_line


def main(args: list[str]) -> None:
    """Train, or check the data, as the command line says."""
    config = from_command_line(args, "train.py")
    # Here and not above, because this imports PyTorch, and --help and a mistyped option are answered at once.
    from dida import command

    command.run_check(config) if config.check_data else command.run_training(config)


if __name__ == "__main__":
    main(sys.argv[1:])

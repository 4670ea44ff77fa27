"""What was typed to start this program, so that messages name it and show commands that work there."""

import sys
from pathlib import Path

OTHERS = {"train": "train.py", "eval": "eval.py", "toy": "python -m dida.data.toy"}  # ways to start a command


def program_name(command: str) -> str:
    """`dida train` where the package's own command was typed, `train.py` where the script of the checkout was."""
    started = Path(sys.argv[0])
    own = started.name == "dida" or started.parts[-2:] == ("dida", "__main__.py")
    return f"dida {command}" if own else OTHERS.get(command, f"dida {command}")


def command_line(command: str) -> str:
    """What a user types for a command: `dida train`, or `python train.py`."""
    name = program_name(command)
    return name if name.startswith("dida ") else f"python {name}"

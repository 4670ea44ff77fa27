"""What the command lines of the benches have in common: numbers with a range, and files that can be written."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from dida.machine.files import require_writable


def whole_number(low: int) -> Callable[[str], int]:
    """For `type=`: whole numbers of at least `low`."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= low):
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {low}, got {text!r}")
        return int(text)

    return read


def seconds(text: str) -> float:
    """For `type=`: a finite time of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, got {text!r}")
    return value


def described(text: str | None) -> argparse.ArgumentParser:
    """A parser whose --help is the docstring of its program, as it stands there."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def output_file(text: str, *, folder: bool = False) -> Path:
    """For `type=`: a file that can be written, which is asked before the work whose result it will hold."""
    try:
        require_writable(Path(text), option="a result", folder=folder)
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def output_folder(text: str) -> Path:
    """For `type=`: a folder that files can be written to, which need not be there."""
    return output_file(text, folder=True)

"""What a program prints to: streams that are closed, that nobody reads, that are full, or that spell little."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def standard_streams() -> Iterator[None]:
    """Closed streams lead nowhere in this block, and what they cannot spell is escaped.

    Where output has no reader any more, as in `| head`, the program ends quietly, as SIGPIPE would end it; where it
    cannot be written for another reason, with a message.
    """
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except BrokenPipeError:
        sys.exit(128 + signal.SIGPIPE)
    finally:
        failed = _written_out()
    if failed:
        quiet = isinstance(failed, BrokenPipeError)
        sys.exit(128 + signal.SIGPIPE if quiet else f"what was printed is not all there: {failed.strerror}")


def _open_closed() -> None:
    """Else the first file that is opened, a checkpoint perhaps, would take their number and what is said to them."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest that is free
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


def _written_out() -> OSError | None:
    """What keeps the rest of the output from being written; the interpreter then does not try again at its end."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None

"""How far a long piece of work is: a bar on a terminal, a line now and then where the output goes into a file."""

import sys
import time
from datetime import timedelta

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines


class Progress:
    """Counts what is done, on stderr. `with Progress(total, "labelling", "picture") as progress: progress.advance()`"""

    def __init__(self, total: int, title: str, unit: str) -> None:
        self._total, self._title, self._unit = total, title, unit
        self._bar = tqdm(total=total, desc=title, unit=unit, disable=None)  # disabled where there is no terminal
        self._done = 0
        self._start = self._said = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""
        self._bar.update(count)
        self._done += count
        now = time.monotonic()
        if self._bar.disable and now - self._said >= EVERY:
            self._said = now
            rate = self._done / max(now - self._start, 1e-9)
            left = timedelta(seconds=round(max(self._total - self._done, 0) / rate))
            print(
                f"{self._title}: {self._done} of {self._total} {self._unit}s, {rate:.3g} a second, {left} to go",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

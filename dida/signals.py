"""Requests to stop: Ctrl-C on a terminal, and what batch systems and shells send."""

import signal
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Signals:
    """Remembers the first request to stop, so that a loop can end in good order.

    A second one of the same kind acts as if nobody listened. Must be made in the main thread.
    """

    def __init__(self) -> None:
        self.caught: str | None = None  # name of the signal
        self._before = {kind: signal.signal(kind, self._remember) for kind in STOPPING}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.caught = self.caught or signal.Signals(number).name
        signal.signal(number, self._before[signal.Signals(number)])

    def restore(self) -> None:
        """Whatever listened before listens again."""
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

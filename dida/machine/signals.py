"""Requests to stop: Ctrl-C on a terminal, and what batch systems and shells send."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

if not hasattr(signal, "SIGHUP"):  # the first thing that every program imports
    sys.exit("DIDA runs on Linux, and on the CPU of a Mac; on Windows, use its Subsystem for Linux")

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
ONE_REQUEST = 1.0  # seconds: `timeout` and terminals send a signal to the process and to its group
LOOK_AGAIN = 0.5  # seconds from one look to the next, whether a block that a signal ends is at its end


class Stopped(SystemExit):
    """A signal ends the program, without a traceback and with the status that shells give it: 128 + its number."""

    def __init__(self, kind: signal.Signals) -> None:
        super().__init__(128 + kind)
        self.kind = kind

    def __reduce__(self) -> tuple[type["Stopped"], tuple[signal.Signals]]:
        return Stopped, (self.kind,)  # what another process of the run raises, too


class Signals:
    """Remembers the first request to stop, from here to the end of a `with` block or `restore`.

    So a loop can end in good order: it looks at `caught` where it may end, and wraps what it may give up at any moment
    in `interrupting`. A later signal of the same kind acts as if nobody listened here. Hang-ups stay ignored where they
    are when this is made, as `nohup` asks. What another one has caught and not ended with yet is caught here too. Must
    be made in the main thread. From a request to the end of its block, SIGALRM is taken.
    """

    def __init__(self) -> None:
        outer = _listening()
        self._first: signal.Signals | None = outer._first if outer else None
        self._since = time.monotonic()
        self._interrupts = False
        self._before = {kind: signal.signal(kind, self._remember) for kind in STOPPING if not _under_nohup(kind)}
        self._alarm: Any = None  # who had it, while it is ours

    @property
    def caught(self) -> str | None:
        """The name of the first signal."""
        return None if self._first is None else self._first.name

    def raise_caught(self) -> None:
        """Raise Stopped if a signal was caught."""
        if self._first is not None:
            raise Stopped(self._first)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """A signal ends this block at once, one that was caught before it at its start. Raises Stopped."""
        outer, self._interrupts = self._interrupts, True
        try:
            self.raise_caught()
            yield
        except Exception as error:
            # Python 3.11 makes a RuntimeError of whatever comes up while a class is made, and a library may as well
            if isinstance(error.__cause__, Stopped):
                self.raise_caught()
            raise
        finally:
            self._interrupts = outer
            if not outer:
                self._look_no_more()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within `interrupting`: a signal ends this block at its end. Raises Stopped."""
        outer, self._interrupts = self._interrupts, False
        try:
            yield
        finally:
            self._interrupts = outer
        if outer:
            self.raise_caught()

    def restore(self) -> None:
        """Whatever listened before listens again."""
        self._look_no_more()
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def __enter__(self) -> "Signals":
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        kind = signal.Signals(number)
        if self._first is None:
            self._first, self._since = kind, time.monotonic()
            if self._interrupts:
                self._alarm = signal.signal(signal.SIGALRM, self._look_again)
                signal.setitimer(signal.ITIMER_REAL, LOOK_AGAIN, LOOK_AGAIN)
                raise Stopped(kind)
        elif time.monotonic() - self._since > ONE_REQUEST:
            signal.signal(kind, self._before[kind])
            signal.raise_signal(kind)

    def _look_again(self, number: int, frame: FrameType | None) -> None:
        """An exception that a handler raises is lost where it finds the program within a destructor, a callback of C,
        or an `except:` of a library. Then the block goes on as if nobody had asked, and is asked again."""
        listens = self._first is not None and signal.getsignal(self._first) == self._remember
        if listens and self._interrupts and not _ends(sys.exception()):
            self.raise_caught()

    def _look_no_more(self) -> None:
        if self._alarm is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._alarm)
            self._alarm = None


def _ends(error: BaseException | None) -> bool:
    """Whether Stopped is on its way: it, or what came up on that way, is being handled."""
    while error is not None:
        if isinstance(error, Stopped):
            return True
        error = error.__context__
    return False


def ignore_signals() -> None:
    """For a process that works for another one, which is asked to stop at the same time and ends it in good order."""
    for kind in STOPPING:
        signal.signal(kind, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


@contextmanager
def starting_workers() -> Iterator[None]:
    """Signals wait while processes are forked here, and in those until they ignore them. Raises Stopped at the end."""
    listening = _listening()
    # A mask is of one thread, and inherited by forks of it; a signal that finds another thread is not kept from here.
    with listening.waiting() if listening else nullcontext():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _listening() -> Signals | None:
    """Who listens in this thread, which is the main one or nobody."""
    if threading.current_thread() is not threading.main_thread():
        return None
    found = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return found if isinstance(found, Signals) else None


def _under_nohup(kind: signal.Signals) -> bool:
    return kind == signal.SIGHUP and signal.getsignal(kind) == signal.SIG_IGN

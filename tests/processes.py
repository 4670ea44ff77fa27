"""Functions in processes of their own that start at once: from a server that has imported everything and run nothing.

They are not forked from this process: a fork copies locks that threads hold, and PyTorch refuses to differentiate in a
fork once it has done so on a thread of its own, as it does for a GPU or for opcheck.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.distributed import TCPStore

LIMIT = 300.0  # seconds; a few on a machine with nothing else to do
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([
    __name__, "dida.command", "tests.machine.several", "tests.faults.scripts", "torch._dynamo",
])  # fmt: skip


def become(said: Path, work: Callable[..., object], *args: Any) -> NoReturn:
    """Do `work(*args)` as a program that a shell starts, and end with its status; what it says goes to a file."""
    status = 70
    try:
        os.setpgid(0, 0)
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        faulthandler.enable()  # where it was when it crashed
        for kind in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(kind, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # where workers started the server, signals wait
        multiprocessing.set_start_method(None, force=True)  # the system's again, not that of the server
        torch.set_num_threads(1)
        work(*args)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Child:
    """`work(*args)` in a process with a group of its own. All three are pickled, so a function is one of a module.

    What it says is in `said()`. It does not outlive this object.
    """

    def __init__(self, said: Path, work: Callable[..., object], *args: Any) -> None:
        self._said = said
        self._process = _SERVER.Process(target=become, args=(said, work, *args))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        weakref.finalize(self, _kill, self._process)

    def said(self) -> str:
        return self._said.read_text(errors="replace") if self._said.exists() else ""

    def signal(self, kind: signal.Signals, *, group: bool = False) -> None:
        os.kill(-self.pid if group else self.pid, kind)

    @property
    def status(self) -> int | None:
        """As the shell has it, 128 + N if signal N killed it; None as long as it runs."""
        code = self._process.exitcode
        return code if code is None or code >= 0 else 128 - code

    def wait(self, seconds: float = LIMIT) -> int:
        """The exit status. Kills the group and fails if there is none in time."""
        self._process.join(seconds)
        if self.status is None:
            self.signal(signal.SIGKILL, group=True)
            raise AssertionError(f"still running after {seconds} s:\n{self.said()}")
        return self.status

    def left_over(self, seconds: float = 30) -> bool:
        """Whether a process of the group outlives it by more than that."""

        def gone() -> bool:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return True
            return False

        return not wait_until(gone, seconds)


def _kill(process: multiprocessing.process.BaseProcess) -> None:
    if process.is_alive():
        process.kill()


def wait_until(condition: Callable[[], object], seconds: float = LIMIT) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.002)
    return False


class Processes:
    """`work(*args)` in each of the processes of a world, as torchrun would start them.

    What each says is in `said(rank)`, what it returned in `results`.
    """

    def __init__(self, size: int, folder: Path, work: Callable[..., Any], *args: Any) -> None:
        self.folder, self.size = folder, size
        folder.mkdir(parents=True, exist_ok=True)
        reading, writing = _SERVER.Pipe(duplex=False)
        self._agent = _SERVER.Process(target=_meet, args=(writing,), daemon=True)
        self._agent.start()
        weakref.finalize(self, _kill, self._agent)
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": reading.recv(), "TORCHELASTIC_USE_AGENT_STORE": True}
        self._children = []
        for rank in range(size):
            who = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "TORCHELASTIC_RESTART_COUNT": 0}
            environment = {name: str(value) for name, value in (who | where).items()}
            place = folder / str(rank)
            self._children.append(
                Child(place.with_suffix(".txt"), _take_part, environment, place.with_suffix(".pt"), work, args)
            )

    def said(self, rank: int) -> str:
        return self._children[rank].said()

    def end(self, *expected: int | None, seconds: float = LIMIT) -> None:
        """They end with these statuses, as the shell has them, in time; None: with any, or killed here at last."""
        wait_until(lambda: all(child.status is not None for child in self._children), seconds)
        statuses = [child.status for child in self._children]
        for child in self._children:
            if child.status is None:
                child.signal(signal.SIGKILL)
        self._agent.kill()
        for status, wanted in zip(statuses, expected, strict=True):
            assert wanted is None or status == wanted, (statuses, [self.said(rank) for rank in range(self.size)])

    @property
    def results(self) -> list[Any]:
        """What the work returned, by rank. Fails if one did not return."""
        self.end(*[0] * self.size)
        return [torch.load(self.folder / f"{rank}.pt", weights_only=False) for rank in range(self.size)]


def _meet(writing: Connection) -> None:
    """Hold where the others meet and say its port, as torchrun does in a process that outlives each of them."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    writing.send(store.port)
    while True:
        signal.pause()


def _take_part(environment: dict[str, str], result: Path, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    if hasattr(os, "sched_setaffinity"):  # more processes than cores wait for each other half as long, each on its own
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(environment["RANK"]) % len(cores)]})
    torch.save(work(*args), result)

"""Functions in the processes of one world, as torchrun would start them: forked, so that they start at once."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # DistributedDataParallel imports it, each process anew
from torch.distributed import TCPStore

LIMIT = 300.0  # seconds; a few on a machine with nothing else to do


class Processes:
    """`work(*args)` in `size` forked processes. What each says is in `said(rank)`, what it returned in `results`."""

    def __init__(self, size: int, folder: Path, work: Callable[..., Any], *args: Any) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._agent, port = _agent()
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
        sys.stdout.flush()
        self.statuses: list[int | None] = [None] * size
        self.pids: list[int] = []
        for rank in range(size):
            pid = os.fork()
            if not pid:
                who = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "TORCHELASTIC_RESTART_COUNT": 0}
                os.environ.update({name: str(value) for name, value in (who | where).items()})
                _become(folder / str(rank), work, args)
            self.pids.append(pid)

    def said(self, rank: int) -> str:
        path = self.folder / f"{rank}.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    def end(self, *expected: int | None, seconds: float = LIMIT) -> None:
        """They end with these statuses, as the shell has them, in time; None: with any, or killed here at last."""
        statuses = self._wait(seconds)
        said = [self.said(rank) for rank in range(len(self.pids))]
        for status, wanted in zip(statuses, expected, strict=True):
            assert wanted is None or status == wanted, (statuses, said)

    def _wait(self, seconds: float) -> list[int | None]:
        deadline = time.monotonic() + seconds
        while None in self.statuses and time.monotonic() < deadline:
            for rank, pid in enumerate(self.pids):
                if self.statuses[rank] is None:
                    found, status = os.waitpid(pid, os.WNOHANG)
                    code = os.waitstatus_to_exitcode(status)
                    self.statuses[rank] = (128 - code if code < 0 else code) if found else None
            time.sleep(0.01)
        late = [pid for pid, status in zip(self.pids, self.statuses, strict=True) if status is None]
        for pid in (*late, self._agent):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return self.statuses

    @property
    def results(self) -> list[Any]:
        """What the work returned, by rank. Fails if one did not return."""
        self.end(*[0] * len(self.pids))
        return [torch.load(self.folder / f"{rank}.pt", weights_only=False) for rank in range(len(self.pids))]


def _agent() -> tuple[int, int]:
    """A process that holds where the others meet, as torchrun's does, so that it outlives each of them; and its port.

    Not in this process: it has threads, and what is forked from a process with threads may find a lock held for ever.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(writing, str(store.port).encode())
        os.close(writing)
        while True:
            signal.pause()
    os.close(writing)
    with os.fdopen(reading) as port:
        return pid, int(port.read())


def _become(path: Path, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    status = 70
    try:
        file = os.open(path.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        for kind in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(kind, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        torch.save(work(*args), path.with_suffix(".pt"))
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

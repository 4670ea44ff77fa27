"""train.py and eval.py as processes of their own that start at once: forked from one that has imported everything."""

import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Imported here, so that no child has to.
from dida import command, eval_config, recipes
from dida.config import Config, changed, flat
from dida.data.toy import Counts, generate

__all__ = ["Forked", "arguments", "make_toy", "wait_until"]
ROOT = Path(__file__).parents[2]
_WARM = (command, eval_config, recipes)
SMALL = {
    "src_size": "128x64", "tgt_size": "128x64", "crop": 64, "batch_size": 1, "embed_dim": 16, "bank_size": 40,
    "bank_start": 1, "bank_fill": 1, "bank_every": 1, "workers": 0, "device": "cpu", "log_every": 1, "panel_every": 0,
    "save_every": 1000, "steps": 1000,
}  # fmt: skip


def make_toy(folder: Path) -> Path:
    """A toy data set of a few pictures."""
    generate(folder, counts=Counts(source=4, source_val=1, target=3, val=2, test=1))
    return folder


def arguments(data: Path, out: Path | str, **options: Any) -> list[str]:
    """The command line of a tiny run."""
    named = {"src": "toy-gta5", "tgt": "toy-cityscapes", "data_root": data, "out": out} | SMALL | options
    assert set(named) <= set(flat(changed(Config())))
    return [part for name, value in named.items() for part in ("--" + name.replace("_", "-"), str(value))]


class Forked:
    """A script in a forked process, with a group of its own. What it says is in `said()`."""

    def __init__(self, script: str, args: list[str], said: Path, before: Callable[[], object] = lambda: None) -> None:
        """`before` is called in the process first."""
        self._said = said
        self.status: int | None = None  # as the shell has it: 128 + N if signal N killed it
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            _become(script, args, said, before)
        self.since = time.monotonic()

    def said(self) -> str:
        return self._said.read_text(errors="replace") if self._said.exists() else ""

    def signal(self, kind: signal.Signals, *, group: bool = False) -> None:
        os.kill(-self.pid if group else self.pid, kind)

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self.status = 128 - code if code < 0 else code
        return self.status

    def wait(self, seconds: float = 60) -> int:
        """The exit status. Kills the group and fails if there is none in time."""
        if not wait_until(lambda: self.poll() is not None, seconds):
            self.signal(signal.SIGKILL, group=True)
            raise AssertionError(f"still running after {seconds} s:\n{self.said()}")
        return self.status or 0

    def left_over(self, seconds: float = 10) -> bool:
        """Whether a process of the group outlives it by more than that."""

        def gone() -> bool:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return True
            return False

        return not wait_until(gone, seconds)


def wait_until(condition: Callable[[], object], seconds: float = 60) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.002)
    return False


def _become(script: str, args: list[str], said: Path, before: Callable[[], object]) -> None:
    status = 70
    try:
        os.setpgid(0, 0)
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        for kind in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(kind, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(ROOT)
        torch.set_num_threads(1)
        before()
        sys.argv = [script, *args]
        runpy.run_path(str(ROOT / script), run_name="__main__")
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

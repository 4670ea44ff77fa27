"""Commands that run side by side, each after the one it needs, in a way that a crash of any of them does not spoil."""

import fcntl
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

from dida.machine.signals import Signals

LAST_LINES = 15  # of a failed command's output
POLL = 0.2  # seconds
NEWS = 60.0  # seconds between two looks at what runs


@dataclass(frozen=True, eq=False)
class Task:
    """A command with an outcome that stays: once `done()`, it is never run again."""

    name: str
    command: Callable[[], Sequence[str]]  # asked when it starts: what is left to do depends on what is there
    done: Callable[[], bool]
    log: Path  # all it prints; its lock as well
    after: "Task | None" = None
    finish: Callable[[], None] = lambda: None  # runs when the command has ended well; a ValueError is its failure


class Jobs:
    """Tasks in the order in which they start; `run` returns the names of those that failed.

    A command inherits the lock on its log and holds it while it lives, even if this process is killed. So neither a
    second runner nor the next one starts what is still running.
    """

    def __init__(self, tasks: Sequence[Task], at_once: int, environment: dict[str, str]) -> None:
        self.waiting = [task for task in tasks if not task.done()]
        self.total = len(self.waiting)
        self.running: dict[Task, tuple[subprocess.Popen, TextIOWrapper, float]] = {}
        self.failed: list[Task] = []
        self.at_once = at_once
        self.environment = os.environ | environment
        self._told: set[Task] = set()  # that another process has its hands on

    def run(self, signals: Signals) -> list[str]:
        """Run all of them, or until a signal comes; then ask what runs to save and end, and wait for it."""
        news = time.monotonic()
        while (self.waiting or self.running) and not signals.caught:
            self._collect()
            self._start_some()
            if time.monotonic() - news > NEWS:
                news = time.monotonic()
                self._tell()
            time.sleep(POLL)
        for process, _, _ in self.running.values():
            process.terminate()
        for process, log, _ in self.running.values():
            process.wait()
            log.close()
        return [task.name for task in self.failed]

    def _start_some(self) -> None:
        for task in list(self.waiting):
            if len(self.running) >= self.at_once:
                return
            if task.after in self.failed:
                self._fail(task, "not run: what it needs failed")
            elif task.after is None or not (task.after in self.waiting or task.after in self.running):
                self._start(task)

    def _start(self, task: Task) -> None:
        task.log.parent.mkdir(parents=True, exist_ok=True)
        log = task.log.open("a")
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.close()
            if task not in self._told:
                self._told.add(task)
                _say(f"wait   {task.name}: a process of another runner is at it ({task.log})")
            return
        self.waiting.remove(task)
        if task.done():  # by whoever held the lock
            log.close()
            return
        # A session of its own, so that Ctrl-C on the terminal reaches us alone and a command is asked to stop once.
        process = subprocess.Popen(
            task.command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self.environment,
            start_new_session=True,
        )
        self.running[task] = process, log, time.monotonic()
        _say(f"start  {task.name}")

    def _collect(self) -> None:
        for task, (process, log, since) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[task]
            why = f"exit code {process.returncode}\n{last_lines(task.log, LAST_LINES)}"
            try:
                if process.returncode == 0:
                    task.finish()
            except ValueError as error:
                why = str(error)
            log.close()
            left = len(self.waiting) + len(self.running)
            if task.done():
                took = (time.monotonic() - since) / 60
                _say(f"done   {task.name} ({took:.1f} min; {self.total - left} of {self.total})")
            else:
                self._fail(task, why)

    def _fail(self, task: Task, why: str) -> None:
        if task in self.waiting:
            self.waiting.remove(task)
        self.failed.append(task)
        _say(f"FAILED {task.name}: {why}")

    def _tell(self) -> None:
        for task in self.running:
            _say(f"run    {task.name}: {last_lines(task.log, 1).strip()}")


def last_lines(path: Path, count: int) -> str:
    """The end of a text file, indented."""
    return "\n".join("    " + line for line in path.read_text(errors="replace").splitlines()[-count:])


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)

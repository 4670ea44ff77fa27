"""A command in a process group of its own: its log stays short, and when it ends, so does all that it started.

Nothing but the standard library is imported here and in the files that run stages, so that a broken driver, a missing
package or a full GPU can end a stage and never the command.
"""

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MARK = "DIDA_STAGE"  # variable by which every process of a command is known, also one that left its group
LOG_BYTES = 4_000_000  # a log that grows above this ...
KEPT_BYTES = 500_000  # ... keeps so much of its beginning and of its end
CUT = b"\n[... cut: the log was too long ...]\n"
GRACE = 5.0  # seconds until a killed process must be gone; one that hangs in a driver may never be


class Ended(NamedTuple):
    """How a command ended, or was ended."""

    status: int | None  # exit status, negative: the signal; None: it was ended from here
    survivors: list[int]  # processes that even SIGKILL did not end


class Running:
    """A command that runs, started when this is made."""

    def __init__(self, command: Sequence[str], *, folder: Path, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        self.began = time.monotonic()
        self._mark = secrets.token_hex(8)
        with log.open("ab") as file:  # appending: what is written after a cut goes where the file then ends
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **environment, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def status(self) -> int | None:
        """The exit status, None while it runs."""
        return self._process.poll()

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def kill(self) -> None:
        """End its process group, and wait for nothing: `end` does, and for those that left the group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def shorten_log(self) -> None:
        """Cut the middle out of a log that is too long."""
        if self.log.stat().st_size <= LOG_BYTES:
            return
        with self.log.open("r+b") as file:
            beginning = file.read(KEPT_BYTES)
            file.seek(-KEPT_BYTES, os.SEEK_END)
            end = file.read()
            file.truncate(0)
            file.seek(0)
            file.write(beginning + CUT + end)

    def end(self) -> Ended:
        """End what still runs of it, children and those that left its process group included."""
        status = self.status()
        self.kill()
        until = time.monotonic() + GRACE
        while (left := self._left()) and time.monotonic() < until:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self.shorten_log()
        return Ended(status, left)

    def _left(self) -> list[int]:
        """Processes of this command that are still there."""
        mine = [] if self._process.poll() is not None else [self._process.pid]
        mark = f"{MARK}={self._mark}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # gone meanwhile, or not ours
                if mark in path.read_bytes().split(b"\0"):
                    mine.append(int(path.parent.name))
        return sorted(set(mine))


def last_lines_of(log: Path, count: int) -> str:
    """The end of a log, without the empty lines."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(line[:300] for line in lines[-count:])

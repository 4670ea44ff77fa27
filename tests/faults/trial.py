"""One bad input, tried in a process of its own, and what came of it."""

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.processes import become

__all__ = ["Case", "Outcome", "told", "tried"]
PATIENCE = 300  # seconds, on a machine that does other things too
LONGEST = 48  # lines of one message, and of what a run says of itself before it


@dataclass(frozen=True)
class Case:
    """What is done, in an empty folder, and what is right: a message of one piece with `words`, or no complaint."""

    room: str
    name: str
    does: Callable[[], object]
    refused: bool | None = True  # None: either; what `does` returns without a complaint it has looked at itself
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """`what`: refused or taken, where that is right; else what is wrong."""

    case: Case
    what: str
    said: str

    @property
    def right(self) -> bool:
        return self.what in ("refused", "taken")


def told(does: Callable[[], object], *errors: type[Exception]) -> Callable[[], object]:
    """For what raises where a program says: `errors` end the process as a program's message would."""

    def run() -> None:
        try:
            does()
        except errors as error:
            sys.exit(f"{type(error).__name__}: {error}")

    return run


def tried(case: Case) -> Outcome:
    """Do it, and judge."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        status = _status(case, Path(folder), said)
        text = said.read_text(errors="replace") if said.exists() else ""
    return Outcome(case, _judged(case, status, text), text)


def _judged(case: Case, status: int | None, said: str) -> str:
    if status is None:
        return "hung"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    if "Traceback" in said:
        return "traceback"
    if not status:
        return "silent" if case.refused else "taken"
    if case.refused is False:
        return "refused wrongly"
    if missing := [word for word in case.words if word not in said]:
        return f"does not name {missing[0]}"
    return "refused" if 0 < len(said.strip().splitlines()) <= LONGEST else "no message, or a long one"


def _status(case: Case, folder: Path, said: Path) -> int | None:
    """Forked from here, where the case is: it cannot be sent."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        become(said, _do, case, folder / "here")
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return None if code == -signal.SIGALRM else code


def _do(case: Case, folder: Path) -> None:
    signal.alarm(PATIENCE)  # its end, whatever it waits for
    folder.mkdir()
    os.chdir(folder)
    case.does()

"""The two files that come back: results.json, rewritten whole as the stages go, and logs.tar.gz."""

import json
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu.command import last_lines_of
from bench.gpu.stages import Stage
from dida.machine.files import whole_file, write_json

RESULTS, LOGS = "results.json", "logs.tar.gz"
FORMAT = 1  # of results.json
# What becomes of a stage; "running" stays only where the command itself was killed.
NOT_REACHED, RUNNING, DONE, FAILED, TIMED_OUT = "not reached", "running", "done", "failed", "timed out"
WHY_LINES = 25  # of the log of a stage that did not end well


class Ledger:
    """What became of every stage, and all that they found."""

    def __init__(self, out: Path, work: Path, plan: Sequence[Stage], asked: dict[str, Any]) -> None:
        """`out`: where the two files go. `work`: where stages leave what they find. `asked`: the command's options."""
        self.out, self.work, self.asked = out, work, asked
        self.stages: dict[str, dict[str, Any]] = {
            stage.name: {"outcome": NOT_REACHED, "seconds": 0.0, "why": None} for stage in plan
        }
        self._began = time.monotonic()
        self._seen: dict[str, int] = {}  # when the files of stages were last written
        out.mkdir(parents=True, exist_ok=True)

    def found_path(self, name: str) -> Path:
        return self.work / f"{name}.json"

    def log_path(self, name: str) -> Path:
        return self.work / f"{name}.log"

    def found(self, name: str) -> dict[str, Any]:
        """What a stage has found so far."""
        path = self.found_path(name)
        return json.loads(path.read_text()) if path.exists() else {}

    def note(self, name: str, outcome: str, seconds: float = 0.0, why: str | None = None) -> None:
        """Keep what became of a stage, with the end of its log where it did not go well."""
        if outcome in (FAILED, TIMED_OUT) and self.log_path(name).exists():
            why = "\n".join(filter(None, [why, last_lines_of(self.log_path(name), WHY_LINES)]))
        self.stages[name] = {"outcome": outcome, "seconds": round(seconds, 1), "why": why}

    def save(self) -> None:
        """Both files."""
        self._save_results()
        with whole_file(self.out / LOGS) as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for log in sorted(self.work.glob("*.log")):
                archive.add(log, f"logs/{log.name}")

    def save_what_is_new(self) -> None:
        """results.json alone, if a stage has found something since it was last written."""
        if self._written() != self._seen:
            self._save_results()

    def _written(self) -> dict[str, int]:
        return {name: p.stat().st_mtime_ns for name in self.stages if (p := self.found_path(name)).exists()}

    def _save_results(self) -> None:
        self._seen = self._written()
        content = {
            "format": FORMAT,
            "asked": self.asked,
            "seconds": round(time.monotonic() - self._began, 1),
            "stages": self.stages,
            "found": {name: found for name in self.stages if (found := self.found(name))},
        }
        write_json(self.out / RESULTS, content)

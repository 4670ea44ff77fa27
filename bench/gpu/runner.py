"""Groups of stages one after another, each stage with its time and log; whatever becomes of one, the next runs."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.command import Running, last_lines_of
from bench.gpu.ledger import DONE, FAILED, LOGS, RESULTS, RUNNING, TIMED_OUT, Ledger
from bench.gpu.stages import GATE, Stage, groups_of
from dida.machine.signals import Signals

CHECKOUT = Path(__file__).parents[2]
POLL = 0.1  # seconds
NEWS = 5.0  # seconds between two looks at what a stage has written
AGAIN = "DIDA_AGAIN"  # variable by which stages know of earlier results
RESERVE = 5.0  # seconds kept for the end: killing, packing
TO_SAY_SO = 3.0  # seconds that a stage is told to end before it is ended
PATIENCE = {"cuda": 1, "cpu": 10}  # times a stage's seconds: they are a GPU's, and a CPU only tries the command
SHOWN_LINES = 12  # of the log of a stage, on the terminal


@dataclass(frozen=True)
class Request:
    """What the command was asked for."""

    out: Path
    seconds: float
    device: str = "cuda"
    banks: Path | None = None  # of real runs, for their test
    wheels: Path | None = None  # of packages that this machine lacks
    again: Path | None = None  # results whose tests are not run once more where they passed


class Runner:
    """Runs a plan. Its exit status: 0 all done, 1 something was not, 2 nothing can be measured here, 143 told to stop.

    A stage that hangs is ended with everything it started; one that crashes has its end in `why`. A signal ends the
    running stage, and what was found until then comes back like anything else.
    """

    def __init__(self, plan: Sequence[Stage], request: Request, work: Path) -> None:
        asked = {"seconds": request.seconds, "device": request.device, "stages": [stage.name for stage in plan]}
        self.plan, self.request, self.work = plan, request, work
        self.ledger = Ledger(request.out, work, plan, asked)
        self.signals = Signals()
        self._until = time.monotonic() + request.seconds - RESERVE

    def left(self) -> float:
        return self._until - time.monotonic()

    def run(self) -> int:
        try:
            self.ledger.save()
            self._unpack_wheels()
            for group in groups_of(self.plan):
                self._together(group)
                if self.signals.caught or self.obstacles():
                    break
        finally:
            self.ledger.save()
            self.signals.restore()
        return self._status()

    def obstacles(self) -> list[str]:
        """Why nothing can be measured here; a stage of facts that did not end well is one."""
        if GATE not in self.ledger.stages or self.ledger.stages[GATE]["outcome"] == DONE:
            return []
        return self.ledger.found(GATE).get("obstacles") or [f"the stage {GATE} did not end well"]

    def _together(self, group: Sequence[Stage]) -> None:
        """Run these at the same time, until the last of them has ended."""
        with self._begun(group) as running:
            news = time.monotonic() + NEWS
            while running:
                time.sleep(POLL)
                for stage, (command, limit) in list(running.items()):
                    command.shorten_log()
                    if command.status() is not None or command.seconds() > limit:
                        del running[stage]
                        self._finish(stage, command, command.status())
                if self.signals.caught:
                    self._end_all(running)
                if time.monotonic() > news:
                    self.ledger.save_what_is_new()
                    news = time.monotonic() + NEWS

    def _end_all(self, running: dict[Stage, tuple[Running, float]]) -> None:
        """At once, and only then one by one: each may take its time to be gone."""
        for command, _ in running.values():
            command.kill()
        while running:
            stage, (command, _) = running.popitem()
            self._finish(stage, command, None)

    @contextmanager
    def _begun(self, group: Sequence[Stage]) -> Iterator[dict[Stage, tuple[Running, float]]]:
        """Of those that have the time for it the command and its limit; what still runs behind the block is ended."""
        running: dict[Stage, tuple[Running, float]] = {}
        try:
            for stage in () if self.signals.caught else group:
                left = self.left()
                if left < stage.needs:
                    self.ledger.stages[stage.name]["why"] = f"{left:.0f} s were left, and it needs {stage.needs:.0f}"
                    continue
                limit = min(PATIENCE[self.request.device] * stage.seconds, left)
                gone = self.request.seconds - RESERVE - left
                print(f"== {stage.name}, {gone:.0f} s gone, at most {limit:.0f} s", flush=True)
                running[stage] = self._start(stage, limit), limit
                self.ledger.note(stage.name, RUNNING)
            self.ledger.save()
            yield running
        finally:
            for command, _ in running.values():
                command.end()

    def _start(self, stage: Stage, limit: float) -> Running:
        command = [
            sys.executable, *stage.command,
            "--device", self.request.device,
            "--seconds", f"{max(limit - TO_SAY_SO, limit / 2):.1f}",
            "--to", str(self.ledger.found_path(stage.name)),
        ]  # fmt: skip
        return Running(command, folder=CHECKOUT, log=self.ledger.log_path(stage.name), environment=self._environment())

    def _finish(self, stage: Stage, command: Running, status: int | None) -> None:
        """It has ended with this status, its time is up or a signal came (None): nothing of it is left, and what became
        of it is kept."""
        seconds = command.seconds()
        survivors = command.end().survivors
        left = f"these processes could not be ended: {survivors}" if survivors else None
        if status == 0:
            self.ledger.note(stage.name, DONE, seconds, left)
        elif status is None and not self.signals.caught:
            self.ledger.note(stage.name, TIMED_OUT, seconds, left)
        else:
            how = f"exit status {status}" if status is not None else f"ended by {self.signals.caught} to the command"
            self.ledger.note(stage.name, FAILED, seconds, "; ".join(filter(None, [how, left])))
        end = last_lines_of(command.log, SHOWN_LINES)
        print("\n".join(f"   {line}" for line in end.splitlines()))
        outcome = self.ledger.stages[stage.name]
        print(f"-> {stage.name}: {outcome['outcome']} in {outcome['seconds']} s", flush=True)
        self.ledger.save()

    def _environment(self) -> dict[str, str]:
        """Our packages and the wheels come first; compiled code is shared by the stages."""
        paths = [str(CHECKOUT), str(self._site), os.environ.get("PYTHONPATH", "")]
        found = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
            "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(self.work / "triton")),
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"),
        }
        places = {"DIDA_BANKS": self.request.banks, AGAIN: self.request.again}
        return found | {name: str(path.resolve()) for name, path in places.items() if path}

    @property
    def _site(self) -> Path:
        return self.work / "site"

    def _unpack_wheels(self) -> None:
        """Install what travelled with us; where that fails, stages that need it say so."""
        if self.request.wheels is None:
            return
        wheels = sorted(map(str, self.request.wheels.resolve().glob("*.whl")))
        options = ["--no-index", "--no-deps", "--no-compile", "--quiet", "--disable-pip-version-check"]
        pip = [sys.executable, "-m", "pip", "install", *options, "--target", str(self._site), *wheels]
        command = Running(pip, folder=CHECKOUT, log=self.work / "wheels.log", environment={})
        while command.status() is None and self.left() > 0 and not self.signals.caught:
            time.sleep(POLL)
        status = command.end().status
        print(f"wheels: {len(wheels)} installed" if status == 0 else last_lines_of(command.log, 3), flush=True)
        self.ledger.asked["wheels"] = {"files": [Path(wheel).name for wheel in wheels], "installed": status == 0}

    def _status(self) -> int:
        print("\n".join(f"{name:32} {x['outcome']:12} {x['seconds']:6.1f} s" for name, x in self.ledger.stages.items()))
        print(f"{self.request.out / RESULTS} and {self.request.out / LOGS}", flush=True)
        if self.signals.caught:
            print(f"stopped by {self.signals.caught}")
            return 143
        if obstacles := self.obstacles():
            print("\n".join(obstacles))
            return 2
        return 0 if all(stage["outcome"] == DONE for stage in self.ledger.stages.values()) else 1


def run_stages(plan: Sequence[Stage], request: Request) -> int:
    """Run a plan in a temporary folder and leave two files in `request.out`. Returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="dida-gpu-", ignore_cleanup_errors=True) as work:
        return Runner(plan, request, Path(work)).run()

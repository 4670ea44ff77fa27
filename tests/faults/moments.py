"""Kills, signals and full disks at random moments: every run is gone on with, and compared with one left alone."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dida.machine.files import PARTIAL
from dida.machine.signals import STOPPING
from dida.state import FOLDER, PARTS, checkpoints, latest, leaves, load_checkpoint
from tests.faults.scripts import Script, arguments, make_toy
from tests.page_block import tried_on
from tests.processes import wait_until

__all__ = ["Row", "Trials", "disks", "kills", "signals", "table"]
# The smallest encoder there is: what is tried is how runs end, which is the same for all.
SHORT = {"steps": 6, "save_every": 2, "warmup": 2, "backbone": "test_resnet", "weights": "none"}
PATIENCE = 600.0  # seconds, on a machine that does other things too


@dataclass
class Row:
    """What came of one kind of trial."""

    tried: int = 0
    early: int = 0  # there was no checkpoint yet
    finished: int = 0  # the run had ended before
    faults: list[str] = field(default_factory=list)


class Trials:
    """Runs of one data set, and the one that nothing happened to."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.data = make_toy(folder / "data")
        begin = time.monotonic()
        self.straight = folder / "straight"
        assert self.train(self.straight).wait(PATIENCE) == 0
        self.seconds = time.monotonic() - begin
        self.size = latest(self.straight).stat().st_size  # bytes of a checkpoint
        self.expected = content(self.straight)
        self.log = losses(self.straight)
        self.number = 0

    def place(self) -> Path:
        self.number += 1
        return self.folder / f"run_{self.number}"

    def train(self, out: Path, **options: Any) -> Script:
        return Script("train.py", arguments(self.data, out, **SHORT, **options), said(out))

    def go_on(self, run: Path, row: Row) -> None:
        """Finish a run that something happened to, and hold it to the one that nothing happened to."""
        self.torn(run, row)
        if checkpoints(run):
            again = Script("train.py", ["--resume", str(run)], said(run))
        else:
            row.early += 1
            again = self.train(run)
        self.ends(again, {0}, run, row)
        if again.status != 0:
            return
        if bad := difference(content(run), self.expected):
            row.faults.append(f"{run.name}: {bad} differs")
        if losses(run) != self.log:
            row.faults.append(f"{run.name}: its log differs")
        if left := [path.name for path in run.rglob("*") if path.name == "lock" or path.match(PARTIAL)]:
            row.faults.append(f"{run.name}: {', '.join(left)} stayed")
        if not row.faults:
            shutil.rmtree(run)  # a hundred runs are 10 GB

    def ends(self, run: Script, statuses: set[int], out: Path, row: Row) -> None:
        """Wait for the end of a process, which must have one of the statuses and leave nobody."""
        try:
            status = run.wait(PATIENCE)
        except AssertionError:
            row.faults.append(f"{out.name}: hung")
            return
        if status not in statuses:
            row.faults.append(f"{out.name}: status {status}, {run.said().strip().splitlines()[-1:]}")
        if "Traceback" in run.said():
            row.faults.append(f"{out.name}: a traceback")
        if run.left_over():
            row.faults.append(f"{out.name}: processes stayed")

    def torn(self, run: Path, row: Row) -> None:
        """Every file of the run is whole."""
        for path in run.rglob("*"):
            try:
                if path.match(PARTIAL):
                    continue
                if path.suffix == ".pt":
                    load_checkpoint(path)
                elif path.suffix == ".json":
                    json.loads(path.read_text())
            except ValueError as error:
                row.faults.append(f"{run.name}: {path.name} is torn ({error})")


def said(run: Path) -> Path:
    return run.with_suffix(".txt")


def content(run: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(latest(run))
    return {name: checkpoint[name] for name in (*PARTS, "step")}


def difference(a: Any, b: Any) -> str | None:
    """The name of the first of two nested values that differ in a bit."""
    found, expected = dict(leaves(a)), dict(leaves(b))
    if found.keys() != expected.keys():
        return "what there is"
    for name, value in expected.items():
        if not (torch.equal(found[name], value) if isinstance(value, Tensor) else found[name] == value):
            return name
    return None


def losses(run: Path) -> list[dict[str, float]]:
    """The log, without the speed of the machine."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in line.items() if k.startswith("loss/") or k in ("step", "gradient_norm")} for line in lines
    ]


def kills(trials: Trials, count: int) -> Iterable[tuple[str, Row]]:
    anywhere, saving = Row(), Row()
    for number in range(count):
        row, run = (saving if number % 3 == 2 else anywhere), trials.place()
        process = trials.train(run, workers=number % 2 * 2)
        if row is saving:  # a third of them while a checkpoint is being written
            wait, after = trials.random.choice([0, 0, 0.01, 0.03]), trials.random.randrange(3)
            wait_until(lambda run=run, p=process, n=after: _saves(run, n) or p.status is not None, PATIENCE)
            time.sleep(wait)
        else:
            time.sleep(trials.random.uniform(0.0, trials.seconds))
        row.tried += 1
        row.finished += process.status == 0
        if process.status is None:
            process.signal(signal.SIGKILL, group=number % 4 < 2)
            process.wait()
        trials.go_on(run, row)
    yield "kill -9 at any moment", anywhere
    yield "kill -9 within a save", saving


def is_saving(run: Path) -> bool:
    try:
        return any(name.endswith(".partial") for name in os.listdir(run / FOLDER))
    except FileNotFoundError:  # no run yet
        return False


def _saves(run: Path, after: int) -> bool:
    """Whether a checkpoint is being written, and there were so many before."""
    return len(checkpoints(run)) >= after and any(run.rglob(f"{FOLDER}/{PARTIAL}"))


def signals(trials: Trials, count: int) -> Iterable[tuple[str, Row]]:
    rows = {kind: Row() for kind in STOPPING}
    cases = itertools.cycle(itertools.product(STOPPING, (0, 4), (False, True)))
    for kind, workers, group in itertools.islice(cases, count):
        row, run = rows[kind], trials.place()
        process = trials.train(run, workers=workers)
        wait_until(lambda p=process: listens(p.pid), PATIENCE)
        time.sleep(trials.random.uniform(0.0, trials.seconds * 0.8))
        row.tried += 1
        if process.status is None:
            process.signal(kind, group=group)
        trials.ends(process, {128 + kind, 0}, run, row)
        row.finished += process.status == 0
        trials.go_on(run, row)
    yield from ((kind.name, row) for kind, row in rows.items())


def listens(pid: int) -> bool:
    """Whether a process has handlers for the signals that stop it; of SIGUSR1 nobody else has one."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return bool(caught >> (signal.SIGUSR1 - 1) & 1)


def disks(trials: Trials, count: int) -> Iterable[tuple[str, Row]]:
    row = Row()
    for _ in range(count):
        disk = trials.place()
        disk.mkdir()
        size = trials.random.randrange(16, 3 * trials.size // 1000)  # none, to three checkpoints
        mount("-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk))
        try:
            run = disk / "run"
            process = Script("train.py", arguments(trials.data, run, **SHORT), said(disk))
            row.tried += 1
            trials.ends(process, {0, 1}, disk, row)
            row.finished += process.status == 0
            if process.status == 1 and not {"No space left", "cannot be written"} & told(process):
                row.faults.append(f"{disk.name}: {process.said().splitlines()[-3:]}")
            if left := [path.name for path in disk.rglob(PARTIAL)]:
                row.faults.append(f"{disk.name}: {', '.join(left)} stayed")
            mount("-o", "remount,size=1g", str(disk))
            trials.go_on(run, row)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    yield "a disk of random size", row


def told(process: Script) -> set[str]:
    return {words for words in ("No space left", "cannot be written") if words in process.said()}


def mount(*args: str) -> None:
    subprocess.run(["mount", *args], check=True)


def table(rows: list[tuple[str, Row]]) -> str:
    """As Markdown."""
    lines = [
        "| what happened | times | before the first checkpoint | after the end | lost, torn, hung, different |",
        "|---|---|---|---|---|",
        *(f"| {name} | {r.tried} | {r.early} | {r.finished} | {len(r.faults)} |" for name, r in rows if r.tried),
    ]
    skipped = "" if any(name.startswith("a disk") for name, _ in rows) else " Disks were left out: they take root."
    return "\n".join(lines) + (
        f"\n\nRuns of {SHORT['steps']} steps of {SHORT['backbone']}, a checkpoint every {SHORT['save_every']}, 0 to 4 "
        "data processes. Those that are not counted in the last column were equal to the run that was left alone in "
        f"every bit of their last checkpoint, and in their log.{skipped} {tried_on()}.\n"
    )

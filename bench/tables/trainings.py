"""From rows and seeds to trainings, and from finished trainings to records: the raw numbers that tables are made of.

bench/results/<benchmark>/records/<digest>/<row>_s<seed>_<split>.json   one per row, seed and split, committed
runs/tables/<benchmark>/<method>_s<seed>_<hash>/                        run folders, not committed

<digest> is of the source that trained and scored (dida.machine.provenance.source_digest), <hash> of it and the
options. So what one state of the source made is never mistaken for another's: neither a record nor a run that was
stopped.
"""

import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.record import ROOT, header, origin
from bench.tables.jobs import Task
from bench.tables.rows import BENCHMARKS, WARM, Benchmark, Row
from dida import recipes
from dida.config import MAY_CHANGE, Config, InstanceConfig, flat, from_dict, to_dict
from dida.machine.provenance import machine, source_digest
from dida.run.terms import SHARE, WATCH
from dida.state import checkpoints

# Options that no number depends on, and two that a training names by itself: the seed, and where it branches off.
# A precision is one of them where it is that of the device, which a record names elsewhere.
NOT_OPTIONS = MAY_CHANGE | {"resume", "check_data", "out", "init", "seed"}

# Options that nothing depends on where there is no bank: a method without one is not run again when they change.
NO_BANK = {"selecting": "off", "instance_loss": "off", "regenerate_semantic": "none"}
OF_THE_BANK = {f.name for f in fields(InstanceConfig)} - NO_BANK.keys()

_TOLD = ROOT / "bench" / "told.py"

# What a record keeps of a training's environment.json.
TRAINED_WITH = ("python", "torch", "triton", "cuda", "gpu", "cpu", "platform", "threads")


@dataclass(frozen=True)
class Setting:
    """What all rows of one call share."""

    name: str  # of the benchmark
    benchmark: Benchmark
    digest: str  # of the source whose trainings these are
    split: str
    work: Path
    results: Path
    data_root: Path
    device: str
    extra: str = ""  # more options of train.py, for every run

    @property
    def records(self) -> Path:
        """Where those of all sources are, each in the folder of its digest."""
        return self.results / self.name / "records"

    @property
    def of_warm(self) -> "Setting":
        """That of the warm starts."""
        name = self.benchmark.warm_of
        if not name:
            return self
        return replace(self, name=name, benchmark=BENCHMARKS[name]._replace(warm_steps=self.benchmark.warm_steps))

    @property
    def of_this_tree(self) -> bool:
        return self.digest == this_source()


@cache
def this_source() -> str:
    """The digest of the source of this tree, when it was first asked for."""
    return source_digest(ROOT)


@dataclass(frozen=True)
class Training:
    """One run of train.py."""

    setting: Setting
    row: Row
    seed: int

    @property
    def warm(self) -> "Training | None":
        """The run whose student this one starts from."""
        return Training(self.setting.of_warm, WARM, self.seed) if self.branches else None

    @property
    def branches(self) -> bool:
        return self.row.warm and self.setting.benchmark.warm_steps > 0

    @property
    def arguments(self) -> tuple[str, ...]:
        """Options of train.py that the numbers depend on, but for the seed and the warm start."""
        benchmark = self.setting.benchmark
        steps = {"warm": benchmark.warm_steps, "branch": benchmark.branch_steps}
        steps["scratch"] = sum(steps.values())
        stage = "warm" if self.row == WARM else "branch" if self.branches else "scratch"
        # The oracle's recipe chooses its own source.
        domains = {"tgt": benchmark.tgt} | ({} if self.row.options["method"] == "oracle" else {"src": benchmark.src})
        return (
            *as_arguments(domains | {"steps": steps[stage]} | dict(benchmark.stages.get(stage, {}))),
            *shlex.split(self.setting.extra),
            *as_arguments(self.row.options),  # last, so that nothing shared can undo what a row is about
        )

    @property
    def options(self) -> dict[str, Any]:
        """Every option that the numbers depend on, and those of the warm start."""
        told = {"told": self.row.told, "told_by": _digest_of_told()} if self.row.told else {}
        return resolved(self.arguments) | told | {"warm_start": self.warm.options if self.warm else None}

    @cached_property
    def folder(self) -> Path:
        """Of the run. Two sets of options, or two states of the source, never share one; equal ones always do."""
        made_of = json.dumps([self.setting.digest, self.options], sort_keys=True)
        name = f"{self.row.options['method']}_s{self.seed}_{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"
        return self.setting.work / self.setting.name / name

    def done(self) -> bool:
        """Whether the checkpoint of the last step is there."""
        found = checkpoints(self.folder)
        return bool(found) and found[-1].stem == f"step_{self.options['steps']:06d}"

    def command(self) -> list[str]:
        """Start it, or go on where it stopped."""
        if checkpoints(self.folder):
            return [*self.program, "--resume", str(self.folder), *self.place]
        if self.folder.exists():
            shutil.rmtree(self.folder)  # it stopped before its first checkpoint, and train.py never overwrites a run
        init = ["--init", str(self.warm.folder)] if self.warm else []
        out = ["--out", str(self.folder)]
        return [*self.program, *self.arguments, "--seed", str(self.seed), *init, *out, *self.place]

    @property
    def program(self) -> list[str]:
        """What trains."""
        return [sys.executable, "-u", "-m", "bench.told", self.row.told] if self.row.told else script("train.py")

    @property
    def place(self) -> list[str]:
        """Where it runs, as far as train.py and eval.py have the same options for it."""
        return ["--data-root", str(self.setting.data_root), "--device", self.setting.device]


@dataclass(frozen=True)
class Scoring:
    """One run of eval.py, and the record that comes of it."""

    training: Training

    @property
    def domain(self) -> str:
        """What is scored on: the target, but for the warm start, of which one must know that it learnt the source."""
        benchmark = self.training.setting.benchmark
        return benchmark.own_val if self.training.row == WARM else benchmark.tgt

    @property
    def split(self) -> str:
        return "val" if self.training.row == WARM else self.training.setting.split

    @property
    def name(self) -> str:
        return f"{self.training.row.name}_s{self.training.seed}_{self.split}"

    @property
    def path(self) -> Path:
        """Of the record."""
        return self.training.setting.records / self.training.setting.digest / f"{self.name}.json"

    @property
    def scores(self) -> Path:
        """Of eval.py's numbers, in the run folder."""
        return self.training.folder / f"scores_{self.name}.json"

    def record(self) -> dict[str, Any] | None:
        """The record, if there is one of this source and exactly these options; only such a one saves a run.

        Of another source, whose recipes and defaults this tree does not know, it is the one that has the row's options.
        """
        try:
            found = json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        if self.training.setting.of_this_tree and not self.training.row.gone:
            same = found["options"] == self.training.options
        else:
            then = flat(Config()) | found["options"]  # an option that it lacks is newer; its default is what was done
            same = then.items() >= self.training.row.options.items() and then.get("told", "") == self.training.row.told
        return found if same else None

    def done(self) -> bool:
        return self.record() is not None

    def command(self) -> list[str]:
        where = ["--tgt", self.domain, "--split", self.split, "--json", str(self.scores)]
        return [*script("eval.py"), str(self.training.folder), *where, *self.training.place]

    def write(self) -> None:
        """Make the record of what eval.py found and of what the run says about itself.

        Raises ValueError if the source was another one at any time from the warm start's first step until now.
        """
        training, scores = self.training, json.loads(self.scores.read_text())
        runs = [run.folder for run in (training, training.warm) if run]
        environments = [json.loads(path.read_text()) for run in runs for path in sorted(run.glob("environment*.json"))]
        source, trained = origin(environments), environments[0]
        if training.row.told:
            require_told(training.folder, training.row.told)
        if source["digest"] != training.setting.digest or source_digest(ROOT) != training.setting.digest:
            raise ValueError(
                f"no record: it would be of source {training.setting.digest}, but the source was changed since "
                f"({source['digest']} trained, {source_digest(ROOT)} now); run from a clone that nobody edits"
            )
        if "changes" in source["commit"]:
            raise ValueError(f"no record: it was trained in a tree with uncommitted changes ({source['commit']})")
        content = {
            "row": training.row.name,
            "benchmark": training.setting.name,
            "seed": training.seed,
            "domain": self.domain,
            "split": self.split,
            "images": scores["images"],
            "step": scores["step"],
            "minutes": round(minutes(training.folder), 2),
            **source,
            "environment": {
                "trained": {name: trained[name] for name in TRAINED_WITH},
                "scored": header("cuda" if trained["gpu"] and training.setting.device != "cpu" else "cpu"),
            },
            "unit": scores["unit"],
            "student": scores["student"],
            "teacher": scores["teacher"],
            "looks": looks_of(training.folder),
            "options": training.options,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(self.path)  # a killed runner leaves a whole record or none
        for old in checkpoints(training.folder)[:-1]:  # hundreds of runs fill a disk
            old.unlink()


def plan(wanted: Sequence[tuple[Setting, Row]], seeds: Sequence[int]) -> list[Task]:
    """What is left to do for these rows and seeds, in the order to start it: seed by seed, so that pairs come early.

    Raises ValueError if another kind of machine has begun with one of the seeds.
    """
    tasks: dict[Path, Task] = {}  # by what they make: rows of equal options share a run
    here = _processors(machine())
    for seed in seeds:
        begun = len(tasks)
        for setting, row in wanted:
            training = Training(setting, row, seed)
            if training.warm:
                _add_scoring(Scoring(training.warm), tasks)
            _add_scoring(Scoring(training), tasks)
        if len(tasks) > begun:
            for setting, row in wanted:
                _refuse_another_machine(Scoring(Training(setting, row, seed)), here)
    return list(tasks.values())


def machine_of(record: Mapping[str, Any]) -> str:
    """The kind of machine that trained: what the bits of a run depend on beside its source."""
    return _processors(record["environment"]["trained"])


def _processors(found: Mapping[str, Any]) -> str:
    return " with ".join(filter(None, (found.get("cpu"), found.get("gpu"))))


def _refuse_another_machine(scoring: Scoring, here: str) -> None:
    record = scoring.record()
    if record is not None and machine_of(record) != here:
        raise ValueError(
            f"{scoring.path}: trained on {machine_of(record)}, and this is {here}. Rows are compared seed by seed, "
            "and runs of a seed start alike on one kind of machine alone: take other --seeds, or another folder "
            "(--results)"
        )


def _add_scoring(scoring: Scoring, tasks: dict[Path, Task]) -> None:
    if scoring.path in tasks or scoring.done():
        return
    train = _add_training(scoring.training, tasks)
    log = scoring.scores.with_suffix(".log")
    tasks[scoring.path] = Task(f"score {scoring.name}", scoring.command, scoring.done, log, train, scoring.write)


def _add_training(training: Training, tasks: dict[Path, Task]) -> Task | None:
    """The task that makes a training, added after what it needs; None if it is made."""
    if training.done():
        return None
    if training.folder not in tasks:
        warm = _add_training(training.warm, tasks) if training.warm else None
        name = f"train {training.row.name}_s{training.seed}"
        log = training.folder.with_name(training.folder.name + ".log")
        tasks[training.folder] = Task(name, training.command, training.done, log, warm)
    return tasks[training.folder]


def require_told(run: Path, level: str) -> None:
    """Raise ValueError unless all of a run was told this level: its environment files have the command lines."""
    for path in sorted(run.glob("environment*.json")):
        typed = json.loads(path.read_text())["argv"][:2]
        if typed != [str(_TOLD), level]:
            raise ValueError(f"{path}: {' '.join(typed)} trained, so level {level} was not told all the time")


@cache
def _digest_of_told() -> str:
    """Of what tells: it is no part of the source whose digest a record has."""
    return hashlib.sha256(_TOLD.read_bytes()).hexdigest()[:16]


def script(name: str) -> list[str]:
    return [sys.executable, "-u", str(ROOT / name)]


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """{"bank_size": 50} -> ["--bank-size", "50"]."""
    return [part for name, value in options.items() for part in ("--" + name.replace("_", "-"), str(value))]


@cache
def resolved(arguments: tuple[str, ...]) -> dict[str, Any]:
    """Every option of a command line that its numbers depend on, recipes and defaults included."""
    config = from_dict(to_dict(recipes.from_command_line(list(arguments))))
    options = flat(config)
    unused = NOT_OPTIONS | (set(OF_THE_BANK) if has_no_bank(options) else set())
    if options["precision"] != flat(Config())["precision"]:
        unused = unused - {"precision"}
    options = {name: value for name, value in options.items() if name not in unused}
    return json.loads(json.dumps(options, default=str))


def has_no_bank(options: Mapping[str, Any]) -> bool:
    """Whether nothing fills a bank, loses against it or asks it."""
    return all(options[name] == off for name, off in NO_BANK.items())


def looks_of(run: Path) -> list[dict[str, float]]:
    """What a run saw when it looked at itself on the way (`--eval-every`), but for the shares of the classes."""
    return [
        {"step": line["step"]}
        | {name.removeprefix(WATCH): x for name, x in line.items() if name.startswith(WATCH) and SHARE not in name}
        for line in log_of(run)
        if any(name.startswith(WATCH) for name in line)
    ]


def log_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def minutes(run: Path) -> float:
    """Training time of a run, from its log: it is the same however often the run was interrupted."""
    lines = log_of(run)
    steps = [0, *(line["step"] for line in lines)]
    return sum((b - a) / line["steps_per_second"] for (a, b), line in zip(pairwise(steps), lines, strict=True)) / 60

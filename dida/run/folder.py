"""A run's folder: its options, its classes, its machine, its numbers.

runs/<date>_<method>_<src>2<tgt>_<backbone>_s<seed>/
    config.json           every option; `dida.config.from_dict` reads it back
    classes.json          the class set; `ClassSet.from_dict` reads it back
    environment.json      source, versions, hardware, command line; one more file per resume
    metrics.jsonl         one object per log line
    events.out.tfevents*  the same for TensorBoard
    checkpoints/ panels/  (written by dida.state and dida.run.panel)
    lock                  who is training it, while somebody is
"""

import itertools
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from dida.config import Config, from_dict, of_run, to_dict
from dida.data.classes import ClassSet
from dida.errors import UserError
from dida.machine.files import (
    PARTIAL,
    Appended,
    read_json,
    read_metrics,
    regular,
    require_writable,
    write_bytes,
    write_json,
)
from dida.machine.provenance import environment
from dida.run.claim import LOCK, Claim, require_unclaimed
from dida.run.trackers import MARK, open_trackers, require_tracker
from dida.state import checkpoints, run_folder

RUNS = Path("runs")
# What a run writes before its first checkpoint, and of that what it writes before its options.
_START = re.compile(
    r"(config|classes|environment\w*)\.json|metrics\.jsonl|events\.out\.tfevents.*"
    rf"|panels/step_\d+\.png|(\w+/)?\..*\.partial|{LOCK}|{re.escape(MARK)}|wandb/.*"
)
_BEFORE = re.compile(rf"\..*\.partial|{LOCK}")


class Run:
    """The folder of one run, open for logging. No other process writes there until `close`."""

    def __init__(self, folder: Path, config: dict[str, Any], claim: Claim, purge_step: int | None = None) -> None:
        self.folder = folder
        self.config = config  # as `dida.config.to_dict` gives it
        self._claim = claim
        self.metrics = folder / "metrics.jsonl"
        self._metrics = Appended(self.metrics)
        self._trackers = open_trackers(config["run"]["tracker"], folder, config, purge_step)

    @classmethod
    def start(cls, config: Config, class_set: ClassSet, runs: Path = RUNS) -> "Run":
        """Make the run's folder: `config.run.out` itself, or a named one under `runs`.

        A start that came to no checkpoint is taken over. Raises FileExistsError if the folder holds anything else (a
        run is never overwritten), Claimed if another process holds it.
        """
        folder = config.run.out or runs / run_name(config, datetime.now())
        folder.mkdir(parents=True, exist_ok=True)
        with _claimed(folder) as claim:
            _require_free(folder)
            for old in list(_files(folder)):
                if old.name != LOCK:
                    old.unlink()
            options = to_dict(of_run(config))
            write_json(folder / "config.json", options)
            write_json(folder / "classes.json", class_set.to_dict())
            write_json(folder / "environment.json", environment())
            return cls(folder, options, claim)

    @classmethod
    def resume(cls, config: Config, step: int) -> "Run":
        """Reopen the run `config.resume` to go on after `step` finished steps; what was logged later is forgotten.

        Its config.json is written anew: the data may lie elsewhere now. If that checkpoint was due at a log step, the
        log ends as an uninterrupted run's; after a signal it keeps the line of the step at which the run stopped.
        Checkpoints of later steps, where `config.resume` is an older one, are set aside. Raises Claimed if another
        process holds the run, UserError if one has been at it since its newest checkpoint was read.
        """
        assert config.resume is not None  # or there is nothing to reopen
        folder = run_folder(config.resume)
        with _claimed(folder) as claim:
            newer = checkpoints(folder, after=step)
            if newer and folder == config.resume:  # and not a checkpoint that was named
                raise UserError(f"{folder}: another process has advanced this run in the meantime; ask again")
            for path in newer:
                aside = path.rename(_free_name(path.with_name(path.name + ".aside")))
                print(f"a checkpoint of a later step is set aside: {aside}")
            for partial in (*folder.glob(PARTIAL), *folder.glob(f"*/{PARTIAL}")):
                partial.unlink()
            options = to_dict(of_run(config))
            write_json(folder / "config.json", options)
            write_json(folder / f"environment_from_step_{step:06d}.json", environment())
            _cut_after(folder / "metrics.jsonl", step)
            return cls(folder, options, claim, purge_step=step + 1)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Append to metrics.jsonl, and tell TensorBoard's file and whatever else keeps curves. Raises OSError."""
        self._metrics.write((json.dumps({"step": step} | scalars) + "\n").encode())
        for tracker in self._trackers:
            tracker.add(step, scalars)

    def close(self) -> None:
        """Close the log and let others write here; logging again is an error."""
        with ExitStack() as last:  # whatever fails, others may write here afterwards
            last.callback(self._claim.release)
            for tracker in self._trackers:
                last.callback(tracker.close)
            last.callback(self._metrics.close)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def require_place(config: Config) -> None:
    """Raise what `Run.start` or `Run.resume` would, before the work of assembling a run. Changes nothing."""
    require_tracker(config.run.tracker)
    if config.resume:
        require_unclaimed(run_folder(config.resume))
    elif config.run.out is None:
        require_writable(RUNS, option="the default of --out,", folder=True)
    else:
        require_writable(config.run.out, option="--out", folder=True)
        if config.run.out.exists():
            require_unclaimed(config.run.out)
            _require_free(config.run.out)


@contextmanager
def _claimed(folder: Path) -> Iterator[Claim]:
    """The claim of a folder, released only if the block fails."""
    claim = Claim(folder)
    try:
        yield claim
    except BaseException:
        claim.release()
        raise


def _require_free(folder: Path) -> None:
    """Raise FileExistsError for a folder that holds more than a start that came to no checkpoint."""
    foreign = next(_foreign(folder), None)  # of what may be a whole disk
    if foreign is not None:
        found = checkpoints(folder)
        instead = f"or continue that run with --resume {shlex.quote(str(folder))}" if found else "or remove it"
        raise FileExistsError(
            f"{folder}: exists and is not empty (it holds {foreign}); a run is never overwritten. Choose another "
            f"--out, {instead}"
        )


def _foreign(folder: Path) -> Iterator[str]:
    """Files of a folder that are no part of a start which came to no checkpoint, by name.

    Others have a config.json or a folder wandb/ too, and a finished run whose checkpoints were moved has nothing but
    such files left: so it must say what it is, and its log must end where the first checkpoint was due, or before.
    """
    begun = []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if not _START.fullmatch(name):
            yield name
        elif not _BEFORE.fullmatch(name):
            begun.append(name)
    if begun and not _came_to_no_checkpoint(folder):
        yield min(begun)
    elif not (folder / MARK).exists():
        yield from (name for name in begun if name.startswith("wandb/"))


def _came_to_no_checkpoint(folder: Path) -> bool:
    try:
        config = from_dict(read_json(folder / "config.json"))
        last = max((line["step"] for line in read_metrics(folder / "metrics.jsonl")), default=0)
    except (OSError, ValueError, KeyError):
        return False
    return last <= config.run.save_every and last < config.optim.steps  # the line of a step is written before its save


def _free_name(path: Path) -> Path:
    """This, or this with the first number that is free: what was set aside before stays."""
    numbered = (path.with_name(f"{path.name}{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], numbered) if not name.exists())


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir())


def run_name(config: Config, now: datetime) -> str:
    """<date>_<method>_<src>2<tgt>_<backbone>_s<seed>, of characters that every file system takes."""
    src, tgt = (_file_safe(name) for name in (config.data.src, config.data.tgt))
    backbone = _file_safe(config.model.backbone)
    return f"{now:%Y-%m-%d_%H%M%S}_{config.method}_{src}2{tgt}_{backbone}_s{config.run.seed}"


def _file_safe(name: str) -> str:
    if name.startswith("folder:"):
        name = Path(name.removeprefix("folder:")).expanduser().absolute().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "folder"


def _cut_after(metrics: Path, step: int) -> None:
    """Drop lines after `step`, and those that a crash damaged: the file then goes on where the run does."""
    if not metrics.exists():
        return
    lines = regular(metrics).read_bytes().splitlines(keepends=True)
    steps = [_step_of(line) for line in lines]
    if damaged := steps.count(None):
        print(f"{metrics}: damaged lines left out: {damaged}")
    kept = [line for line, at in zip(lines, steps, strict=True) if at is not None and at <= step]
    write_bytes(metrics, b"".join(kept))


def _step_of(line: bytes) -> int | None:
    """The step of a whole line of metrics.jsonl, None for another one."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) and line.endswith(b"\n") else None

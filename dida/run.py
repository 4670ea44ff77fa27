"""A run's folder: its options, its classes, its machine, its numbers.

runs/<date>_<method>_<src>2<tgt>_<backbone>_s<seed>/
    config.json           every option; `dida.config.from_dict` reads it back
    classes.json          the class set; `ClassSet.from_dict` reads it back
    environment.json      source, versions, hardware, command line; one more file per resume
    metrics.jsonl         one object per log line
    events.out.tfevents*  the same for TensorBoard
    checkpoints/ panels/  (written by dida.state and dida.panel)
"""

import dataclasses
import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from dida.config import Config, to_dict
from dida.data.classes import ClassSet
from dida.files import write_json, write_text
from dida.meter import LOSS
from dida.provenance import environment


class Run:
    """The folder of one run, open for logging."""

    def __init__(self, folder: Path, config: dict[str, Any], purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed here

        self.folder = folder
        self.config = config  # as `dida.config.to_dict` gives it
        self._metrics = (folder / "metrics.jsonl").open("a")
        self._tensorboard = SummaryWriter(folder, purge_step=purge_step)

    @classmethod
    def start(cls, config: Config, class_set: ClassSet, runs: Path = Path("runs")) -> "Run":
        """Make the run's folder: `config.run.out` itself, or a named one under `runs`.

        Raises FileExistsError if it holds anything: a run is never overwritten.
        """
        folder = config.run.out or runs / run_name(config, datetime.now())
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(
                f"{folder}: exists and is not empty; a run is never overwritten. Choose another --out, or continue "
                f"that run with --resume {folder}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", to_dict(config))
        write_json(folder / "classes.json", class_set.to_dict())
        write_json(folder / "environment.json", environment())
        return cls(folder, to_dict(config))

    @classmethod
    def resume(cls, config: Config, step: int) -> "Run":
        """Reopen the run `config.resume` to go on after `step` finished steps; what was logged later is forgotten.

        Its config.json is written anew: the data may lie elsewhere now. If that checkpoint was due at a log step, the
        log ends as an uninterrupted run's; after a signal it keeps the line of the step at which the run stopped.
        """
        folder = config.resume
        assert folder is not None  # or there is nothing to reopen
        options = to_dict(dataclasses.replace(config, resume=None))
        write_json(folder / "config.json", options)
        write_json(folder / f"environment_from_step_{step:06d}.json", environment())
        _cut_after(folder / "metrics.jsonl", step)
        return cls(folder, options, purge_step=step + 1)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Append to metrics.jsonl and TensorBoard; on disk when it returns."""
        self._metrics.write(json.dumps({"step": step} | scalars) + "\n")
        self._metrics.flush()
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()

    def line(self, step: int, steps: int, scalars: dict[str, float]) -> str:
        """Progress as one line of text, from what `Meter.flush` returned."""
        losses = [f"{name.removeprefix(LOSS)} {v:.4f}" for name, v in scalars.items() if name.startswith(LOSS)]
        left = timedelta(seconds=round((steps - step) / scalars["steps_per_second"]))
        parts = [
            f"step {step:>{len(str(steps))}}/{steps}",
            *losses,
            f"lr {scalars['lr']:.2e}",
            f"{scalars['steps_per_second']:.2f} it/s",
            f"ETA {left}",
            f"mem {scalars['memory_gib']:.1f} GiB",
            f"wait {scalars['data_wait']:.0%}",
        ]
        if "pseudo_coverage" in scalars:
            parts.append(f"confident {scalars['pseudo_coverage']:.0%}")
        if scalars["bank_fill"]:  # methods without a bank never fill it
            parts.append(f"bank {scalars['bank_fill']:.0%}")
        return "  ".join(parts)

    def close(self) -> None:
        """Close both files; logging again is an error."""
        self._metrics.close()
        self._tensorboard.close()


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
    """Drop lines after `step`, and a last one that a crash cut short: the file then goes on where the run does."""
    if not metrics.exists():
        return
    lines = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("}\n")]
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    write_text(metrics, "".join(kept))

"""A run's folder: its options, its machine, its numbers; and how numbers leave the device without stalling it.

runs/<date>_<method>_<src>2<tgt>_<backbone>_s<seed>/
    config.json           every option; `dida.config.from_dict` reads it back
    environment.json      versions, hardware, commit, command line; one more file per resume
    metrics.jsonl         one object per log line
    events.out.tfevents*  the same for TensorBoard
    checkpoints/ panels/  (written by dida.state and dida.panel)
"""

import dataclasses
import json
import math
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

import dida_kernels
from dida.batch import Trace
from dida.config import Config, to_dict
from dida.data.pairs import Ids

LOSS = "loss/"  # prefix of loss names among the scalars
_SOURCE_TREE = Path(__file__).resolve().parent.parent


class NonFiniteLoss(RuntimeError):
    """A loss became infinite or NaN. The message names the term, the step and the file with the step's samples."""


class Run:
    """The folder of one run, open for logging."""

    def __init__(self, folder: Path, config: dict[str, Any], purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed here

        self.folder = folder
        self.config = config  # as `dida.config.to_dict` gives it
        self._metrics = (folder / "metrics.jsonl").open("a")
        self._tensorboard = SummaryWriter(folder, purge_step=purge_step)

    @classmethod
    def start(cls, config: Config, runs: Path = Path("runs")) -> "Run":
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
        _write_json(folder / "config.json", to_dict(config))
        _write_json(folder / "environment.json", environment())
        return cls(folder, to_dict(config))

    @classmethod
    def resume(cls, config: Config, step: int) -> "Run":
        """Reopen the run `config.resume` to go on after `step` finished steps; what was logged later is forgotten.

        Its config.json is written anew: the data may lie elsewhere now. If that checkpoint was due at a log step, the
        log ends as an uninterrupted run's; after a signal it keeps the line of the step at which the run stopped.
        """
        folder = config.resume
        options = to_dict(dataclasses.replace(config, resume=None))
        _write_json(folder / "config.json", options)
        _write_json(folder / f"environment_from_step_{step:06d}.json", environment())
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


class Meter:
    """Collects what steps leave behind. `add` never waits for the device; `flush` fetches everything at once."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of the run, where the samples of a step with a non-finite loss are written down."""
        self._folder = folder
        self._steps: list[tuple[int, Ids]] = []
        self._values: list[dict[str, Tensor]] = []  # per step, scalars on the device
        self._waited = 0.0
        self._since = time.perf_counter()

    def add(self, step: int, trace: Trace, ids: Ids, *, waited: float) -> None:
        """Take the losses (and coverage of pseudo-labels) of step `step`, made from the samples `ids`.

        `waited`: seconds that the loop waited for that batch.
        """
        values = {LOSS + name: loss for name, loss in trace.losses.items()}
        if trace.adaptation is not None:
            values["pseudo_coverage"] = trace.adaptation.pseudo.coverage
        self._steps.append((step, ids))
        self._values.append(values)
        self._waited += waited

    def flush(self, *, lr: list[float], bank_fill: Tensor) -> dict[str, float]:
        """Means over the steps since the last flush, and rates; the meter is empty afterwards.

        `lr`: learning rates, the encoder's first and the head's last. `bank_fill`: scalar, on the device. One transfer
        to the host. Raises NonFiniteLoss if any loss of any step is not finite, and ValueError if there was no step.
        """
        if not self._steps:
            raise ValueError("nothing to flush: no step was added")
        names = list(self._values[0])
        flat = [values[name].float() for values in self._values for name in names]
        *rows, fill = torch.stack([*flat, bank_fill.float()]).tolist()
        elapsed = time.perf_counter() - self._since  # after the transfer, which waits until the last step is done
        table = [rows[i : i + len(names)] for i in range(0, len(rows), len(names))]
        self._require_finite(names, table)
        scalars = {name: math.fsum(row[i] for row in table) / len(table) for i, name in enumerate(names)}
        scalars |= {
            "lr": lr[0],
            "lr_head": lr[-1],
            "steps_per_second": len(table) / elapsed,
            "data_wait": min(self._waited / elapsed, 1.0),
            "memory_gib": peak_memory(bank_fill.device) / 2**30,
            "bank_fill": fill,
        }
        self._steps, self._values, self._waited, self._since = [], [], 0.0, time.perf_counter()
        return scalars

    def _require_finite(self, names: list[str], table: list[list[float]]) -> None:
        for (step, ids), row in zip(self._steps, table, strict=True):
            bad = [name.removeprefix(LOSS) for name, value in zip(names, row, strict=True) if not math.isfinite(value)]
            if not bad:
                continue
            path = self._folder / f"nonfinite_step_{step}.json"
            samples = {domain: indices.tolist() for domain, indices in ids._asdict().items()}
            values = {name: str(value) for name, value in zip(names, row, strict=True)}  # NaN is no JSON number
            _write_json(path, {"step": step, "values": values, "samples": samples})
            raise NonFiniteLoss(
                f"loss {' and '.join(bad)} not finite at step {step}: "
                + ", ".join(f"{name} {value}" for name, value in values.items())
                + f"; its samples are in {path}"
            )


class Signals:
    """Remembers a request to stop (Ctrl-C, SIGTERM, SIGUSR1 of batch systems), so that a loop can end in good order.

    A second one of the same kind acts as if nobody listened.
    """

    def __init__(self) -> None:
        self.caught: str | None = None  # name of the signal
        kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._before = {kind: signal.signal(kind, self._remember) for kind in kinds}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.caught = signal.Signals(number).name
        signal.signal(number, self._before[number])


def run_name(config: Config, now: datetime) -> str:
    """<date>_<method>_<src>2<tgt>_<backbone>_s<seed>, of characters that every file system takes."""
    src, tgt = (_file_safe(name) for name in (config.data.src, config.data.tgt))
    backbone = _file_safe(config.model.backbone)
    return f"{now:%Y-%m-%d_%H%M%S}_{config.method}_{src}2{tgt}_{backbone}_s{config.run.seed}"


def environment() -> dict[str, Any]:
    """What a number depends on besides the options: versions, hardware, commit, backends."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version(),
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "git": source_commit(_SOURCE_TREE),
        "argv": sys.argv,
        "backend": os.environ.get("DIDA_BACKEND", "auto"),
        "kernels": dida_kernels.report(),
    }


def triton_version() -> str | None:
    """The version of triton, None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triton")
    except PackageNotFoundError:
        return None


RESULTS = ":(exclude)bench/results"  # as git names all but them


def source_commit(tree: Path) -> dict[str, Any] | None:
    """{"commit": sha, "dirty": tracked files differ from it}; None where `tree` is no git checkout.

    Results are no source: a table's records change while its runs go on, and no run reads them.
    A copy that travelled without git is of the commit that DIDA_COMMIT names, if it names one.
    """
    git = shutil.which("git")
    if git is None or not (tree / ".git").exists():
        named = os.environ.get("DIDA_COMMIT")
        return {"commit": named, "dirty": False} if named else None
    answers = [
        subprocess.run([git, "-C", str(tree), *command], capture_output=True, text=True, check=False)
        for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", ".", RESULTS])
    ]
    if any(answer.returncode for answer in answers):  # a repository without commits, or one that git does not trust
        return None
    return {"commit": answers[0].stdout.strip(), "dirty": bool(answers[1].stdout.strip())}


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: allocated by PyTorch on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _file_safe(name: str) -> str:
    if name.startswith("folder:"):
        name = Path(name.removeprefix("folder:")).expanduser().absolute().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "folder"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _cut_after(metrics: Path, step: int) -> None:
    """Drop lines after `step`, and a last one that a crash cut short: the file then goes on where the run does."""
    if not metrics.exists():
        return
    lines = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("}\n")]
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    partial = metrics.with_suffix(".partial")
    partial.write_text("".join(kept))
    partial.replace(metrics)

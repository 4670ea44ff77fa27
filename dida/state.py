"""All that changes during training, and how it is kept on disk."""

import pickle
import random
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dida.files import whole_file
from dida.method.bank import InstanceBank
from dida.method.views import StepRandom

FORMAT = 2  # of the checkpoint file
FOLDER = "checkpoints"
KEPT = 2  # newest checkpoints that stay on disk
PARTS = ("student", "teacher", "bank", "optimizer", "schedule")


@dataclass
class TrainState:
    """Owned by the loop, advanced by `train_step` and by nothing else."""

    student: nn.Module
    teacher: nn.Module
    bank: InstanceBank
    optimizer: Optimizer
    schedule: LRScheduler
    seed: int
    step: int = 0

    def step_rng(self) -> StepRandom:
        """Generators for this step, a function of (seed, step); also seeds dropout and stochastic depth."""
        # Through a string, because Python's own hash of it is SHA-512: neighbouring steps share no bits.
        host = random.Random(f"{self.seed}/{self.step}")
        torch.manual_seed(host.getrandbits(63))
        device = torch.Generator(next(self.student.parameters()).device)
        device.manual_seed(host.getrandbits(63))
        return StepRandom(host, device)

    def save(self, run: Path, config: dict[str, Any], class_set: dict[str, Any]) -> Path:
        """Write RUN/checkpoints/step_N.pt so that a crash at any moment leaves a whole file, and keep the last two."""
        path = run / FOLDER / f"step_{self.step:06d}.pt"
        content = {"format": FORMAT, "step": self.step, "config": config, "classes": class_set}
        with whole_file(path) as file:
            torch.save(content | {part: getattr(self, part).state_dict() for part in PARTS}, file)
        for old in checkpoints(run)[:-KEPT]:
            old.unlink()
        return path

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Continue from what `load_checkpoint` returned."""
        for part in PARTS:
            getattr(self, part).load_state_dict(checkpoint[part])
        self.step = checkpoint["step"]


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [(int(m[1]), p) for p in (run / FOLDER).glob("step_*.pt") if (m := re.fullmatch(r"step_(\d+)", p.stem))]
    return [path for _, path in sorted(found)]


def latest(run: Path) -> Path:
    """The newest checkpoint of a run folder, or the file itself. Raises FileNotFoundError that says what was found."""
    if run.is_file():
        return run
    if not run.is_dir():
        raise FileNotFoundError(f"{run}: no such run folder or checkpoint")
    found = checkpoints(run)
    if not found:
        raise FileNotFoundError(f"{run}: no checkpoint in {run / FOLDER}; the run stopped before its first one")
    return found[-1]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, tensors and plain values only.

    Raises ValueError for a file that is not one of ours or has another format version.
    """
    if not zipfile.is_zipfile(path):  # what torch.save writes, whole
        raise ValueError(f"{path}: no checkpoint, or one that was cut off")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: a file of torch, but not one of plain tensors: {error}") from error
    found = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path}: expected a DIDA checkpoint of format {FORMAT}, found {found!r}")
    return checkpoint


def load_weights(network: nn.Module, weights: dict[str, Tensor], *, source: str, expected: str) -> None:
    """Fill a network. Raises ValueError for weights of another one, saying where they are from and what is expected."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        some = "\n".join(str(error).splitlines()[1:4])  # a line per tensor, of which there may be hundreds
        raise ValueError(f"{source}: not the weights of {expected}, e.g.\n{some}") from error

"""All that changes during training, and how it is kept on disk."""

import math
import pickle
import random
import re
import shlex
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dida.errors import NonFinite
from dida.machine.checksums import Damaged, require_whole
from dida.machine.distributed import ALONE, World
from dida.machine.files import regular, reserve, whole_file
from dida.method.bank import InstanceBank
from dida.method.prior import ClassShares
from dida.method.views import StepRandom
from dida.precision import Networks

FORMAT = 2  # of the checkpoint file
FOLDER = "checkpoints"
KEPT = 2  # newest checkpoints that stay on disk, so that one of them is whole
MODULES = ("student", "teacher", "bank", "shares")
PARTS = (*MODULES, "optimizer", "schedule")
ENTRIES: dict[str, type] = {"step": int, "config": dict, "classes": dict} | dict.fromkeys(PARTS, dict)
WHOLE = tuple(ENTRIES)  # what it takes to go on
_HOW_IT_RUNS = ("fused", "foreach")  # what an optimizer's groups say of the device, which may be another after a resume
_OVERHEAD = 1 << 20  # bytes of a checkpoint besides its tensors, and to spare


@dataclass
class TrainState:
    """Owned by the loop, advanced by `train_step` and by nothing else."""

    student: nn.Module
    teacher: nn.Module
    working: Networks  # what the passes of a step call for the two; nothing of it is saved
    bank: InstanceBank
    shares: ClassShares
    optimizer: Optimizer
    schedule: LRScheduler
    seed: int
    step: int = 0
    world: World = ALONE

    def step_rng(self) -> StepRandom:
        """Generators for this step, a function of (seed, step); also seeds dropout and stochastic depth."""
        # Through a string, because Python's own hash of it is SHA-512: neighbouring steps share no bits.
        host = random.Random(f"{self.seed}/{self.step}")
        torch.manual_seed(host.getrandbits(63))
        device = torch.Generator(next(self.student.parameters()).device)
        device.manual_seed(host.getrandbits(63))
        return StepRandom(host, device, self.world)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers of student, teacher, bank and class shares, with their dotted names."""
        for part in MODULES:
            yield from leaves(dict(getattr(self, part).state_dict()), part)

    def save(
        self,
        run: Path,
        config: dict[str, Any],
        class_set: dict[str, Any],
        files: dict[str, Any] | None = None,
        *,
        keep: int = KEPT,
    ) -> Path:
        """Write RUN/checkpoints/step_N.pt so that a crash at any moment leaves a whole file.

        `files`: what the run's data consists of, see `Pairs.listing`. `keep`: newest checkpoints that stay, 0: all.
        Raises NonFinite and writes nothing where a tensor is not finite, OSError where it cannot be written, with the
        size that it needs.
        """
        path = run / FOLDER / f"step_{self.step:06d}.pt"
        content = {"format": FORMAT, "step": self.step, "config": config, "classes": class_set, "files": files}
        content |= {part: getattr(self, part).state_dict() for part in PARTS}
        if bad := first_nonfinite(content):
            raise NonFinite(f"{bad} is not finite after step {self.step}; it is not saved")
        with whole_file(path) as file:
            reserve(file, sum(t.nbytes for _, t in leaves(content) if isinstance(t, Tensor)) + _OVERHEAD)
            try:
                torch.save(content, file)
            except RuntimeError as error:  # of its zip writer, once a write has failed
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None
            file.truncate()
        for old in checkpoints(run)[:-keep] if keep else ():
            old.unlink()
        return path

    def load(self, checkpoint: dict[str, Any], *, source: str = "checkpoint") -> None:
        """Continue from what `load_checkpoint` returned, with all entries, of the file `source`.

        Raises ValueError that names it for a checkpoint of another network, bank, optimizer or schedule.
        """
        for part in MODULES:
            expected = f"the {part} of its own config"
            load_weights(getattr(self, part), checkpoint[part], source=f"{source}, {part}", expected=expected)
        for part, problem in (
            ("optimizer", _misfit(self.optimizer, checkpoint["optimizer"], checkpoint["step"])),
            ("schedule", _not_of(self.schedule, checkpoint["schedule"], checkpoint["step"])),
        ):
            if problem:
                raise ValueError(f"{source}, {part}: {problem}")
        optimizer = checkpoint["optimizer"]
        of_here = [
            saved | {name: own[name] for name in _HOW_IT_RUNS}
            for saved, own in zip(optimizer["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        self.optimizer.load_state_dict(optimizer | {"param_groups": of_here})
        self.schedule.load_state_dict(checkpoint["schedule"])
        self.step = checkpoint["step"]


def _misfit(optimizer: Optimizer, saved: dict[str, Any], step: int) -> str | None:
    """What keeps an optimizer from going on with `saved`, its state after `step` steps, or another's."""
    own, groups, moments = optimizer.state_dict()["param_groups"], saved.get("param_groups"), saved.get("state")
    if not isinstance(groups, list) or not isinstance(moments, dict):
        return "not the state of an optimizer"
    for mine, other in zip(own, groups, strict=False):
        if not isinstance(other, dict) or mine.keys() != other.keys() or mine["params"] != other["params"]:
            return f"not the state of {type(optimizer).__name__} for the network of its own config"
        for name in mine.keys() - {"lr", *_HOW_IT_RUNS}:  # the rate is set anew
            if type(mine[name]) is not type(other[name]) or mine[name] != other[name]:
                return f"{name} of its own config is {mine[name]!r}, found {other[name]!r:.40}"
    if len(own) != len(groups):
        return f"expected {len(own)} groups of parameters, found {len(groups)}"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in enumerate(parameters):
        if (problem := _not_moments(moments.get(number), parameter, step)) is not None:
            return f"{problem[0]} of parameter {number} is not {problem[1]}"
    return None


def _not_moments(averages: Any, parameter: Tensor, step: int) -> tuple[str, str] | None:
    """Which of the averages that AdamW keeps of a parameter is none, and what it should be."""
    if averages is None:  # it had no gradient yet
        return None
    for name in ("exp_avg", "exp_avg_sq"):
        value = averages.get(name) if isinstance(averages, dict) else None
        if not isinstance(value, Tensor) or value.shape != parameter.shape:
            return name, f"of its shape, {tuple(parameter.shape)}"
        if value.dtype != parameter.dtype:
            return name, f"of its type, {parameter.dtype}"
    taken = averages.get("step")
    if not isinstance(taken, Tensor) or taken.numel() != 1 or not 1 <= float(taken) <= step:
        return "step", f"one of 1 to {step}"
    return None


def _not_of(schedule: LRScheduler, saved: dict[str, Any], step: int) -> str | None:
    """What keeps a schedule from going on with `saved`, its state after `step` steps, or another's."""
    own, at = schedule.state_dict(), saved.get("last_epoch")
    if not isinstance(at, int) or any(saved.get(n) != own[n] for n in ("base_lrs", "lr_lambdas")):
        return f"not the state of a schedule of learning rates {schedule.base_lrs}"
    if not 0 <= at <= step:
        return f"is at step {at}, the checkpoint at {step}"
    return None


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested dictionaries and lists, with its dotted name."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            yield from leaves(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def first_nonfinite(content: dict[str, Any]) -> str | None:
    """The dotted name of a tensor or number that is not finite, None if all are. One transfer to the host."""
    found = list(leaves(content))
    for name, value in found:
        if isinstance(value, float) and not math.isfinite(value):
            return name
    tensors = [(name, value) for name, value in found if isinstance(value, Tensor) and value.dtype.is_floating_point]
    if not tensors:
        return None
    finite = torch.stack([value.isfinite().all().to(tensors[0][1].device) for _, value in tensors]).tolist()
    return next((name for (name, _), good in zip(tensors, finite, strict=True) if not good), None)


def first_not_plain(content: dict[str, Any]) -> str | None:
    """What is wrong with the first tensor that is not dense, or whose numbers are not all there; None if none is.

    A file of a few bytes can hold a tensor that is sparse, or the view of one number as a million, or one of no device.
    """
    for name, value in leaves(content):
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
                return f"{name} is not a dense tensor of plain numbers ({value.layout}, {value.dtype}, {value.device})"
            if value.untyped_storage().nbytes() < value.nbytes:
                return f"{name} shows the same few numbers {value.numel()} times"
    return None


def checkpoints(run: Path, *, after: int = -1) -> list[Path]:
    """The checkpoints of a run, those of steps after `after`, oldest first."""
    found = [(int(m[1]), p) for p in (run / FOLDER).glob("step_*.pt") if (m := re.fullmatch(r"step_(\d+)", p.stem))]
    return [path for step, path in sorted(found) if step > after]


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


def run_folder(path: Path) -> Path:
    """The run of a checkpoint RUN/checkpoints/FILE, or the folder itself. Raises ValueError for another place."""
    if not path.is_file():
        return path
    if path.absolute().parent.name != FOLDER:
        raise ValueError(f"{path}: not RUN/{FOLDER}/FILE, so it is not known which run to continue; see also --init")
    return path.absolute().parent.parent


class Foreign(ValueError):
    """A file that is whole as far as one can see, and no checkpoint of ours."""


def load_checkpoint(path: Path, needs: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, tensors and plain values only, with all of the ENTRIES that are in `needs`.

    Its checksums are looked at. Raises ValueError, and OSError, for a file that is damaged, not one of ours (Foreign),
    of another format version or not finite; where an older checkpoint of the run is whole, the message names it.
    """
    try:
        checkpoint = _read(path)
    except Damaged as error:
        raise ValueError(f"{path}: {error}{_or_an_older_one(path)}") from error
    except _NOT_PLAIN as error:
        why = str(error).rpartition("WeightsUnpickler error: ")[2].strip().split("\n")[0]
        raise Foreign(f"{path}: a file of torch, but not one of plain tensors: {why}") from error
    found = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if found != FORMAT or isinstance(found, bool):
        refusal = Foreign if found is None else ValueError
        raise refusal(f"{path}: expected a DIDA checkpoint of format {FORMAT}, found {found!r}")
    for name in needs:
        value, kind = checkpoint.get(name), ENTRIES[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            what = "nothing" if name not in checkpoint else repr(value)[:40]
            wanted = "a whole number" if kind is int else "a dictionary"
            raise ValueError(f"{path}: expected {wanted} as {name!r}, found {what}")
    if bad := first_not_plain(checkpoint):
        raise ValueError(f"{path}: {bad}{_or_an_older_one(path)}")
    if bad := first_nonfinite(checkpoint):
        part, _, name = bad.partition(".")
        what = "weights" if part in ("student", "teacher") else "numbers"
        raise ValueError(f"{path}: the {part}'s {what} are not finite, e.g. {name}{_or_an_older_one(path)}")
    return checkpoint


_NOT_PLAIN = (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, IndexError)


def _read(path: Path) -> Any:
    """What torch.save wrote, after every record of the archive was held to its checksum.

    Raises Damaged, Foreign, OSError, or one of _NOT_PLAIN.
    """
    if not zipfile.is_zipfile(regular(path)):  # what torch.save writes, whole
        with path.open("rb") as file:
            if file.read(1) == b"\x80":
                raise Foreign(f"{path}: expected a DIDA checkpoint, found a pickle")  # as torch wrote files until 1.6
        raise Damaged("no checkpoint, or one that was cut off")
    require_whole(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except RuntimeError as error:  # of the little that has no checksum
        raise Damaged(f"damaged, or no file of torch ({str(error).split('. ')[0]})") from error


def _or_an_older_one(path: Path) -> str:
    """Words that lead to the newest whole checkpoint before `path`, where there is one."""
    names = [other.name for other in checkpoints(path.parent.parent)] if path.parent.name == FOLDER else []
    for name in reversed(names[: names.index(path.name)] if path.name in names else []):
        other = path.with_name(name)
        try:
            _read(other)
        except (Damaged, Foreign, OSError, *_NOT_PLAIN):
            continue
        named = shlex.quote(str(other))
        return f". An older one is whole: go on from it with --resume {named}, or score it with eval.py {named}"
    return ""


def load_weights(network: nn.Module, weights: dict[str, Tensor], *, source: str, expected: str) -> None:
    """Fill a network. Raises ValueError for weights of another one, or of another kind of numbers, or not finite,
    saying where they are from and what is expected."""
    own = network.state_dict()
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{source}: {name} is no tensor")
        if name in own and (value.dtype.is_floating_point, value.is_complex()) != (
            own[name].dtype.is_floating_point,
            False,
        ):
            raise ValueError(f"{source}: {name} holds {value.dtype}, expected {own[name].dtype}")
    if bad := first_not_plain(weights):
        raise ValueError(f"{source}: {bad}")
    if bad := first_nonfinite(weights):
        raise ValueError(f"{source}: the weights are not finite, e.g. {bad}")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        some = "\n".join(str(error).splitlines()[1:4])  # a line per tensor, of which there may be hundreds
        raise ValueError(f"{source}: not the weights of {expected}, e.g.\n{some}") from error
    except ValueError as error:  # of a bank, whose slots are of no class
        raise ValueError(f"{source}: {error}") from error

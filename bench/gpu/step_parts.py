"""What the stages of the step run: the engine's own step on batches that wait on the device, at the size of training.

The parts are those of a run (`dida.assemble`), as bench/step.py puts them together; no batch is loaded, so that nothing
but the step is timed. On a CPU all of it is tiny, to try the command.
"""

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any, NamedTuple

import torch

from bench import step
from bench.step import Contender
from dida.batch import Batch, LabelledCrops
from dida.data.classes import CITYSCAPES_CLASSES
from dida.models import mit
from dida.precision import PRECISIONS, Precision
from tests.engine import scenes


class Workload(NamedTuple):
    """Sizes of the step."""

    backbone: str
    crop: int
    slots: tuple[int, ...]  # sizes K of DIDA's bank
    steps: int  # timed, and between two updates of the bank
    warm_up: int


WORKLOADS = {"cuda": Workload("mit_b5", 512, (300, 3000), 5, 3), "cpu": Workload("mit_b0", 64, (20,), 1, 1)}


def contenders_of(workload: Workload, device: torch.device) -> list[Contender]:
    """DAFormer, then DIDA for every K, on one student, teacher and optimizer."""
    if device.type == "cpu":
        mit.COMPILER = "eager"  # blocks are traced, but not compiled, which would take minutes
    config = step.config_of(workload.backbone, workload.crop, workload.steps)
    pixels_C = torch.ones(len(CITYSCAPES_CLASSES), dtype=torch.int64)  # every class occurs
    return step.build_contenders(config, workload.slots, CITYSCAPES_CLASSES, pixels_C, device)


def precisions_on(device: torch.device, wanted: Iterable[Precision] = PRECISIONS) -> list[Precision]:
    """Those of `wanted` that a device has."""
    return [precision for precision in wanted if device.type == "cuda" or precision != "tf32"]


def batch_on(device: torch.device, crop: int) -> Batch:
    """2 + 2 crops of noise with labels in blocks."""
    made = scenes.batch(size=crop, images=2)
    source = LabelledCrops(made.source.image.to(device), made.source.label.to(device))
    return Batch(source, made.target.to(device))


def stream_of(batch: Batch) -> Iterator[tuple[Batch, Any]]:
    """The same batch for ever, as `bench.step.take_steps` wants it."""
    return repeat((batch, None))


def settings_of(workload: Workload) -> dict[str, Any]:
    """What the numbers depend on besides their rows."""
    return {
        **workload._asdict(),
        "bank_every": step.bank_every(workload.steps),
        "float32 convolutions": torch.backends.cudnn.conv.fp32_precision,
    }

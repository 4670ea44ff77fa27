"""A tiny network and random street-like batches, for tests of the step that need no files."""

import copy

import torch
from torch import nn

from dida import recipes
from dida.assemble import build_method, build_state, build_student
from dida.batch import IGNORE, Batch, LabelledCrops
from dida.config import Config, changed
from dida.data.classes import CITYSCAPES_CLASSES
from dida.method.bank import InstanceBank
from dida.method.passes import Method
from dida.method.prior import ClassShares
from dida.optim import build_optimizer, build_schedule
from dida.precision import Networks
from dida.state import TrainState

CLASSES = len(CITYSCAPES_CLASSES)


def tiny(method: str = "dida", **options) -> Config:
    """mit_b0 with a 16-channel head on 64x64 crops; the bank is filled in step 0 and used from step 1."""
    small = {
        "crop": 64, "batch_size": 2, "embed_dim": 16, "steps": 6, "warmup": 2, "lr": 1e-3, "bank_size": 40,
        "bank_start": 1, "bank_fill": 1, "bank_every": 2, "ignore_bottom": 32, "threshold": 0.1,
    }  # fmt: skip
    return changed(recipes.METHODS[method](changed(recipes.toy(Config()), **small)), **options)


def build(config: Config, *, imagenet: bool = False, device: str = "cpu") -> tuple[TrainState, Method]:
    """State and method of a run, from the config alone; every class has pixels in the source."""
    torch.manual_seed(config.run.seed)
    encoder = build_student(config, CITYSCAPES_CLASSES).encoder().to(device) if imagenet else None
    torch.manual_seed(config.run.seed)
    state = build_state(config, CITYSCAPES_CLASSES, torch.ones(CLASSES), torch.device(device))
    return state, build_method(config, CITYSCAPES_CLASSES, imagenet=encoder)


def batch(step: int = 0, *, size: int = 64, images: int = 2) -> Batch:
    """Noise whose labels are blocks as large as the deepest stage's cells, with a void column, a function of `step`."""
    generator = torch.Generator().manual_seed(step)
    label = torch.randint(CLASSES, (images, size // 32, size // 32), generator=generator)
    label = label.repeat_interleave(32, 1).repeat_interleave(32, 2)
    label[:, :, :3] = IGNORE
    noise = torch.randn(2, images, 3, size, size, generator=generator)
    return Batch(LabelledCrops(noise[0] + label[:, None] / 10, label), noise[1])


class Small(nn.Module):
    """A network with what an optimizer tells apart, whose checkpoints are small."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 64, 3), nn.LayerNorm(64))
        self.decode_head = nn.Conv2d(64, 300, 1)


def small_state(seed: int = 0) -> TrainState:
    """A state whose network segments nothing, after a step of its optimizer, so that there are moments."""
    torch.manual_seed(seed)
    student = Small()
    optimizer = build_optimizer(student, lr=0.1, head_lr_factor=10.0, weight_decay=0.1)
    for weight in student.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    teacher = copy.deepcopy(student)
    slots = torch.arange(19).repeat_interleave(2)
    return TrainState(
        student=student,
        teacher=teacher,
        working=Networks(student, teacher),
        bank=InstanceBank(slots, 16, 19),
        shares=ClassShares(19),
        optimizer=optimizer,
        schedule=build_schedule(optimizer, steps=1000, warmup=10),
        seed=seed,
    )

"""A tiny network and random street-like batches, for tests of the step that need no files."""

import torch

from dida import recipes
from dida.batch import IGNORE, Batch, LabelledCrops
from dida.config import Config, changed
from dida.method import Method, build_method
from dida.method.bank import InstanceBank
from dida.method.sampling import slot_labels
from dida.method.teacher import as_teacher
from dida.models.segmentor import Segmentor
from dida.optim import build_optimizer, build_schedule
from dida.state import TrainState

CLASSES = 19
THINGS = (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)


def tiny(method: str = "dida", **options) -> Config:
    """mit_b0 with a 16-channel head on 64x64 crops; the bank is filled in step 0 and used from step 1."""
    small = {
        "crop": 64, "batch_size": 2, "embed_dim": 16, "steps": 6, "warmup": 2, "lr": 1e-3, "bank_size": 40,
        "bank_start": 1, "bank_fill": 1, "bank_every": 2, "ignore_bottom": 32, "threshold": 0.1,
    }  # fmt: skip
    return changed(recipes.METHODS[method](changed(recipes.toy(Config()), **small)), **options)


def build(config: Config, *, imagenet: bool = False, device: str = "cpu") -> tuple[TrainState, Method]:
    """State and method of a run, from the config alone."""
    torch.manual_seed(config.run.seed)
    student = Segmentor(config.model.backbone, CLASSES, config.model.embed_dim, config.model.drop_path).train()
    encoder = (
        Segmentor(config.model.backbone, CLASSES, config.model.embed_dim).backbone.to(device) if imagenet else None
    )
    student.to(device)  # before anything refers to its parameters
    optimizer = build_optimizer(student, lr=config.optim.lr, head_lr_factor=2.0, weight_decay=0.01)
    state = TrainState(
        student=student,
        teacher=as_teacher(student, config.teach.teacher_norm),
        bank=InstanceBank(
            slot_labels("cbs", config.bank.bank_size, torch.ones(CLASSES)), config.model.embed_dim, CLASSES
        ).to(device),
        optimizer=optimizer,
        schedule=build_schedule(optimizer, steps=config.optim.steps, warmup=config.optim.warmup),
        seed=config.run.seed,
    )
    return state, build_method(config, classes=CLASSES, imagenet=encoder, things=THINGS)


def batch(step: int = 0, *, size: int = 64, images: int = 2) -> Batch:
    """Noise whose labels are blocks as large as the deepest stage's cells, with a void column, a function of `step`."""
    generator = torch.Generator().manual_seed(step)
    label = torch.randint(CLASSES, (images, size // 32, size // 32), generator=generator)
    label = label.repeat_interleave(32, 1).repeat_interleave(32, 2)
    label[:, :, :3] = IGNORE
    noise = torch.randn(2, images, 3, size, size, generator=generator)
    return Batch(LabelledCrops(noise[0] + label[:, None] / 10, label), noise[1])

"""A tiny network and random street-like batches, for tests of the step that need no files."""

import torch

from dida import recipes
from dida.assemble import build_method, build_state, build_student
from dida.batch import IGNORE, Batch, LabelledCrops
from dida.config import Config, changed
from dida.data.classes import CITYSCAPES_CLASSES
from dida.method.passes import Method
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
    encoder = build_student(config, CITYSCAPES_CLASSES).backbone.to(device) if imagenet else None
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

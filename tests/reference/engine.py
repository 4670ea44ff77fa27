"""Our engine, asked what DAFormer's code was asked: all that these tests know of the engine's own names."""

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from dida import recipes
from dida.assemble import build_student
from dida.batch import LabelledCrops, Prediction
from dida.config import Config, changed
from dida.data.classes import CITYSCAPES_CLASSES
from dida.method import feature_distance as fd
from dida.optim import build_optimizer, build_schedule

CONFIG = recipes.daformer(Config())  # the paper's options: no number of DAFormer's recipe is repeated in the tests


def segmentor(backbone: str) -> nn.Module:
    """The student, whose state dict has DAFormer's keys without their leading `model.`."""
    return build_student(changed(CONFIG, backbone=backbone), CITYSCAPES_CLASSES)


def optimizer(model: nn.Module) -> AdamW:
    optim = CONFIG.optim
    return build_optimizer(model, lr=optim.lr, head_lr_factor=optim.head_lr_factor, weight_decay=optim.weight_decay)


def learning_rate(model: nn.Module, step: int) -> dict[str, float]:
    """The rate of every group at a step of the whole run."""
    groups = optimizer(model)
    schedule = build_schedule(groups, steps=CONFIG.optim.steps, warmup=CONFIG.optim.warmup)
    bases = zip(groups.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
    return {group["name"]: base * factor(step) for group, base, factor in bases}


class _Features(nn.Module):
    """An encoder whose deepest map is given."""

    def __init__(self, deepest: Tensor):
        super().__init__()
        self.deepest = nn.Parameter(deepest)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.deepest]


def feature_distance(student_BChw: Tensor, imagenet_BChw: Tensor, label_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted feature distance of two deepest maps, a scalar, and the cells it is a mean over, [B, h, w]."""
    things, C = CITYSCAPES_CLASSES.things, len(CITYSCAPES_CLASSES)
    encoder = _Features(imagenet_BChw)
    distance = fd.feature_distance(encoder, weight=CONFIG.teach.feature_weight, things=things, classes=C)
    nothing = torch.empty(0)
    seen = Prediction(logits=nothing, embed=nothing, deepest=student_BChw)
    return distance(seen, LabelledCrops(nothing, label_BHW)), distance.thing_cells(label_BHW, student_BChw.shape[-2:])

"""Our engine, asked what DAFormer's code was asked: all that these tests know of the engine's own names."""

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from dida import recipes
from dida.batch import Labeled, Prediction
from dida.config import Config
from dida.data.classes import CLASSES, THINGS
from dida.method.feature_distance import FeatureDistance
from dida.models.segmentor import Segmentor
from dida.optim import build_optimizer, build_schedule

CONFIG = recipes.daformer(Config())  # the paper's options: no number of DAFormer's recipe is repeated in the tests


def segmentor(backbone: str) -> nn.Module:
    """The student, whose state dict has DAFormer's keys without their leading `model.`."""
    return Segmentor(backbone, CLASSES, CONFIG.model.embed_dim, CONFIG.model.drop_path)


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
    distance = FeatureDistance(
        _Features(imagenet_BChw), weight=CONFIG.teach.feature_weight, things=THINGS, classes=CLASSES
    )
    nothing = torch.empty(0)
    seen = Prediction(logits=nothing, embed=nothing, deepest=student_BChw)
    return distance(seen, Labeled(nothing, label_BHW)), distance.thing_cells(label_BHW, student_BChw.shape[-2:])

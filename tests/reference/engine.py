"""Our engine, asked what DAFormer's code was asked: all that these tests know of the engine's own names."""

import random
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from dida import recipes
from dida.assemble import build_method, build_student
from dida.batch import IGNORE, MEAN, STD, Batch, LabelledCrops, Mixed, Prediction, PseudoLabel
from dida.config import Config, changed
from dida.data.classes import CITYSCAPES_CLASSES
from dida.method import feature_distance as fd
from dida.method import teacher
from dida.method.bank import InstanceBank
from dida.method.prior import ClassShares
from dida.method.views import StepRandom
from dida.optim import build_optimizer, build_schedule

CONFIG = recipes.daformer(Config())  # the paper's options: no number of DAFormer's recipe is repeated in the tests
SHORT = changed(CONFIG, backbone="mit_b0", embed_dim=64, steps=12, warmup=3)  # the run that data/train.npz is of


def segmentor(config: Config) -> nn.Module:
    """The student, whose state dict has DAFormer's keys without their leading `model.`."""
    return build_student(config, CITYSCAPES_CLASSES)


def of_backbone(name: str) -> Config:
    return changed(CONFIG, backbone=name)


def optimizer(model: nn.Module) -> AdamW:
    optim = CONFIG.optim
    return build_optimizer(model, lr=optim.lr, head_lr_factor=optim.head_lr_factor, weight_decay=optim.weight_decay)


def learning_rate(model: nn.Module, step: int, config: Config = CONFIG) -> dict[str, float]:
    """The rate of every group at a step of the whole run."""
    groups = optimizer(model)
    schedule = build_schedule(groups, steps=config.optim.steps, warmup=config.optim.warmup)
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


def as_teacher(student: nn.Module) -> nn.Module:
    return teacher.as_teacher(student, SHORT.teach.teacher_norm)


def normalised(rgb_B3HW: Tensor) -> Tensor:
    """What a network sees of bytes."""
    mean, std = (torch.tensor(values, dtype=rgb_B3HW.dtype).view(3, 1, 1) for values in (MEAN, STD))
    return (rgb_B3HW - mean) / std


def batch(source_B3HW: Tensor, label_BHW: Tensor, target_B3HW: Tensor) -> Batch:
    return Batch(LabelledCrops(source_B3HW, label_BHW), target_B3HW)


def pseudo_label(teacher: nn.Module, batch: Batch) -> PseudoLabel:
    """What a teacher that sees the target makes of it; the baseline has no bank."""
    C = len(CITYSCAPES_CLASSES)
    unasked = InstanceBank(torch.arange(C), SHORT.model.embed_dim, C)
    method = build_method(SHORT, CITYSCAPES_CLASSES)
    return method.believe(
        teacher, unasked, ClassShares(C), batch, 0, StepRandom(random.Random(), torch.Generator())
    ).pseudo


class Drawn(NamedTuple):
    """What DAFormer drew for a strong view; uniform numbers are in [0, 1)."""

    chances: np.ndarray  # [2] it jitters where the first is above 0.2, and blurs where the second is above 0.5
    pasted_BHW: Tensor  # bool: pixels of the classes that it chose
    factor_B4: Tensor  # uniform: brightness, contrast, hue, saturation
    order_B4: Tensor  # which of the four comes first, second, ...
    sigma_B: Tensor  # uniform


def strong_view(batch: Batch, pseudo: PseudoLabel, drawn: Drawn) -> Mixed:
    """Ours, where the generators give what DAFormer drew: each number is asked for in its turn and shape."""
    jitters, blurs = 1 - drawn.chances  # ours are done below a chance
    left = [_class_scores(batch.source.label, drawn.pasted_BHW)]
    left += [drawn.factor_B4.T, drawn.order_B4.argsort(1).argsort(1)] if jitters < SHORT.teach.jitter_chance else []
    left += [drawn.sigma_B] if blurs < SHORT.teach.blur_chance else []
    host = mock.Mock(**{"random.side_effect": [jitters, blurs]})

    def rand(*shape: int, **_: object) -> Tensor:
        value = left.pop(0)
        assert value.shape == torch.empty(*shape, device="meta").shape
        return value

    (mixed_pass,) = build_method(SHORT, CITYSCAPES_CLASSES).target_passes
    with mock.patch.object(torch, "rand", rand):
        mixed = mixed_pass.mixed_view(batch.source, batch.target, pseudo, StepRandom(host, torch.Generator()))
    assert not left
    return mixed


def _class_scores(label_BHW: Tensor, pasted_BHW: Tensor) -> Tensor:
    """Draws [B, C + 1] whose greatest are the classes that were pasted; then come those that a picture lacks, which
    nobody can see."""
    index_BHW = torch.where(label_BHW == IGNORE, len(CITYSCAPES_CLASSES), label_BHW)
    score_BC = torch.ones(len(label_BHW), len(CITYSCAPES_CLASSES) + 1)
    for score_C, index_HW, pasted_HW in zip(score_BC, index_BHW, pasted_BHW, strict=True):
        score_C[index_HW[~pasted_HW]] = 0
        score_C[index_HW[pasted_HW]] = 2
    return score_BC

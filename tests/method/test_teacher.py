"""III-A: the teacher's average, its modes, and what a pseudo-label is worth."""

import pytest
import torch
from torch import nn

from dida.batch import Belief
from dida.method.teacher import AverageTeacher, LabelTarget, PerPixel, ShareOfBatch, ShareOfImage, as_teacher


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout2d(0.5))


@pytest.mark.parametrize("norm, trains", [("batch", True), ("averaged", False)])
def test_only_batch_norm_may_stay_in_training_mode(norm, trains):
    teacher = as_teacher(network().train(), norm)
    assert [m.training for m in teacher] == [False, trains, False]
    assert not any(p.requires_grad for p in teacher.parameters())


def test_average_follows_the_warm_up_then_the_momentum():
    student, teacher = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(teacher.weight), nn.init.ones_(student.weight)
    average = AverageTeacher(0.999, buffers=False)
    average(teacher, student, 0)
    assert teacher.weight.item() == pytest.approx(0.5)  # alpha = 1 - 1/2
    average(teacher, student, 1)
    assert teacher.weight.item() == pytest.approx(0.5 * 2 / 3 + 1 / 3)  # alpha = 1 - 1/3
    nn.init.zeros_(teacher.weight)
    average(teacher, student, 10_000)
    assert teacher.weight.item() == pytest.approx(0.001)


@pytest.mark.parametrize("buffers", [False, True])
def test_batch_norm_buffers_follow_only_when_asked(buffers):
    student = network()
    teacher = as_teacher(student, "averaged")
    student[1].running_mean.fill_(3.0)
    AverageTeacher(0.9, buffers)(teacher, student, 0)
    assert teacher[1].running_mean.eq(3.0 if buffers else 0.0).all()


def belief(confidences) -> Belief:
    """Two classes, one pixel per confidence; z-hat turned the other way, so that labels tell which was used."""
    top_BHW = torch.tensor(confidences)
    z_BCHW = torch.stack([top_BHW, 1 - top_BHW], 1)
    return Belief(semantic=z_BCHW.flip(1), z=z_BCHW, terms=())


CONFIDENCES = [[[0.99, 0.9], [0.97, 0.5]], [[0.5, 0.6], [0.7, 0.968]]]  # 2 images of 2x2: 2 and 1 reach 0.968

REAL = torch.ones(2, 2, 2, dtype=torch.bool)


def label_target(**options) -> LabelTarget:
    paper = {"threshold": 0.968, "weigh": ShareOfBatch(), "of_regenerated": False, "ignore_top": 0, "ignore_bottom": 0}
    return LabelTarget(**paper | options)


@pytest.mark.parametrize(
    "weigh, expected",
    [
        (ShareOfBatch(), [[[3 / 8] * 2] * 2] * 2),
        (ShareOfImage(), [[[2 / 4] * 2] * 2, [[1 / 4] * 2] * 2]),
        (PerPixel(), [[[1, 0], [1, 0]], [[0, 0], [0, 1]]]),
    ],
)
def test_weight_of_the_pseudo_label(weigh, expected):
    pseudo = label_target(weigh=weigh)(belief(CONFIDENCES), REAL)
    assert torch.equal(pseudo.weight, torch.tensor(expected))
    assert pseudo.label.eq(1).sum() == 6  # argmax of z-hat, not of z (the two ties go to class 0)
    assert pseudo.coverage.item() == 3 / 8


def test_rows_at_top_and_bottom_weigh_nothing_but_count_in_the_share():
    pseudo = label_target(ignore_top=256)(belief(CONFIDENCES), REAL)
    assert torch.equal(pseudo.weight[:, 0], torch.zeros(2, 2))
    assert torch.equal(pseudo.weight[:, 1], torch.full((2, 2), 3 / 8))
    assert pseudo.used[:, 1].all()
    assert not pseudo.used[:, 0].any()


def test_literal_reading_lets_no_pixel_pass_an_uninformative_bank():
    z = torch.tensor([0.99, 0.01]).view(1, 2, 1, 1)
    smoothed = 0.9 * z + 0.1 / 2  # phi = 0.9 and a uniform bank
    seen = Belief(semantic=smoothed, z=z, terms=())
    assert label_target(of_regenerated=False)(seen, REAL[:1, :1, :1]).coverage == 1
    assert label_target(of_regenerated=True)(seen, REAL[:1, :1, :1]).coverage == 0


@pytest.mark.parametrize("of_regenerated", [False, True])
@pytest.mark.parametrize(
    "weigh, expected",
    [
        (ShareOfBatch(), [[[1 / 5] * 2, [0, 0]], [[1 / 5, 0], [1 / 5] * 2]]),
        (ShareOfImage(), [[[1 / 2] * 2, [0, 0]], [[0, 0], [0, 0]]]),
        (PerPixel(), [[[1, 0], [0, 0]], [[0, 0], [0, 0]]]),
    ],
)
def test_padding_weighs_nothing_and_counts_in_no_share(weigh, expected, of_regenerated):
    """However sure the teacher is of it: two of the confident pixels, and one that is not, are padding here."""
    real = torch.tensor([[[True, True], [False, False]], [[True, False], [True, True]]])
    confidences = [[[0.99, 0.9], [0.97, 0.5]], [[0.5, 0.99], [0.7, 0.6]]]
    seen = belief(confidences)
    pseudo = label_target(weigh=weigh, of_regenerated=of_regenerated)(seen, real)
    torch.testing.assert_close(pseudo.weight, torch.tensor(expected, dtype=torch.float32))
    assert torch.equal(pseudo.used, real)
    assert pseudo.coverage.item() == pytest.approx(1 / 5)

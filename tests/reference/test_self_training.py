"""What the record of six iterations determines: the start, the learning rates, the teacher and the strong views.

Not compared: the losses, and the weights and averages of batch norm after six steps. They depend on what DAFormer's
student dropped (stochastic depth, dropout), which neither the record nor any name that we know tells. The teacher drops
nothing; it is compared while it still is the start, for the first step's learning rate is next to nothing.
"""

from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import engine
from .named import normal, record, sketch, uniform, weight

RECORD = record("train")
ITERATIONS = len(RECORD["losses"])
B, H, W = RECORD["mixed/0/label"].shape
CLASSES = len(engine.CITYSCAPES_CLASSES)
CLASSIFIER, SCALE = "decode_head.conv_seg.weight", 6  # drawn larger, so that the teacher is sure of some pixels
UNMOVED = [i for i in range(ITERATIONS) if RECORD["lrs"][:i].sum() < 1e-9]  # iterations whose teacher is the start


@cache
def start() -> nn.Module:
    """The student before the first step."""
    student = engine.segmentor(engine.SHORT).double()
    for key, value in student.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.from_numpy(start_of(key, value.shape)))
    return student


def start_of(key: str, shape: tuple[int, ...]) -> np.ndarray:
    return weight(key, shape) * (SCALE if key == CLASSIFIER else 1)


def picture(name: str) -> Tensor:
    """A smooth picture with noise, [B, 3, H, W] normalised."""
    coarse = torch.from_numpy(uniform(name, (B, 3, 10, 10)))
    smooth = F.interpolate(coarse, (H, W), mode="bicubic", align_corners=True)
    noise = 0.05 * torch.from_numpy(normal(f"{name}/n", (B, 3, H, W)))
    return engine.normalised(((smooth + noise).clamp(0, 1) * 255).round())


def source_label(iteration: int) -> Tensor:
    """Blocks of one class, and six boxes on them, each of another class or ignored. [B, H, W] int64."""
    rng = np.random.RandomState(1000 + iteration)
    label = np.kron(rng.randint(0, CLASSES, (B, 4, 4)), np.ones((32, 32), dtype=np.int64))
    for b in range(B):
        for _ in range(6):
            y, x, h, w = *rng.randint(0, 110, 2), *rng.randint(4, 30, 2)
            c = rng.randint(0, CLASSES)
            label[b, y : y + h, x : x + w] = c if rng.randint(0, 2) else 255
    return torch.from_numpy(label)


@cache
def batch(iteration: int):
    return engine.batch(picture(f"src/{iteration}"), source_label(iteration), picture(f"tgt/{iteration}"))


def mixed(iteration: int, what: str) -> Tensor:
    return torch.from_numpy(RECORD[f"mixed/{iteration}/{what}"])


@cache
def teacher_and_labels():
    """The teacher after it saw the six targets, and what it made of each."""
    teacher = engine.as_teacher(start())
    return teacher, [engine.pseudo_label(teacher, batch(iteration)) for iteration in range(ITERATIONS)]


def strong_view(iteration: int, order: tuple[int, ...]):
    drawn = engine.Drawn(
        chances=RECORD[f"u/{iteration}"],
        pasted_BHW=mixed(iteration, "weight") == 1,
        factor_B4=torch.from_numpy(np.stack([uniform(f"jit/{iteration}/{b}", (4,)) for b in range(B)])),
        order_B4=torch.tensor([order] * B),
        sigma_B=torch.from_numpy(np.concatenate([uniform(f"sig/{iteration}/{b}", (1,)) for b in range(B)])),
    )
    _, pseudo = teacher_and_labels()
    return engine.strong_view(batch(iteration), pseudo[iteration], drawn)


def test_parameters_have_daformers_names_and_shapes():
    ours = dict(start().named_parameters())
    assert sorted(ours) == sorted(RECORD["student.names"]) == sorted(RECORD["teacher.names"])
    # A product with a direction is linear: that of the end less that of the way is that of the start.
    began = RECORD["student.params"][:, 1] - RECORD["moved"][:, 1]
    products = [sketch(name, ours[name].detach().numpy())[1] for name in RECORD["student.names"]]
    assert np.abs(products - began).max() < 1e-9


def test_learning_rates():
    rates = [engine.learning_rate(start(), step, engine.SHORT)["encoder"] for step in range(ITERATIONS)]
    assert rates == pytest.approx(RECORD["lrs"].tolist(), rel=1e-12)


@pytest.mark.parametrize("iteration", UNMOVED)
def test_every_pseudo_label_and_what_they_are_worth(iteration):
    view = strong_view(iteration, order=(0, 1, 2, 3))
    assert not view.pasted.all()
    assert torch.equal(view.label, mixed(iteration, "label").long())
    assert torch.equal(view.weight.float(), mixed(iteration, "weight"))


@pytest.mark.parametrize("iteration", range(ITERATIONS))
def test_the_same_draws_give_the_same_strong_view(iteration):
    # The order of the four colours is an image's own and was not recorded: one of all must do.
    views = [strong_view(iteration, order) for order in permutations(range(4))]
    seen = torch.stack([view.image[..., ::4, ::4] for view in views])
    assert (seen - mixed(iteration, "image")).abs().amax((2, 3, 4)).amin(0).max() < 1e-6

    label, weight = mixed(iteration, "label"), mixed(iteration, "weight")
    assert torch.equal(views[0].pasted, weight == 1)
    assert torch.equal(views[0].label[weight == 1], label[weight == 1].long())
    assert torch.equal(views[0].weight == 0, weight == 0)  # at the top and bottom


def test_the_teacher_averages_its_own_statistics():
    teacher, _ = teacher_and_labels()
    ours = dict(teacher.named_buffers())
    for name, theirs in zip(RECORD["teacher.buffer_names"], RECORD["teacher.buffers"], strict=True):
        norm, product, total = sketch(name, ours[name].numpy())
        if name.endswith("num_batches_tracked"):
            assert [norm, product, total] == theirs.tolist()
        else:  # theirs moved a little from the third iteration on
            assert [norm, total] == pytest.approx(theirs[[0, 2]], rel=0.01)


def test_the_record_shows_jitter_and_blur_done_and_left_out_beside_their_thresholds():
    jitters, blurs = np.stack([RECORD[f"u/{iteration}"] for iteration in range(ITERATIONS)]).T
    for drawn, threshold in ((jitters, 0.2), (blurs, 0.5)):
        assert 0 < (drawn > threshold).sum() < ITERATIONS
        assert np.abs(drawn - threshold).min() < 0.02
    assert len(UNMOVED) == 2

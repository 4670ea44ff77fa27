"""Parameter groups and the learning rate over the run."""

import pytest
import torch
from torch import nn

from dida.models.segmentor import Segmentor
from dida.optim import ClipGradient, build_optimizer, build_schedule, gradient_norm, rates_of_now


def test_groups_of_mit_b5_are_the_baselines():
    with torch.device("meta"):
        model = Segmentor("mit_b5")
    groups = {g["name"]: g for g in build_optimizer(model, lr=6e-5, head_lr_factor=10, weight_decay=0.01).param_groups}
    size = {name: sum(p.numel() for p in g["params"]) for name, g in groups.items()}
    assert size == {"encoder": 81_443_008 - 92_800, "norm": 92_800, "head": 3_712_275}
    assert len(groups["norm"]["params"]) == 322
    assert [groups[n]["weight_decay"] for n in ("encoder", "norm", "head")] == [0.01, 0.0, 0.01]
    assert [groups[n]["lr"] for n in ("encoder", "norm", "head")] == pytest.approx([6e-5, 6e-5, 6e-4])


@pytest.mark.parametrize("backbone", ["resnet18", "convnext_atto"])
def test_norms_of_other_backbones_do_not_decay_whatever_they_are_called(backbone):
    with torch.device("meta"):
        model = Segmentor(backbone)
    norm = build_optimizer(model, lr=1.0, head_lr_factor=1, weight_decay=0.01).param_groups[1]
    decayed = {id(p) for p in model.backbone.parameters()} - {id(p) for p in norm["params"]}
    layers = [m for m in model.backbone.modules() if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm))]
    assert len(norm["params"]) == 2 * len(layers) > 20
    assert not decayed & {id(m.weight) for m in layers}


@pytest.mark.parametrize(
    "i, rate",
    [
        (0, 6e-5 * 1e-6),
        (49, 1.958e-6),  # what the baseline's log shows at "iter 50"
        (1499, 6e-5 * (1 - 1499 / 40000) * (1 - (1 - 1499 / 1500) * (1 - 1e-6))),
        (1500, 6e-5 * (1 - 1500 / 40000)),
        (39_999, 6e-5 / 40_000),
    ],
)
def test_rate_rises_and_decays_as_the_baselines(i, rate):
    optimizer = build_optimizer(nn.Linear(1, 1), lr=6e-5, head_lr_factor=10, weight_decay=0.01)
    schedule = build_schedule(optimizer, steps=40_000, warmup=1500)
    assert schedule.base_lrs[0] * schedule.lr_lambdas[0](i) == pytest.approx(rate, rel=2e-4)


def test_no_warm_up_starts_at_the_full_rate():
    optimizer = build_optimizer(nn.Linear(1, 1), lr=1.0, head_lr_factor=1, weight_decay=0.01)
    assert build_schedule(optimizer, steps=10, warmup=0).get_last_lr()[0] == 1.0


def test_an_extended_run_has_the_rates_of_the_longer_one():
    def made(steps: int):
        optimizer = build_optimizer(Segmentor("mit_b0", 3, 8), lr=1.0, head_lr_factor=10, weight_decay=0.0)
        return optimizer, build_schedule(optimizer, steps=steps, warmup=1)

    optimizer, schedule = made(4)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0, 0]
    saved, at = optimizer.state_dict(), schedule.state_dict()
    rates_of_now(optimizer, schedule)
    assert optimizer.state_dict() == saved  # of a run that only goes on, they are what they were

    optimizer, schedule = made(8)
    optimizer.load_state_dict(saved)
    schedule.load_state_dict(at)
    rates_of_now(optimizer, schedule)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5, 5.0]


def with_gradient(scale: float = 1.0) -> nn.Module:
    """Norm 5 `scale`, over two layers; a third has no gradient."""
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(3, 1), nn.Linear(1, 1)])
    model[0].weight.grad = scale * torch.tensor([[1.0, 2.0], [2.0, 0.0]])
    model[1].weight.grad = scale * torch.tensor([[4.0, 0.0, 0.0]])
    return model


@pytest.mark.parametrize("limit", [0.1, 4.999, 5.001, 1e6])
def test_a_gradient_that_is_too_long_is_scaled_as_by_pytorch(limit):
    ours, theirs = with_gradient(), with_gradient()
    assert ClipGradient(limit)(ours) == nn.utils.clip_grad_norm_(theirs.parameters(), limit) == 5
    assert float(gradient_norm(ours)) == pytest.approx(min(limit, 5), rel=1e-6)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (own.grad is None) == (other.grad is None)
        assert own.grad is None or torch.equal(own.grad, other.grad)


@pytest.mark.parametrize("scale", [torch.nan, torch.inf])
def test_clipping_hides_no_gradient_that_is_not_finite(scale):
    assert not ClipGradient(1.0)(with_gradient(scale)).isfinite()

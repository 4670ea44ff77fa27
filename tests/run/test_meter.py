"""The meter: one transfer to the host for many steps, and every number that is not one is found."""

import json

import pytest
import torch

from dida.batch import Belief, PseudoLabel, Target, Trace
from dida.data.loader import Ids
from dida.errors import NonFinite
from dida.run.meter import Meter

FULL = torch.tensor(1.0)


def ids(*source: int) -> Ids:
    return Ids(torch.tensor(source), torch.tensor(source) + 100)


def target(coverage: float) -> Target:
    x = torch.zeros(1, 1, 2, 2)
    return Target(Belief(x, x, ()), PseudoLabel(x, x, x, torch.tensor(coverage)))


def trace(coverage: float | None = None, gradient: float = 1.0, weights: float = 1.0, **losses: float) -> Trace:
    tensors = {name: torch.tensor(value) for name, value in losses.items()}
    norms = torch.tensor(gradient), torch.tensor(weights)
    return Trace(tensors, None if coverage is None else target(coverage), (), *norms)


def test_the_meter_averages_over_its_steps(tmp_path):
    meter = Meter(tmp_path)
    meter.add(1, trace(0.5, source=1.0, target=4.0), ids(0), waited=0.0)
    meter.add(2, trace(0.25, source=2.0, target=2.0), ids(1), waited=0.0)
    scalars = meter.flush(lr=[1e-4, 1e-4, 1e-3], bank_fill=torch.tensor(0.75))
    assert scalars["loss/source"] == 1.5
    assert scalars["loss/target"] == 3.0
    assert scalars["pseudo_coverage"] == 0.375
    assert scalars["bank_fill"] == 0.75
    assert (scalars["lr"], scalars["lr_head"]) == (1e-4, 1e-3)
    assert scalars["steps_per_second"] > 0
    assert scalars["memory_gib"] > 0.01
    json.dumps(scalars, allow_nan=False)

    meter.add(3, trace(1.0, source=7.0, target=7.0), ids(2), waited=1e6)
    scalars = meter.flush(lr=[1e-4], bank_fill=FULL)
    assert scalars["loss/source"] == 7.0  # of this interval alone
    assert scalars["data_wait"] == 1.0


def test_the_meter_keeps_losses_on_the_device_until_it_is_asked(tmp_path, monkeypatch):
    def read(*args):
        raise AssertionError("the host read a tensor")

    meter = Meter(tmp_path)
    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "__float__", "__bool__", "cpu", "numpy"):
            patched.setattr(torch.Tensor, name, read)
        for step in range(3):
            meter.add(step, trace(0.5, source=1.0), ids(step), waited=0.0)
    transfers = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: transfers.append(x.shape) or tolist(x))
    meter.flush(lr=[0.1], bank_fill=FULL)
    assert transfers == [(3 * 4 + 1,)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_samples(tmp_path, value):
    meter = Meter(tmp_path)
    meter.add(16, trace(0.5, source=1.0, instance=2.0), ids(4, 5), waited=0.0)
    meter.add(17, trace(0.5, source=1.0, instance=value), ids(6, 7), waited=0.0)
    meter.add(18, trace(0.5, source=value, instance=value), ids(8, 9), waited=0.0)
    with pytest.raises(NonFinite, match=r"loss instance not finite at step 17.*nonfinite_step_17\.json"):
        meter.flush(lr=[0.1], bank_fill=FULL)
    found = json.loads((tmp_path / "nonfinite_step_17.json").read_text())
    assert found["samples"] == {"source": [6, 7], "target": [106, 107]}
    assert float(found["values"]["loss/source"]) == 1.0
    assert found["values"]["loss/instance"] == str(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "bad, message",
    [
        ({"gradient"}, "gradient not finite at step 17, although its losses are"),
        ({"weights"}, r"weights not finite at step 17, after an update that was too large for them, see --lr"),
        ({"gradient", "weights"}, "gradient not finite at step 17"),
        ({"source", "gradient", "weights"}, "loss source not finite at step 17"),
    ],
)
def test_what_failed_first_is_at_fault(tmp_path, bad, message, value):
    """The weights that an update spoils are its fault, and not that of the samples of the next step."""
    meter = Meter(tmp_path)
    meter.add(16, trace(source=1.0), ids(4, 5), waited=0.0)
    meter.add(17, trace(**{"source": 1.0} | dict.fromkeys(bad, value)), ids(6, 7), waited=0.0)
    meter.add(18, trace(source=value, gradient=value, weights=value), ids(8, 9), waited=0.0)
    with pytest.raises(NonFinite, match=message):
        meter.flush(lr=[0.1], bank_fill=FULL)
    assert [path.name for path in tmp_path.iterdir()] == ["nonfinite_step_17.json"]


def test_the_norms_are_in_the_log(tmp_path):
    meter = Meter(tmp_path)
    for step in (1, 2):
        meter.add(step, trace(source=1.0, gradient=float(step), weights=10.0 * step), ids(0), waited=0.0)
    assert len(meter) == 2
    scalars = meter.flush(lr=[0.1], bank_fill=FULL)
    assert (scalars["gradient_norm"], scalars["weight_norm"]) == (1.5, 15.0)
    assert len(meter) == 0


def test_flushing_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no step"):
        Meter(tmp_path).flush(lr=[0.1], bank_fill=FULL)

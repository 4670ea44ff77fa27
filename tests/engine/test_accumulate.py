"""A batch in parts, one after another, is the batch: losses, gradient, draws, in every method; batch norm apart."""

from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

import tests.machine.several  # noqa: F401  registers mit_tiny
from dida.assemble import assemble
from dida.batch import Prediction
from dida.machine.distributed import ALONE
from dida.method import feature_distance, views
from dida.models.in_parts import InParts, Turns, unremembered
from dida.step import train_step
from tests.engine.scenes import batch, build, tiny
from tests.machine.test_several_processes import METHODS

IMAGES, PARTS, STEPS = 4, 2, 4


@pytest.fixture(autouse=True)
def _in_double(monkeypatch):
    monkeypatch.setattr(feature_distance, "MIN_SHARE", 0.2)  # a crop is one cell of the deepest stage
    torch.set_default_dtype(torch.float64)
    views._normalisation.cache_clear()
    yield
    torch.set_default_dtype(torch.float32)
    views._normalisation.cache_clear()


def ran(accumulate: int, *, batch_norm: bool = False, **options) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Losses of some steps and what they left."""
    config = tiny(
        backbone="mit_tiny", crop=32, batch_size=IMAGES, feature_weight=0.005, drop_path=0.3, accumulate=accumulate,
        **{"bank_start": 1, "bank_fill": 1, **options},
    )  # fmt: skip
    state, method = build(config, imagenet=True)
    for network in (state.student, state.teacher):
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and not batch_norm:
                module.eval()
    losses = []
    for number in range(STEPS):
        whole = batch(number, size=32, images=IMAGES)
        images = (whole.source.image.double(), whole.target.double())
        whole = whole._replace(source=whole.source._replace(image=images[0]), target=images[1])
        losses.append({name: float(loss) for name, loss in train_step(state, whole, method).losses.items()})
    return losses, {name: tensor.clone() for name, tensor in state.tensors()}


@pytest.mark.parametrize("method", METHODS)
def test_parts_are_the_batch(method):
    options = METHODS[method]
    (one, left), (parts, their) = (ran(n, **options) for n in (1, PARTS))
    for expected, found in zip(one, parts, strict=True):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    for name, tensor in left.items():
        torch.testing.assert_close(their[name], tensor, rtol=1e-7, atol=1e-10, msg=name)
    terms = {"source": 1, "feature": 1, "target": method != "source", "instance": "dida" in method}
    for term, there in terms.items():
        assert any(losses.get(term, 0) > 0 for losses in one) == there, term  # or nothing was compared


def test_batch_norm_sees_a_part_and_remembers_it_once():
    losses, left = ran(PARTS, batch_norm=True)
    assert losses != ran(1, batch_norm=True)[0]
    counts = {name: int(x) for name, x in left.items() if name.endswith("num_batches_tracked")}
    passes = {"student": 2, "teacher": 1}
    assert counts
    for name, count in counts.items():
        assert count == passes[name.split(".")[0]] * PARTS * STEPS


class Watched(nn.Module):
    """A network that says how many images it saw at once, and keeps a draw of each."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.hide, self.norm = nn.Dropout2d(0.5), nn.BatchNorm2d(3)
        self.seen: list[int] = []

    def forward(self, image: Tensor) -> Prediction:
        self.seen.append(len(image))
        x = self.hide(image) * self.weight
        return Prediction(x, self.norm(x), x)


def test_a_part_is_seen_alone_and_its_maps_are_made_again_in_backward():
    torch.manual_seed(0)
    network, image = Watched(), torch.randn(6, 3, 4, 4)
    parts = InParts(network, 3, ALONE)
    torch.manual_seed(1)
    out = parts(image)
    ahead = torch.rand(3)
    assert network.seen == [2, 2, 2]
    means = network.norm.running_mean.clone()
    out.logits.square().sum().backward()
    assert network.seen == [2] * 6
    assert torch.equal(network.norm.running_mean, means)
    assert network.norm.num_batches_tracked == 3

    torch.manual_seed(1)
    hidden = nn.Dropout2d(0.5)(torch.ones(6, 3, 1, 1))
    assert torch.equal(out.logits, image * hidden)  # drawn for the batch as for one part
    assert torch.equal(torch.rand(3), ahead)  # and once
    assert network.weight.grad == pytest.approx(float(2 * (image * hidden).square().sum()))


def test_without_a_gradient_nothing_is_made_again():
    network = Watched()
    with torch.no_grad():
        InParts(network, 2, ALONE)(torch.randn(4, 3, 4, 4))
    assert network.seen == [2, 2]


def test_turns_are_those_of_all_processes():
    class Second(type(ALONE)):
        rank, size = 1, 2

    turns = Turns(Second(), 3)
    taken = []
    for part in range(3):
        turns.take(part)
        taken.append(turns.mine(torch.arange(12)).tolist())
    assert taken == [[6, 7], [8, 9], [10, 11]]


def test_averages_come_back_behind_an_error():
    norm = nn.BatchNorm2d(2)
    with suppress(ZeroDivisionError), unremembered(norm):
        norm(torch.randn(2, 2, 3, 3))
        _ = 1 / 0
    assert norm.num_batches_tracked == 0
    assert not norm.running_mean.any()


def test_a_batch_that_has_no_such_parts_is_refused():
    config = tiny(batch_size=4, accumulate=3)
    with pytest.raises(ValueError, match="--batch-size 4: the 3 parts of --accumulate share it equally"):
        assemble(config)

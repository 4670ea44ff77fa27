"""A world of one changes nothing; in a group every process has its part of the whole, and the same sums."""

import random

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from dida.data.loader import Share
from dida.errors import UserError
from dida.machine.distributed import ALONE, Group, joined, place, processes
from dida.method.teacher import ShareOfBatch
from dida.method.views import StepRandom
from dida.models.stochastic_depth import StochasticDepth
from dida.models.whole_batch import over_all_processes
from tests.processes import Processes

N = 3
IMAGES = torch.arange(6.0).view(6, 1)  # two a process


def test_alone_everything_is_what_it_was():
    x = torch.randn(2, 3)
    for same in (ALONE.mine, ALONE.gather, ALONE.sum, ALONE.mean):
        assert same(x) is x or torch.equal(same(x), x)
    assert ALONE.pooled(x, lambda: 1 / 0) is x  # nobody asks for the weight
    assert ALONE.values("a") == ["a"]
    assert (ALONE.rank, ALONE.size, ALONE.leads) == (0, 1, True)
    with ALONE.first_before_others(), pytest.raises(ValueError, match="mine"), ALONE.together():
        raise ValueError("mine")


def test_without_torchrun_there_is_no_group():
    assert (processes(), place()) == (1, 0)
    with joined() as world:
        assert world is ALONE
        assert not torch.distributed.is_initialized()


def at(rank: int, size: int) -> Group:
    """The group as one of its processes sees it, for what needs no other one."""
    group = Group.__new__(Group)
    group.rank, group.size = rank, size
    return group


@pytest.mark.parametrize("text", ["abc", "", "0", "-1", "²", "1.5"])
def test_what_the_environment_says_wrongly_of_torchrun_is_named(monkeypatch, text):
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(ValueError, match=f"^WORLD_SIZE='{text}' in the environment: expected what torchrun sets"):
        processes()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_samples_of_a_step_are_shared_in_the_order_of_ranks(size):
    worlds = [ALONE] if size == 1 else [at(rank, size) for rank in range(size)]
    shares = [list(Share(range(8, 24), 8, world)) for world in worlds]
    own = 8 // size
    for step in (0, 1):
        together = [number for share in shares for number in share[step * own : (step + 1) * own]]
        assert together == list(range(8 + 8 * step, 16 + 8 * step))
    assert [len(share) for share in shares] == [16 // size] * size


@pytest.mark.parametrize("images", [0, 1])
def test_a_draw_is_a_part_of_that_for_all_images(images):
    shape = [3, 3]
    shape[images] = 2
    whole, *parts = (
        StepRandom(random.Random(0), torch.Generator().manual_seed(1), world).rand(
            *(shape if world is not ALONE else [N * s if i == images else s for i, s in enumerate(shape)]),
            device=torch.device("cpu"),
            images=images,
        )
        for world in (ALONE, *(at(rank, N) for rank in range(N)))
    )
    assert torch.equal(torch.cat(parts, images), whole)


class Net(nn.Module):
    """What over_all_processes knows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.parts = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), DropPath(0.5), nn.Dropout2d(0.5))
        self.depth = StochasticDepth([0.5], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x) * self.depth(x)[0, 0][..., None]


def pictures() -> Tensor:
    return torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 5


def loss_of(network: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(9)
    return (network(x) * x.cos()).square().mean()


def in_a_group() -> dict[str, object]:
    with joined() as world:
        part = world.mine(IMAGES)
        found: dict[str, object] = {"part": part, "gathered": world.gather(part), "sum": world.sum(part)}
        found["flags"] = world.gather(part > 2)
        found["values"] = world.values(f"of {world.rank}")
        found["pooled"] = world.mean(
            world.pooled(part.mean() if world.rank else part.sum() * 0, lambda: torch.tensor(2 * world.rank))
        )
        sure = (torch.arange(4) < world.rank).expand(2, 3, 4)  # 0, 1 and 2 of 4 pixels in a row
        found["confident"] = ShareOfBatch(world)(sure, torch.ones_like(sure))
        found["none"] = world.pooled(torch.tensor(0.0), lambda: torch.tensor(0))

        network = Net().double()
        keys = list(network.state_dict())
        over_all_processes(network, world)
        assert list(network.state_dict()) == keys
        loss = loss_of(network, world.mine(pictures()))
        loss.backward()
        found["loss"] = world.mean(loss.detach())
        found["gradients"] = [world.mean(p.grad) for p in network.parameters()]
        found["state"] = {name: tensor.clone() for name, tensor in network.state_dict().items()}

        tensors = {"a": torch.zeros(3), "b": torch.arange(3)}
        world.require_same(iter(tensors.items()), "at first")
        found["errors"] = errors = []
        for changed in (torch.tensor([0, 1, 3]), torch.tensor([1, 0, 2])):  # another bit, another place
            try:
                world.require_same(
                    iter({"a": torch.zeros(3), "b": changed if world.rank == 1 else tensors["b"]}.items()), "then"
                )
            except UserError as error:
                errors.append(str(error))
        try:
            with world.together():
                if world.rank == 1:
                    raise KeyError("one")
        except KeyError as error:
            errors.append(str(error) + str(error.__cause__)[:13] * (world.rank != 1))
        return found


def test_a_group_has_parts_sums_norms_and_draws_of_the_whole(tmp_path):
    results = Processes(N, tmp_path, in_a_group).results
    network = Net().double()
    loss = loss_of(network, pictures())
    loss.backward()
    for rank, found in enumerate(results):
        assert torch.equal(found["part"], IMAGES[2 * rank : 2 * rank + 2])
        assert torch.equal(found["gathered"], IMAGES)
        assert torch.equal(found["flags"], IMAGES > 2)
        assert found["sum"].flatten().tolist() == [6, 9]
        assert found["values"] == ["of 0", "of 1", "of 2"]
        assert float(found["pooled"]) == pytest.approx((2 * 2.5 + 4 * 4.5) / 6)  # pixels weigh, processes do not
        assert found["confident"].unique().tolist() == [0.25]
        assert float(found["none"]) == 0
        torch.testing.assert_close(found["loss"], loss.detach(), rtol=1e-12, atol=0)
        for gradient, parameter in zip(found["gradients"], network.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-12)
        for name, expected in network.state_dict().items():
            torch.testing.assert_close(found["state"][name], expected, rtol=1e-12, atol=0)
        *differ, other = found["errors"]
        assert differ == ["b of process 0 and of 1 differ then"] * 2
        assert other == "'one'" + "in process 1:" * (rank != 1)

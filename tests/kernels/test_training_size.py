"""The kernels at the size of training, held against the equation in a corner of it that the equation can afford.

Two crops of 512 x 512 are thousands of programs, and with 100 000 slots more elements than 32 bits count; the small
scenes of test_agreement.py have neither. The op runs on all of the input. The truth is the equation in float64 on the
last rows, or on the last nodes and the pixels between them: offsets are largest there, and the image ends.

An output of [N, K] takes as many slots as the card's memory allows. 24 GB are enough to count beyond 32 bits.
"""

import fcntl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import dida_kernels
from tests.cases import GRADIENT, MAIN, Call, Scene, call, resized
from tests.kernels.agreement import compare, device_of, direction, truth_of

ROWS = 40
NODES = 4  # to a side of the corner
BY_ROWS = ("bank_similarity", "scatter", "gather")  # every row is computed alone
SMALL = resized(MAIN, C=5, D=16, K=20, hw=(6, 7), HW=(24, 28))  # for machines without a GPU
LARGE = [
    (op, slots, dtype)
    for op in dida_kernels.OPS
    for slots in (300, 100_000)
    for dtype in (torch.float32, torch.bfloat16)
    if (slots == 300 or op in ("instance_loss", "class_similarity", "bank_update"))
    and (op != "boundary_mask" or dtype == torch.float32)  # it sees integers only
] + [("bank_similarity", 100_000, torch.float32)]  # 13 GB of output, and as many of gradient
SHARE = 0.75  # of a card's memory, for outputs and their gradients; what is left is for everything else


class Corner(NamedTuple):
    """A call, the part of it that is checked, and where that part lies in outputs and gradients."""

    whole: Call
    part: Call
    of_output: Callable[[Tensor], Tensor]  # of the whole's
    of_part: Callable[[Tensor], Tensor]  # of the part's
    of_gradient: Callable[[Tensor], Tensor]  # of the whole's; the part's is all of it


def corner(op: str, made: Call) -> Corner:
    args, options = made

    def keep(x: Tensor) -> Tensor:
        return x

    def rows(x: Tensor) -> Tensor:
        return x[-ROWS:]

    if op in BY_ROWS:
        return Corner(made, Call((rows(args[0]), *args[1:]), options), rows, keep, rows)
    if op == "boundary_mask":
        side = NODES * 4

        def inside(x: Tensor) -> Tensor:
            return x[:, 1 - side :, 1 - side :]  # without the first row and column: their windows were cut

        return Corner(made, Call((args[0][:, -side:, -side:],), options), inside, inside, keep)
    if op == "bank_update":
        return Corner(made, made, keep, keep, keep)

    def nodes(x: Tensor) -> Tensor:
        return x[..., -NODES:, -NODES:]

    h, H = args[0].shape[-2], options["size"][0] if op == "class_similarity" else args[2].shape[-2]
    side = NODES * (H // h)

    def between(x: Tensor) -> Tensor:
        """The pixels whose four nodes all lie in the corner."""
        inner = side - H // h
        return x[..., -inner:, -inner:]

    if op == "class_similarity":
        part = Call((nodes(args[0]), *args[1:]), options | {"size": (side, side)})
        return Corner(made, part, between, between, keep)
    weight = torch.zeros_like(args[3])
    between(weight).copy_(between(args[3]))
    whole = Call((*args[:3], weight, *args[4:]), options)
    z, weight = (x[..., -side:, -side:] for x in (args[2], weight))
    return Corner(whole, Call((*map(nodes, args[:2]), z, weight, *args[4:]), options), keep, keep, nodes)


def agrees_in_the_corner(op: str, name: str, scene: Scene, dtype: torch.dtype) -> None:
    device, gradient = device_of(name), GRADIENT.get(op)
    found = corner(op, call(op, scene, dtype=dtype, device=device))
    operation = dida_kernels.OPS[op]
    with dida_kernels.backend(name):
        if gradient is None:
            output, got_gradient = operation(*found.whole.args, **found.whole.options), None
        else:
            leaf = found.whole.args[gradient].requires_grad_()
            output = operation(*found.whole.args, **found.whole.options)
            towards = torch.zeros_like(output)
            part = found.of_output(towards)
            part.copy_(direction(part.shape))
            (got_gradient,) = torch.autograd.grad(output, leaf, towards)
    output = found.of_output(output.detach()).cpu()

    part: Any = Call(tuple(x.detach() if isinstance(x, Tensor) else x for x in found.part.args), found.part.options)
    corner_gradient = None if gradient is None else found.of_gradient(got_gradient).cpu()
    compare(truth_of(op, name, part, found.of_part), output, corner_gradient)
    if gradient is not None:  # nothing else was asked for, so nothing else has a gradient
        assert got_gradient.count_nonzero() == corner_gradient.count_nonzero()


def plain(op: str) -> str:
    """The faster of the backends in plain PyTorch."""
    return "chunked" if "chunked" in dida_kernels.OPS[op].backends else "equation"


@pytest.mark.parametrize("op", dida_kernels.OPS)
def test_the_corner_of_a_small_scene(op):
    """The checker itself, on what runs on a CPU."""
    agrees_in_the_corner(op, plain(op), SMALL, torch.float32)


@pytest.mark.parametrize("op", dida_kernels.OPS)
def test_a_wrong_corner_is_seen(op, monkeypatch):
    operation = dida_kernels.OPS[op]
    right = operation.backends[plain(op)]

    def wrong(*args, **options):
        out = right.run(*args, **options)
        return ~out if out.dtype == torch.bool else out * 1.001

    monkeypatch.setitem(operation.backends, "cpp", right._replace(run=wrong))
    with pytest.raises(AssertionError, match="off by"):
        agrees_in_the_corner(op, "cpp", SMALL, torch.float32)


def slots_that_fit(op: str, slots: int, memory: int) -> int:
    """At most `slots`, so many that [N, K] float32 and its gradient fit into SHARE of `memory` bytes."""
    if op != "bank_similarity":
        return slots  # of the others none makes anything that grows with N and K, or only for few slots
    N = MAIN.B * MAIN.hw[0] * MAIN.hw[1]
    return min(slots, int(SHARE * memory / (2 * 4 * N)))


def test_a_smaller_card_takes_fewer_slots():
    N = MAIN.B * MAIN.hw[0] * MAIN.hw[1]
    small = slots_that_fit("bank_similarity", 100_000, 24 * 2**30)
    assert 2 * 4 * N * small < 24e9
    assert N * small > 2**31  # it still counts beyond 32 bits
    assert slots_that_fit("bank_similarity", 100_000, 79 * 2**30) == 100_000
    assert slots_that_fit("instance_loss", 100_000, 8 * 2**30) == 100_000


@pytest.fixture
def card_to_itself() -> Iterator[None]:
    """One of the largest tests at a time, whichever processes run them."""
    with Path(tempfile.gettempdir(), "dida-largest-tests.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        torch.cuda.empty_cache()


@pytest.mark.gpu
@pytest.mark.usefixtures("card_to_itself")
@pytest.mark.parametrize("op, slots, dtype", LARGE, ids=str)
def test_the_corner_at_the_size_of_training(op, slots, dtype):
    name = "cuda" if op == "bank_update" else "triton"
    slots = slots_that_fit(op, slots, torch.cuda.get_device_properties(0).total_memory)
    agrees_in_the_corner(op, name, resized(MAIN, K=slots), dtype)

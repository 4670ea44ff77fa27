"""Chunked PyTorch for the large ops: right in float64, bounded in memory, less work than the equation, compilable."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import dida_kernels
from dida_kernels.chunked import tiles
from dida_kernels.chunked.bank_update import set_sums_chunked
from dida_kernels.chunked.class_similarity import class_similarity_chunked
from dida_kernels.chunked.instance_loss import instance_loss_chunked
from tests.cases import GRADIENT, IGNORE, MAIN, SCENES, Call, call, resized
from tests.cost import cost

OPS = ("instance_loss", "class_similarity", "bank_update", "boundary_mask")
ONE_CHUNK, MANY_CHUNKS = tiles.TILE_BYTES, 16384  # bytes; the second cuts most scenes into several tiles and chunks


def forward_backward(run: Callable[..., Tensor], made: Call) -> Callable[[], tuple[Tensor, Tensor]]:
    student = made.args[0].detach().requires_grad_()

    def both() -> tuple[Tensor, Tensor]:
        loss = run(student, *made.args[1:], **made.options)
        return loss.detach(), torch.autograd.grad(loss, student)[0]

    return both


@pytest.mark.parametrize("tile_bytes", [ONE_CHUNK, MANY_CHUNKS])
@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
@pytest.mark.parametrize("op", OPS)
def test_agrees_with_the_equation_in_float64(op, scene, tile_bytes, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_BYTES", tile_bytes)
    made = call(op, scene, dtype=torch.float64)
    implementation, equation = dida_kernels.OPS[op].backends["chunked"].run, dida_kernels.OPS[op].reference
    if op in GRADIENT:
        (got, got_gradient), (truth, truth_gradient) = (
            forward_backward(run, made)() for run in (implementation, equation)
        )
        torch.testing.assert_close(got_gradient, truth_gradient, rtol=1e-10, atol=1e-13)
    else:
        got, truth = (run(*made.args, **made.options) for run in (implementation, equation))
    torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tile_bytes", [ONE_CHUNK, MANY_CHUNKS])
@pytest.mark.parametrize("name", ["ordinary", "uneven_ratio", "slotless_z"])
def test_gradient_is_the_derivative_of_the_loss(name, tile_bytes, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_BYTES", tile_bytes)
    made = call("instance_loss", resized(SCENES[name], B=1, D=3), dtype=torch.float64)
    student = made.args[0].requires_grad_()
    run = dida_kernels.OPS["instance_loss"].backends["chunked"].run
    assert torch.autograd.gradcheck(lambda x: run(x, *made.args[1:], **made.options), student)


@pytest.mark.parametrize("classes", [63, 64, 150])
def test_boundaries_of_more_classes_than_a_word_has_bits(classes):
    """The free choice always has a backend; the truth here are the windows themselves, as Python sets."""
    rng = torch.Generator().manual_seed(classes)
    label_BHW = torch.randint(classes, (2, 7, 5), generator=rng).repeat_interleave(2, 2)
    label_BHW[:, 2, 3:6] = IGNORE
    label_BHW[:, 5, :2] = classes - 1
    got_BHW = dida_kernels.boundary_mask(label_BHW, classes=classes, threshold=4)
    for b, y, x in itertools.product(*map(range, label_BHW.shape)):
        window = label_BHW[b, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        distinct = set(window.flatten().tolist()) - {IGNORE}
        assert got_BHW[b, y, x] == (len(distinct) >= 4 and label_BHW[b, y, x] != IGNORE), (b, y, x)


def test_a_second_derivative_is_refused():
    made = call("instance_loss", SCENES["ordinary"])
    student = made.args[0].requires_grad_()
    loss = dida_kernels.instance_loss(student, *made.args[1:], **made.options)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, student, create_graph=True)


def test_no_gradient_is_computed_where_none_is_wanted():
    made = call("instance_loss", SCENES["ordinary"])
    with torch.no_grad():
        assert not dida_kernels.instance_loss(*made.args, **made.options).requires_grad
    loss, gradient = instance_loss_chunked(*made.args, None, made.options["temperature"], False)
    assert loss > 0
    assert gradient.numel() == 0


def test_autocast_does_not_reach_inside():
    made = call("instance_loss", SCENES["ordinary"])
    expected = dida_kernels.instance_loss(*made.args, **made.options)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dida_kernels.instance_loss(*made.args, **made.options), expected)


# Memory above the inputs: the tile, and for the loss the gradient twice (kept in the forward, scaled in the backward).
@pytest.mark.parametrize(
    "sizes",
    [
        {"hw": (32, 32), "HW": (128, 128)},
        {"hw": (48, 24), "HW": (192, 96), "K": 50},
        {"B": 1, "hw": (8, 8), "HW": (16, 16), "K": 100_000, "D": 16},
    ],
    ids=["main_quarter", "tall", "100_000_slots"],
)
def test_memory_stays_within_the_stated_bound(sizes):
    scene = resized(MAIN, **sizes)
    norms = 2 * 4 * scene.K  # once while they are put together
    gradient = 4 * scene.B * scene.D * scene.hw[0] * scene.hw[1]
    bound = tiles.TILE_BYTES + norms + 2 * gradient + 2**20  # 1 MB: masks, weights and node values of a tile

    loss = forward_backward(dida_kernels.OPS["instance_loss"].backends["chunked"].run, call("instance_loss", scene))
    assert cost(loss).peak_memory <= bound
    made = call("class_similarity", scene)
    q_ga_bytes = 4 * scene.B * scene.C * scene.HW[0] * scene.HW[1]
    run = dida_kernels.OPS["class_similarity"].backends["chunked"].run
    belongs = 12 * scene.C * scene.K  # which slot is of which class, as int64 and as float32
    assert cost(lambda: run(*made.args, **made.options)).peak_memory <= bound - 2 * gradient + q_ga_bytes + belongs


def test_a_tenth_of_the_memory_and_less_than_half_of_the_work_of_the_equation():
    """2 x 128 x 128 pixels over a 32 x 32 grid, K = 300, C = 19, forward and backward: a fifth of the time."""
    made = call("instance_loss", resized(MAIN, hw=(32, 32), HW=(128, 128)))
    ours = cost(forward_backward(dida_kernels.OPS["instance_loss"].backends["chunked"].run, made))
    equation = cost(forward_backward(dida_kernels.instance_loss.reference, made))
    assert 10 * ours.peak_memory <= equation.peak_memory
    assert 4 * ours.flops <= equation.flops
    assert 2 * ours.allocated <= equation.allocated


def test_few_weighted_pixels_cost_little():
    """Products with the bank happen at the nodes and are as many; all else is of the pixels that count."""
    made = call("instance_loss", resized(MAIN, hw=(32, 32), HW=(128, 128)))
    student_BDhw, teacher_BDhw, z_BCHW, weight_BHW, *bank = made.args
    few_BHW = weight_BHW * (torch.rand(weight_BHW.shape, generator=torch.Generator().manual_seed(0)) < 0.01)
    run = dida_kernels.OPS["instance_loss"].backends["chunked"].run
    every, few = (
        cost(forward_backward(run, Call((student_BDhw, teacher_BDhw, z_BCHW, w_BHW, *bank), made.options)))
        for w_BHW in (weight_BHW, few_BHW)
    )
    assert 3 * few.allocated <= every.allocated
    assert 2 * few.flops <= every.flops


OPERATORS = {
    "instance_loss": (
        instance_loss_chunked,
        lambda made: (*made.args, made.options.get("log_prior_C"), made.options["temperature"], True),
    ),
    "class_similarity": (
        class_similarity_chunked,
        lambda made: (
            *(*made.args, made.options.get("log_prior_C")),
            *(made.options["classes"], made.options["temperature"], list(made.options["size"])),
        ),
    ),
    "bank_update": (set_sums_chunked, lambda made: (*made.args[2:], made.options["classes"])),
}


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("name", ["ordinary", "strided", "with_prior"])
def test_opcheck(op, name):
    operator, arguments = OPERATORS[op]
    made = call(op, SCENES[name])
    if op in GRADIENT:
        made.args[GRADIENT[op]].requires_grad_()
    torch.library.opcheck(operator, arguments(made))


@pytest.mark.parametrize("op", dida_kernels.OPS)
def test_compiles_without_a_graph_break(op):
    """Through the dispatcher, checks included; the backend that records graphs without generating code is enough."""
    made = call(op, SCENES["ordinary"])
    inputs = [made.args[GRADIENT[op]].requires_grad_()] if op in GRADIENT else []
    eager = dida_kernels.OPS[op](*made.args, **made.options)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *args: dida_kernels.OPS[op](*args, **made.options), fullgraph=True, backend="aot_eager"
    )
    got = compiled(*made.args)
    torch.testing.assert_close(got, eager, rtol=0, atol=0)
    for x in inputs:
        ours, truth = (torch.autograd.grad(y.sum(), x)[0] for y in (got, eager))
        torch.testing.assert_close(ours, truth, rtol=0, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("op, place", [("instance_loss", 0), ("instance_loss", 1), ("instance_loss", 2),
                                       ("class_similarity", 0), ("class_similarity", 1)])  # fmt: skip
def test_what_is_not_finite_is_as_far_as_in_the_equation(op, place, value):
    made = call(op, SCENES["ordinary"])
    x = made.args[place]
    x.view(-1)[x.numel() // 2] = value
    found = {}
    for name in ("equation", "chunked"):
        args = [arg.clone().requires_grad_(i == 0 and op == "instance_loss") for i, arg in enumerate(made.args)]
        with dida_kernels.backend(name):
            result = dida_kernels.OPS[op](*args, **made.options)
        if op == "instance_loss" and result.isfinite():  # nobody takes the step of a loss that is not
            found[name, "gradient"] = torch.autograd.grad(result, args[0])[0]
        found[name, "result"] = result.detach()
    for what in {what for _, what in found}:
        a, b = found["chunked", what], found["equation", what]
        assert torch.equal(a.isfinite(), b.isfinite())
        torch.testing.assert_close(a[a.isfinite()], b[b.isfinite()], rtol=1e-4, atol=1e-5)

"""The instance loss with a row for every pixel (equal grids): agreement with Eq. (6), its limits, its manners."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import dida_kernels
from dida_kernels.equations import pixels

pytest.importorskip("triton", reason="Triton is published for Linux")

from dida_kernels.fused.launch import INTERPRETED
from dida_kernels.fused.rows import instance_loss as fused
from dida_kernels.fused.rows import packed_bank
from dida_kernels.fused.rows.blocks import RowBlock, RowBlocks
from tests.cases import SCENES, Call, Scene, call, cast, resized
from tests.kernels.test_agreement import (
    FLOAT32_GRADIENT,
    FLOAT32_OUTPUT,
    check,
    device_of,
    gradient_error,
    output_error,
    run,
)

reference = dida_kernels.instance_loss.reference
DEVICE = device_of("triton")


def over_rows(*args: Tensor, **options: float) -> Tensor:
    """The op under test: what the Triton backend takes where the grids are equal."""
    assert args[0].shape[-2:] == args[2].shape[-2:]
    with dida_kernels.backend("triton"):
        return dida_kernels.instance_loss(*args, **options)


def on_same_grid(scene: Scene) -> Scene:
    return resized(scene, HW=scene.hw)


def on_device(made: Call) -> Call:
    return Call(tuple(x.to(DEVICE) for x in made.args), made.options)


def assert_agrees(made: Call, scene: Scene, dtype: torch.dtype) -> None:
    truth, true_gradient = run(reference, cast(made, torch.float64), 0, None)
    made = on_device(made)
    equation, equation_gradient = run(reference, made, 0, None)
    loss, gradient = run(over_rows, made, 0, None)
    assert (loss.dtype, gradient.dtype) == (equation.dtype, dtype)
    check("loss", output_error(loss, truth), output_error(equation, truth), FLOAT32_OUTPUT, scene, dtype)
    errors = (gradient_error(g, true_gradient, propagated=1) for g in (gradient, equation_gradient))
    check("gradient", *errors, FLOAT32_GRADIENT, scene, dtype)


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_agrees_in_float32(scene):
    scene = on_same_grid(scene)
    assert_agrees(call("instance_loss", scene), scene, torch.float32)


# The interpreter cuts off what does not fit a bfloat16, a GPU rounds: with twice the error not every scene can pass.
@pytest.mark.parametrize(
    "name, dtype",
    [(name, torch.float16) for name in ("ordinary", "many_slots", "hard_prior", "zero_embedding", "misaligned", "warm")]
    + [(name, torch.bfloat16) for name in ("ordinary", "many_slots", "hard_prior", "misaligned")],
    ids=str,
)
def test_agrees_in_half_precision(name, dtype):
    scene = on_same_grid(SCENES[name])
    assert_agrees(call("instance_loss", scene, dtype=dtype), scene, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_more_than_one_block_of_everything(dtype):
    scene = Scene("blocks", C=19, D=40, K=150, hw=(7, 6), HW=(7, 6))
    assert_agrees(call("instance_loss", scene, dtype=dtype), scene, dtype)


def test_one_hundred_thousand_slots(monkeypatch):
    if INTERPRETED:  # long blocks and segments: it counts blocks, not elements
        monkeypatch.setattr(fused, "BLOCKS", RowBlocks(*[RowBlock(16, 4096, 4096)] * 3))
        for module in (fused, packed_bank):
            monkeypatch.setattr(module, "SEGMENT", 1024)
    scene = Scene("many", B=1, C=19, K=100_003, D=16, hw=(1, 2), HW=(1, 2))
    assert_agrees(call("instance_loss", scene), scene, torch.float32)


@pytest.mark.parametrize("temperature", [0.01, 0.03])
def test_a_prior_on_the_farthest_slots_only(temperature):
    """The class with all prior mass is opposite to the teacher, the one without any is on it: no 0, inf or NaN."""
    rng = torch.Generator().manual_seed(0)
    near_D, student_BDhw = torch.randn(8, generator=rng), torch.randn(1, 8, 2, 2, generator=rng)
    teacher_BDhw = near_D.view(1, 8, 1, 1).expand(1, 8, 2, 2)
    prior_BCHW = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    valid_BHW = torch.ones(1, 2, 2, dtype=torch.bool)
    bank_KD = torch.stack([near_D, near_D, -near_D, -near_D + 0.01])
    label_K = torch.tensor([0, 0, 1, 1])
    made = Call((student_BDhw, teacher_BDhw, prior_BCHW, valid_BHW, bank_KD, label_K), {"temperature": temperature})
    loss, gradient = run(over_rows, on_device(made), 0, None)
    truth, true_gradient = run(reference, cast(made, torch.float64), 0, None)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=1e-4, atol=1e-5)


def test_two_dtypes_meet_in_the_one_that_holds_both():
    made = call("instance_loss", on_same_grid(SCENES["ordinary"]))
    student, *rest = made.args
    mixed = Call((student.bfloat16(), *rest), made.options)
    loss, gradient = run(over_rows, on_device(mixed), 0, None)
    truth, true_gradient = run(reference, cast(mixed, torch.float64), 0, None)
    assert gradient.dtype == torch.bfloat16
    assert output_error(loss, truth) <= FLOAT32_OUTPUT
    assert gradient_error(gradient, true_gradient, propagated=1) <= 2**-7  # rounded before and after scaling


def test_packing_keeps_classes_apart():
    SEGMENT = packed_bank.SEGMENT
    # Classes 1 and 3 are empty; 9 and -1 are no class.
    label_K = torch.tensor([4] * 17 + [0] * 16 + [2, 9, -1], device=DEVICE)
    bank_KD = torch.randn(len(label_K), 5, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    packed = packed_bank.pack_bank(bank_KD, label_K, 5, torch.float32, multiple=32)
    assert len(packed.rows_PD) % 32 == 0
    assert packed.used.item() == 4 * SEGMENT
    assert packed.class_G[:4].tolist() == [0, 2, 4, 4]
    is_slot_P = packed.bias_P == 0
    assert is_slot_P.view(-1, SEGMENT).sum(1).tolist() == [16, 1, 16, 1] + [0] * (len(is_slot_P) // SEGMENT - 4)
    order_K = [*range(17, 33), 33, *range(17)]
    unit_KD = torch.nn.functional.normalize(bank_KD, dim=1)[order_K]
    torch.testing.assert_close(packed.rows_PD[is_slot_P][:, :5], unit_KD)
    assert not packed.rows_PD[~is_slot_P].any()
    assert packed.bias_P[~is_slot_P].eq(float("-inf")).all()


@pytest.fixture
def made() -> Call:
    return call("instance_loss", on_same_grid(SCENES["ordinary"]), device=DEVICE)


def loss_of(made: Call) -> Callable[[Tensor], Tensor]:
    return lambda student: over_rows(student, *made.args[1:], **made.options)


def test_opcheck(made):
    student, teacher, prior = (pixels(x) for x in made.args[:3])
    args = (teacher, prior, made.args[3].flatten(), *made.args[4:], 0.1, True)
    torch.library.opcheck(fused.instance_loss_rows, (student.detach().requires_grad_(), *args))


def test_compiles_without_a_graph_break(made):
    student = made.args[0].requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(loss_of(made), fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(f(student), student)[0] for f in (compiled, loss_of(made))]
    assert torch.equal(*gradients)


def test_autocast_checkpoint_and_a_second_run_change_no_bit(made):
    student = made.args[0].requires_grad_()
    first = loss_of(made)(student)
    (gradient,) = torch.autograd.grad(first, student)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(loss_of(made)(student), first)
    second = checkpoint(loss_of(made), student, use_reentrant=False)
    assert torch.equal(second, first)
    assert torch.equal(torch.autograd.grad(second, student)[0], gradient)


def test_no_gradient_is_computed_where_none_is_wanted(made):
    loss, gradient_ND, _ = fused.instance_loss_rows(
        *(pixels(x) for x in made.args[:3]), made.args[3].flatten(), *made.args[4:], 0.1, False
    )
    assert loss > 0
    assert gradient_ND.numel() == 0
    with torch.no_grad():
        assert not loss_of(made)(made.args[0].requires_grad_()).requires_grad


def test_a_second_derivative_is_refused(made):
    student = made.args[0].requires_grad_()
    weight = torch.tensor(2.0, device=DEVICE, requires_grad=True)
    (gradient,) = torch.autograd.grad(weight * loss_of(made)(student), student, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        gradient.sum().backward()

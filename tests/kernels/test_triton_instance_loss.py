"""The interpolated instance loss: agreement with Eq. (6) in float64, its special cases, and how it sits in PyTorch.

Without a GPU the kernels run in Triton's interpreter, on grids of a few nodes; with one, the same tests run on it.
"""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from dida_kernels import backend, instance_loss
from dida_kernels.fused.cells import instance_gradient, node_logits
from dida_kernels.fused.cells.instance_loss import PARTS, _weighted_mean, instance_loss_cells
from tests.cases import Call
from tests.interpreter import looking_for_overflow
from tests.kernels import agreement

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def scene(B=1, D=5, h=2, w=3, S=4, C=4, K=7, filled=None, seed=0):
    """Arguments of `instance_loss`; only the first `filled` classes have slots."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=g)

    label_K = torch.randint(0, filled or C, (K,), generator=g)
    label_Bhw = torch.randint(0, C, (B, h, w), generator=g)
    centre_CD = randn(C, D)
    bank_KD = centre_CD[label_K] + 0.7 * randn(K, D)
    teacher_BDhw = (centre_CD[label_Bhw] + 0.8 * randn(B, h, w, D)).permute(0, 3, 1, 2).contiguous()
    student_BDhw = (centre_CD[label_Bhw] + 1.2 * randn(B, h, w, D)).permute(0, 3, 1, 2).contiguous()
    likely_BCHW = F.interpolate(F.one_hot(label_Bhw, C).permute(0, 3, 1, 2).float(), scale_factor=S)
    z_BCHW = (3 * likely_BCHW + randn(B, C, h * S, w * S)).softmax(1)
    weight_BHW = (torch.rand(B, h * S, w * S, generator=g) > 0.2).float()
    return [x.to(DEVICE) for x in (student_BDhw, teacher_BDhw, z_BCHW, weight_BHW, bank_KD, label_K)]


def truth(args, t, dtype=torch.float64):
    """Loss and gradient of the equation, from inputs as the kernel gets them."""
    student, teacher, z, weight, bank, label = args
    student = student.detach().to(dtype).requires_grad_()
    loss = instance_loss.reference(
        student, teacher.to(dtype), z.to(dtype), weight, bank.to(dtype), label, temperature=t
    )
    loss.backward()
    return loss.detach(), student.grad


def fused(args, t):
    student = args[0].detach().requires_grad_()
    with backend("triton"):
        loss = instance_loss(student, *args[1:], temperature=t)
    loss.backward()
    return loss.detach(), student.grad


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def assert_agrees(args, t=0.1, loss_tolerance=1e-6, grad_tolerance=1e-5):
    (loss, grad), (true_loss, true_grad) = fused(args, t), truth(args, t)
    assert loss.dtype == torch.float32
    assert grad.dtype == args[0].dtype
    assert abs(loss.double() - true_loss) <= loss_tolerance * max(1, abs(true_loss))
    assert relative(grad, true_grad) <= grad_tolerance


TINY = dict(h=1, w=1, S=2, K=3)
CASES = {
    "plain": dict(B=2, h=3, w=2, K=9),
    "twice": dict(S=2),
    "eight_times": dict(S=8, h=1, w=2),
    "one_row": dict(h=1, w=4),
    "one_column": dict(h=3, w=1),
    "one_node": dict(h=1, w=1),
    "a_slot_per_class": dict(C=7, K=7),
    "one_class": dict(C=1),
    "wide": dict(D=133, h=1, w=2),
}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_equation(case):
    assert_agrees(scene(**CASES[case]))


@pytest.mark.parametrize("t", [1.0, 0.05, 0.02, 0.01])
def test_agrees_at_every_temperature(t):
    assert_agrees(scene(), t)


@pytest.mark.parametrize("t", [0.1, 0.01])
def test_a_bank_in_chunks_gives_the_same(monkeypatch, t):
    monkeypatch.setattr(node_logits, "LOGIT_SLOTS", 4)
    monkeypatch.setattr(instance_gradient, "SEAM_SLOTS", {torch.float32: 3, torch.float16: 3})
    assert_agrees(scene(K=10), t)


@pytest.mark.parametrize("K", [390, pytest.param(100_003, marks=pytest.mark.gpu)])
def test_a_bank_of_more_than_one_chunk_as_shipped(K):
    assert_agrees(scene(D=2, h=1, w=1, S=2, C=3, K=K))


def test_offsets_beyond_32_bits(monkeypatch):
    """A z whose third class lies 2^31 elements behind its first, in memory that is never touched."""
    args = scene(C=3, **TINY)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    _, C, H, W = args[2].shape
    far_apart = torch.empty(2**31 + 64, dtype=torch.float16, device=DEVICE).as_strided((1, C, H, W), (0, 2**30, W, 1))
    args[2] = far_apart.copy_(args[2])
    with looking_for_overflow():
        assert_agrees(args)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_beside_a_float32_z(dtype):
    student, teacher, *rest = scene(D=32, K=20)
    args = (student.to(dtype), teacher.to(dtype), *rest)
    agreement.assert_agrees("instance_loss", "triton", Call(args, {"temperature": 0.1}))


def test_k_of_one_has_no_gradient():
    loss, grad = fused(scene(K=1), 0.1)
    assert abs(loss) <= 1e-6
    assert grad.abs().max() <= 1e-7


def test_classes_without_slots_leave_numerator_and_count():
    args = scene(filled=2)
    args[2][:, :2, :4] = 0  # all mass of these rows is on classes without slots
    assert_agrees(args)


def test_z_of_exactly_zero_and_one():
    args = scene()
    args[2] = F.one_hot(args[2].argmax(1), 4).permute(0, 3, 1, 2).float()
    assert_agrees(args)


def test_no_weighted_pixel_gives_zero_and_no_gradient():
    args = scene()
    args[3] = torch.zeros_like(args[3])
    loss, grad = fused(args, 0.1)
    assert loss == 0
    assert (grad == 0).all()


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_zero_embeddings_have_cosine_zero_and_no_gradient(which):
    args = scene(h=3, w=3)
    args[0 if which == "student" else 1][:, :, :2, :2] = 0  # at least one cell whose nodes are all zero
    assert_agrees(args)
    if which == "student":
        _, grad = fused(args, 0.1)
        assert (grad[:, :, 0, 0] == 0).all()  # every pixel of this node is zero
        assert (grad[:, :, 1, 1] != 0).any()


def test_neighbours_that_cancel_stay_finite():
    args = scene(h=1, w=2, D=3)
    args[0][..., 1] = -0.6 * args[0][..., 0]  # the enlarged embedding passes through zero at weight 5/8
    loss, grad = fused(args, 0.1)
    assert loss.isfinite()
    assert grad.isfinite().all()


def test_embeddings_of_very_different_norms():
    args = scene()
    args[0] *= torch.logspace(-6, 6, 3, device=DEVICE)
    assert_agrees(args)


def test_strides_do_not_matter():
    args = scene(B=2)
    loss, grad = fused(args, 0.1)
    student, teacher, z, weight, bank, label = args
    others = [
        student.to(memory_format=torch.channels_last),
        F.pad(teacher, (1, 2, 3, 1))[..., 3:-1, 1:-2],
        z.transpose(2, 3).contiguous().transpose(2, 3),
        weight.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        bank.T.contiguous().T,
        torch.stack([label, label], 1)[:, 0],
    ]
    other_loss, other_grad = fused(others, 0.1)
    assert torch.equal(loss, other_loss)
    assert torch.equal(grad, other_grad)


def test_two_runs_are_equal_bit_for_bit():
    args = scene()
    first, second = fused(args, 0.1), fused(args, 0.1)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_equal_grids_take_the_flat_kernel():
    assert_agrees(scene(S=1, h=4, w=4, D=16))


def test_op_is_sound():
    student, *rest = scene(**TINY)
    torch.library.opcheck(instance_loss_cells, (student.requires_grad_(), *rest, None, 0.1, True))
    torch.library.opcheck(
        instance_loss_cells, (student.detach(), *rest, None, 0.1, False), test_utils="test_faketensor"
    )


def test_compiles_without_a_break():
    args = scene(**TINY)
    loss, grad = fused(args, 0.1)
    student = args[0].detach().requires_grad_()

    def step(student):
        with backend("triton"):
            return 2 * instance_loss(student, *args[1:], temperature=0.1)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(student)
    compiled.backward()
    assert torch.equal(compiled, 2 * loss)
    torch.testing.assert_close(student.grad, 2 * grad)


def test_autocast_changes_nothing():
    args = scene(**TINY)
    loss, grad = fused(args, 0.1)
    with torch.autocast(DEVICE, torch.bfloat16):
        other_loss, other_grad = fused(args, 0.1)
    assert torch.equal(loss, other_loss)
    assert torch.equal(grad, other_grad)


def test_checkpointing_and_no_grad():
    args = scene(**TINY)
    loss, grad = fused(args, 0.1)
    student = args[0].detach().requires_grad_()
    with backend("triton"):
        again = torch.utils.checkpoint.checkpoint(
            lambda x: instance_loss(x, *args[1:], temperature=0.1), student, use_reentrant=False
        )
        again.backward()
        with torch.no_grad():
            assert torch.equal(instance_loss(student, *args[1:], temperature=0.1), loss)
    assert torch.equal(again, loss)
    assert torch.equal(student.grad, grad)


def test_no_second_derivative():
    args = scene(**TINY)
    student = args[0].detach().requires_grad_()
    with backend("triton"):
        loss = instance_loss(student, *args[1:], temperature=0.1)
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss, student, create_graph=True)


def test_refuses_what_it_cannot_enlarge():
    student, teacher, _, _, bank, label = scene()
    for H, W, dtype in ((6, 9, torch.float32), (8, 24, torch.float32), (8, 12, torch.float64)):
        z = torch.ones(1, 4, H, W, device=DEVICE)
        arguments = (student.to(dtype), teacher.to(dtype), z, z[:, 0], bank, label)
        with backend("triton"), pytest.raises(RuntimeError, match="cannot run"):
            instance_loss(*arguments, temperature=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("K, megabytes", [(300, 280), (10_000, 400)])
def test_memory_stays_bounded_and_the_host_never_waits(K, megabytes, dtype):
    args = scene(B=2, D=256, h=128, w=128, C=19, K=K)
    args[:2] = [x.to(dtype) for x in args[:2]]
    fused(args, 0.1)  # compiles, and lets cuBLAS take its workspace
    args[0] = args[0].detach().requires_grad_()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with backend("triton"):
            loss = instance_loss(*args, temperature=0.1)
        assert torch.cuda.max_memory_allocated() - before <= megabytes * 1e6
        assert torch.cuda.memory_allocated() - before <= 34e6
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_mean_is_over_all_parts_and_loses_no_pixel():
    """Weights of 0 and 1 are a count: in float32 a part of 2^24 pixels would not grow by one of 1."""
    mass = torch.tensor([2.0**24, *[1.0] * 50]).repeat_interleave(PARTS)[:-3].to(DEVICE)
    loss = torch.rand(len(mass), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    mean, scale = loss.new_empty(()), loss.new_empty(())
    _weighted_mean[(1,)](loss, mass, mean, scale, len(mass), 0.1, PARTS)
    count = mass.double().sum()
    torch.testing.assert_close(mean.double(), loss.double().sum() / count, rtol=2e-7, atol=0)
    torch.testing.assert_close(scale.double(), 1 / (0.1 * count), rtol=2e-7, atol=0)

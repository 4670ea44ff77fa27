"""Scatter and gather as Triton kernels: each other's adjoint to any order, and their manners as PyTorch operators.

Agreement with the equations on every scene is in test_agreement.py.
"""

import pytest
import torch

import dida_kernels

pytest.importorskip("triton", reason="Triton is published for Linux")

from dida_kernels.fused import scatter_gather as fused
from dida_kernels.fused.launch import INTERPRETED
from tests.cases import SCENES, Scene, call
from tests.interpreter import looking_for_overflow
from tests.kernels.agreement import assert_agrees, device_of

DEVICE = device_of("triton")
LABEL_K = torch.tensor([3, 0, 3, 1, 1, 3, 4], device=DEVICE)  # unsorted; class 2 has no slot


def double(*shape: int) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.to(DEVICE).requires_grad_()


@pytest.fixture
def on_triton():
    with dida_kernels.backend("triton"):
        yield


@pytest.mark.parametrize("op", ["scatter", "gather"])
@pytest.mark.parametrize(
    "scene",
    [
        Scene("many", B=1, C=19, K=100_003, hw=(1, 2), HW=(1, 2)),
        Scene("several_blocks", C=3, K=150, hw=(7, 6), HW=(7, 6)),
    ],
    ids=lambda scene: scene.name,
)
def test_agrees_on_many_slots(op, scene, monkeypatch):
    if INTERPRETED:  # it counts blocks, not elements
        monkeypatch.setattr(fused, "GATHER_BLOCK_K", 1024)
        monkeypatch.setattr(fused, "SCATTER_BLOCK_K", 4096 if scene.K > 4096 else 128)
    assert_agrees(op, "triton", call(op, scene, device=DEVICE))


def test_each_is_the_adjoint_of_the_other(on_triton):
    z_NC, q_NK = double(9, 5).detach(), double(9, 7).detach()
    scattered = (dida_kernels.scatter(z_NC, LABEL_K) * q_NK).sum()
    gathered = (z_NC * dida_kernels.gather(q_NK, LABEL_K, classes=5)).sum()
    torch.testing.assert_close(scattered, gathered, rtol=1e-14, atol=0)


def test_first_and_second_derivatives(on_triton):
    def scattered(z_NC):
        return dida_kernels.scatter(z_NC, LABEL_K).square()

    def gathered(q_NK):
        return dida_kernels.gather(q_NK, LABEL_K, classes=5).square()

    for function, x in ((scattered, double(1, 5)), (gathered, double(1, 7))):
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)


def test_half_precision_sums_are_rounded_once(on_triton):
    """1000 slots of 1/1000 in one class: added up in bfloat16 they would stop growing at 1/4."""
    q_NK = torch.full((2, 1000), 1 / 1000, dtype=torch.bfloat16, device=DEVICE)
    q_ga_NC = dida_kernels.gather(q_NK, torch.zeros(1000, dtype=torch.int64, device=DEVICE), classes=1)
    torch.testing.assert_close(q_ga_NC, q_NK.float().sum(1, keepdim=True).bfloat16(), rtol=2**-7, atol=0)


def test_offsets_beyond_two_to_the_31(on_triton, monkeypatch):
    """Rows of a view 2^30 elements apart, in memory that is never touched in between."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    memory = torch.empty(2**31 + 64, dtype=torch.float16, device=DEVICE)
    near_NK = double(3, 7).detach().half()
    far_NK = memory.as_strided((3, 7), (2**30, 1)).copy_(near_NK)
    with looking_for_overflow():
        assert torch.equal(*(dida_kernels.gather(x, LABEL_K, classes=5) for x in (far_NK, near_NK)))
        assert torch.equal(*(dida_kernels.scatter(x, LABEL_K) for x in (far_NK, near_NK)))


def test_opcheck():
    scatter, gather = (call(op, SCENES["strided"], device=DEVICE) for op in ("scatter", "gather"))
    torch.library.opcheck(fused._scatter_op, (scatter.args[0].requires_grad_(), scatter.args[1]))
    torch.library.opcheck(fused._gather_op, (gather.args[0].requires_grad_(), gather.args[1], 5))


def test_compiles_without_a_graph_break(on_triton):
    def there_and_back(q_NK):
        return dida_kernels.scatter(dida_kernels.gather(q_NK, LABEL_K, classes=5), LABEL_K).square().sum()

    q_NK = double(3, 7)
    torch._dynamo.reset()
    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(f(q_NK), q_NK)[0] for f in (compiled, there_and_back)]
    assert torch.equal(*gradients)


def test_autocast_and_no_grad(on_triton):
    q_NK = double(3, 7).detach().float().requires_grad_()
    expected = dida_kernels.gather(q_NK, LABEL_K, classes=5)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(dida_kernels.gather(q_NK, LABEL_K, classes=5), expected)
    with torch.no_grad():
        assert not dida_kernels.gather(q_NK, LABEL_K, classes=5).requires_grad


def test_nothing_in_nothing_out(on_triton):
    assert dida_kernels.gather(torch.ones(0, 7, device=DEVICE), LABEL_K, classes=5).shape == (0, 5)
    none_K = torch.empty(0, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match="label: expected at least one"):
        dida_kernels.scatter(torch.ones(3, 5, device=DEVICE), none_K)


@pytest.mark.parametrize("label_K", [torch.tensor([0, 5]), torch.tensor([-1, 0]), torch.tensor([[0, 1]])])
def test_refuses_wrong_labels_at_the_door(on_triton, label_K):
    with pytest.raises(ValueError, match="label"):
        dida_kernels.scatter(torch.ones(3, 5), label_K)
    with pytest.raises(ValueError, match="label"):
        dida_kernels.gather(torch.ones(3, 2), label_K, classes=5)

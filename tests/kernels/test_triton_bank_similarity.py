"""Bank similarity as a Triton kernel: what only this backend can get wrong, and its manners as a PyTorch operator.

Agreement with the equation on every scene is in test_agreement.py.
"""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import dida_kernels

pytest.importorskip("triton", reason="Triton is published for Linux")

from dida_kernels.fused.launch import INTERPRETED
from dida_kernels.fused.rows import bank_similarity as fused
from dida_kernels.fused.rows.blocks import RowBlock, RowBlocks
from tests.cases import SCENES, Scene, call, resized
from tests.interpreter import looking_for_overflow
from tests.kernels.agreement import assert_agrees, device_of

DEVICE = device_of("triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["wide", "wide_and_coldest", "zero_embedding"])
def test_agrees_on_more_than_one_block(name, dtype):
    """N, K and D beyond one block and no multiple of one, also where a maximum is kept from block to block;
    embeddings without a direction in every dtype."""
    wide = Scene("wide", D=40, K=70, hw=(6, 7))
    scene = {"wide": wide, "wide_and_coldest": resized(wide, temperature=0.01)}.get(name, SCENES["zero_embedding"])
    assert_agrees("bank_similarity", "triton", call("bank_similarity", scene, dtype=dtype, device=DEVICE))


def test_one_hundred_thousand_slots(monkeypatch):
    if INTERPRETED:
        for blocks in ("FORWARD_BLOCKS", "BACKWARD_BLOCKS"):  # long blocks: the interpreter counts blocks, not elements
            monkeypatch.setattr(fused, blocks, RowBlocks(*[RowBlock(16, 4096)] * 3))
    scene = Scene("many", B=1, K=100_003, D=16, hw=(1, 2), HW=(1, 2))
    assert_agrees("bank_similarity", "triton", call("bank_similarity", scene, device=DEVICE))


@pytest.mark.parametrize("temperature", [0.01, 0.03])
def test_every_cosine_at_the_lower_end(temperature):
    """All cosines are -1: the shift by 1/t is as far off as it can be, and its exponent rounded as 2/t is."""
    embed_ND = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    bank_KD = -embed_ND[:1].expand(5, 8)
    with dida_kernels.backend("triton"):
        q_NK = dida_kernels.bank_similarity(embed_ND, bank_KD, temperature=temperature)
    rounded = 2 / temperature * torch.finfo(torch.float32).eps
    torch.testing.assert_close(q_NK, torch.full_like(q_NK, 1 / 5), rtol=rounded, atol=0)


def test_a_tiny_gradient_survives_float16():
    """The mean over a crop divides by 524 288: a float16 product of such numbers would be 0."""
    made = call("bank_similarity", SCENES["many_slots"], dtype=torch.float16, device=DEVICE)
    embed_ND = made.args[0].requires_grad_()
    gradients = []
    for weight in (2.0**-10, 2.0**-30):
        with dida_kernels.backend("triton"):
            q_NK = dida_kernels.bank_similarity(*made.args, **made.options)
        ones = torch.zeros_like(q_NK).index_fill(1, torch.tensor(0, device=DEVICE), weight)
        bank_KD = made.args[1]
        g_ND = fused.bank_similarity_rows_backward(ones, q_NK.detach(), embed_ND.detach().float(), bank_KD, 0.1)
        gradients.append(g_ND / weight)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=0)


def test_offsets_beyond_two_to_the_31(monkeypatch):
    """Rows of a view 2^30 elements apart, in memory that is never touched in between."""
    scene = Scene("far", B=1, hw=(1, 3), HW=(1, 3))
    stride, made = 2**30, call("bank_similarity", scene, dtype=torch.float16, device=DEVICE)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    memory = torch.empty(2 * stride + 64, dtype=torch.float16, device=DEVICE)
    far_ND = memory.as_strided(made.args[0].shape, (stride, 1))
    far_ND.copy_(made.args[0])
    with looking_for_overflow(), dida_kernels.backend("triton"):
        far, near = (dida_kernels.bank_similarity(x, made.args[1], **made.options) for x in (far_ND, made.args[0]))
    # A GPU adds squares in another order where rows do not stand one behind the other.
    torch.testing.assert_close(far, near, rtol=1e-5, atol=0)


def test_opcheck():
    made = call("bank_similarity", SCENES["strided"], device=DEVICE)
    made.args[0].requires_grad_()
    torch.library.opcheck(fused.bank_similarity_rows, (*made.args, 0.1))


def test_compiles_without_a_graph_break():
    made = call("bank_similarity", SCENES["ordinary"], device=DEVICE)
    embed_ND = made.args[0].requires_grad_()

    def loss(embed_ND):
        return dida_kernels.bank_similarity(embed_ND, made.args[1], **made.options).square().sum()

    torch._dynamo.reset()
    with dida_kernels.backend("triton"):
        compiled, eager = torch.compile(loss, fullgraph=True, backend="aot_eager")(embed_ND), loss(embed_ND)
    assert torch.equal(*(torch.autograd.grad(x, embed_ND)[0] for x in (compiled, eager)))


def test_autocast_checkpoint_and_a_second_run_change_no_bit():
    made = call("bank_similarity", SCENES["ordinary"], device=DEVICE)
    embed_ND = made.args[0].requires_grad_()

    def similarity(embed_ND):
        with dida_kernels.backend("triton"):
            return dida_kernels.bank_similarity(embed_ND, made.args[1], **made.options)

    first = similarity(embed_ND)
    (gradient,) = torch.autograd.grad(first.square().sum(), embed_ND)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(similarity(embed_ND), first)
    second = checkpoint(similarity, embed_ND, use_reentrant=False)
    assert torch.equal(second, first)
    assert torch.equal(torch.autograd.grad(second.square().sum(), embed_ND)[0], gradient)
    with torch.no_grad():
        assert not similarity(embed_ND).requires_grad


def test_a_second_derivative_is_refused():
    made = call("bank_similarity", SCENES["ordinary"], device=DEVICE)
    embed_ND = made.args[0].requires_grad_()
    with dida_kernels.backend("triton"):
        q_NK = dida_kernels.bank_similarity(*made.args, **made.options)
    (gradient,) = torch.autograd.grad(q_NK.square().sum(), embed_ND, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        gradient.sum().backward()


def test_says_why_it_does_not_run():
    why_not = dida_kernels.bank_similarity.why_not
    assert "float64" in why_not("triton", torch.zeros(2, 8, dtype=torch.float64), torch.zeros(3, 8), temperature=0.1)
    assert "D = 300" in why_not("triton", torch.zeros(2, 300), torch.zeros(3, 300), temperature=0.1)
    assert why_not("triton", torch.zeros(2, 8), torch.zeros(3, 8), temperature=0.1) is not None  # not forced


@pytest.mark.parametrize(
    "change, error",
    [
        ({"temperature": 0.0}, ValueError),
        ({"temperature": float("nan")}, ValueError),
        ({"bank_KD": torch.zeros(0, 8)}, ValueError),
        ({"bank_KD": torch.zeros(3, 7)}, ValueError),
        ({"bank_KD": torch.zeros(3, 8, dtype=torch.int64)}, TypeError),
        ({"bank_KD": torch.zeros(3, 8, requires_grad=True)}, ValueError),
    ],
)
def test_refuses_wrong_arguments_at_the_door(change, error):
    right = {"embed_ND": torch.ones(2, 8), "bank_KD": torch.ones(3, 8), "temperature": 0.1}
    with dida_kernels.backend("triton"), pytest.raises(error):
        dida_kernels.bank_similarity(**{**right, **change})

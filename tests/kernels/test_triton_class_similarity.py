"""The interpolated class similarity: agreement with Eq. (5) and (9) in float64, and its special cases."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from dida_kernels import backend, class_similarity
from dida_kernels.fused.cells import node_logits
from dida_kernels.fused.cells.class_similarity import class_similarity_cells
from tests.cases import Call
from tests.kernels import agreement

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def scene(B=1, D=5, h=2, w=3, S=4, C=4, K=7, filled=None, seed=0):
    """Arguments and options of `class_similarity`; only the first `filled` classes have slots."""
    g = torch.Generator().manual_seed(seed)
    embed_BDhw = torch.randn(B, D, h, w, generator=g)
    label_K = torch.randint(0, filled or C, (K,), generator=g)
    args = [x.to(DEVICE) for x in (embed_BDhw, torch.randn(K, D, generator=g), label_K)]
    return args, dict(classes=C, size=(h * S, w * S))


def truth(args, options, t, dtype=torch.float64):
    embed, bank, label = args
    return class_similarity.reference(embed.to(dtype), bank.to(dtype), label, temperature=t, **options)


def fused(args, options, t=0.1):
    with backend("triton"):
        return class_similarity(*args, temperature=t, **options)


def error(q, true_q):
    return (q.double() - true_q).abs().max().item()


CASES = {
    "plain": dict(B=2, K=11),
    "twice": dict(S=2),
    "eight_times": dict(S=8, h=1, w=2),
    "one_row": dict(h=1, w=4),
    "one_column": dict(h=3, w=1),
    "one_slot": dict(K=1),
    "classes_without_slots": dict(C=7, filled=3),
    "one_class": dict(C=1),
}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_equation(case):
    args, options = scene(**CASES[case])
    q_ga = fused(args, options)
    assert q_ga.dtype == torch.float32
    assert error(q_ga, truth(args, options, 0.1)) <= 1e-6


@pytest.mark.parametrize("t", [1.0, 0.05, 0.02, 0.01])
def test_agrees_at_every_temperature(t):
    args, options = scene(h=1)
    assert error(fused(args, options, t), truth(args, options, t)) <= 1e-7 / t + 1e-6  # logits grow as 1/t


@pytest.mark.parametrize("t", [0.1, 0.01])
def test_a_bank_in_chunks_gives_the_same(monkeypatch, t):
    monkeypatch.setattr(node_logits, "LOGIT_SLOTS", 3)
    args, options = scene(C=3, K=10)  # chunks begin and end within classes
    assert error(fused(args, options, t), truth(args, options, t)) <= 1e-7 / t + 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings(dtype):
    (embed, *rest), options = scene(D=32, K=12)
    made = Call((embed.to(dtype), *rest), options | {"temperature": 0.1})
    agreement.assert_agrees("class_similarity", "triton", made)


def test_zero_embeddings_are_similar_to_no_slot():
    args, options = scene()
    args[0] = torch.zeros_like(args[0])
    q_ga = fused(args, options)
    assert torch.allclose(q_ga, (args[2].bincount(minlength=4) / 7).view(1, -1, 1, 1).expand_as(q_ga))


def test_strides_do_not_matter_and_two_runs_are_equal():
    args, options = scene(B=2)
    embed, bank, label = args
    q_ga = fused(args, options)
    others = [embed.to(memory_format=torch.channels_last), bank, label], [F.pad(embed, (1, 2))[..., 1:-2], bank, label]
    for other in others:
        assert torch.equal(fused(other, options), q_ga)


def test_op_is_sound_and_compiles_without_a_break():
    (embed, bank, label), options = scene(h=1, w=1, S=2, K=3)
    torch.library.opcheck(
        class_similarity_cells, (embed, bank, label, torch.arange(4.0).to(label.device), 4, 0.1, 2, 2)
    )
    expected = fused((embed, bank, label), options)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled((embed, bank, label), options), expected)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(fused((embed, bank, label), options), expected)


def test_refuses_a_gradient_and_grids_it_cannot_enlarge():
    (embed, bank, label), options = scene()
    with pytest.raises(ValueError, match="embed"):
        fused((embed.requires_grad_(), bank, label), options)
    for size in ((2, 3), (6, 9), (8, 24)):
        with pytest.raises(RuntimeError, match="cannot run"):
            fused((embed.detach(), bank, label), dict(classes=4, size=size))

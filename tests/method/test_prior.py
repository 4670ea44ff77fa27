"""The class prior: what the pseudo-labels say of it, and where it enters."""

import pytest
import torch

from dida.batch import Belief, Mixed, Prediction, PseudoLabel, Target
from dida.method import discrimination, prior, regeneration
from dida.method.bank import InstanceBank
from dida_kernels.equations import bank_similarity, gather, pixels

C, D, T = 4, 6, 0.2
LABELS = torch.tensor([0, 0, 0, 1, 1, 2])  # class 3 has no slot


def target(label: torch.Tensor, used: torch.Tensor) -> Target:
    return Target(Belief(label, label, ()), PseudoLabel(label, used.float(), used, torch.tensor(1.0)))


def test_shares_follow_the_pseudo_labels_of_used_pixels():
    shares = prior.ClassShares(C)
    assert shares.share.tolist() == [0.25] * C
    label = torch.tensor([[[0, 0, 0, 1, 3]]])
    used = torch.tensor([[[True, True, True, True, False]]])
    prior.AverageShares(momentum=0.9)(shares, target(label, used))
    assert shares.share.tolist() == pytest.approx([0.9 * 0.25 + 0.1 * s for s in (3 / 4, 1 / 4, 0, 0)])
    before = shares.share.clone()
    prior.AverageShares(momentum=0.9)(shares, target(label, torch.zeros_like(used)))  # nothing is used
    prior.KeepShares()(shares, target(label, used))
    assert torch.equal(shares.share, before)


def test_shares_forget_by_half_in_34_steps():
    shares, label = prior.ClassShares(2), torch.zeros(1, 1, 1, dtype=torch.int64)
    for _ in range(34):
        prior.AverageShares()(shares, target(label, label == 0))
    assert float(shares.share[1]) == pytest.approx(0.5 / 2, abs=0.002)


def test_the_prior_of_a_slot_is_the_share_of_its_class_divided_by_its_slots():
    shares, bank = prior.ClassShares(C), InstanceBank(LABELS, D, C)
    shares.share.copy_(torch.tensor([0.6, 0.4, 0.0, 0.0]))
    log_prior = shares.log_prior(bank, 1.0)
    assert log_prior.exp().tolist() == pytest.approx([0.6 / 3, 0.4 / 2, prior.FLOOR, prior.FLOOR])
    assert log_prior.isfinite().all()
    assert shares.log_prior(bank, 0.5).exp().tolist()[:2] == pytest.approx([0.6**0.5 / 3, 0.4**0.5 / 2])
    assert prior.NoPrior()(shares, bank) == (None, None)
    student = prior.StudentPrior(1.0)(shares, bank)
    assert torch.equal(student.student, log_prior)
    assert student.teacher is None
    assert all(torch.equal(x, log_prior) for x in prior.BothPriors(1.0)(shares, bank))


@pytest.fixture
def scene():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    bank = InstanceBank(LABELS, D, C).double()
    bank.features.copy_(draw(len(LABELS), D))
    return bank, draw(2, C, 3, 5).softmax(1), draw(2, D, 3, 5), draw(2, D, 3, 5), draw(C).log_softmax(0)


def with_prior(embed: torch.Tensor, bank: InstanceBank, log_prior: torch.Tensor) -> torch.Tensor:
    """q [N, K] with the prior, by its formula."""
    q_NK = bank_similarity(pixels(embed), bank.features, temperature=T) * log_prior.exp()[bank.labels]
    return q_NK / q_NK.sum(1, keepdim=True)


@pytest.mark.parametrize(
    "rule", [regeneration.KeepInstance(), regeneration.SmoothInstance(0.7)], ids=["none", "smooth"]
)
def test_where_the_teachers_q_stands_alone_it_has_the_prior_of_both(scene, rule):
    bank, z, embed, student, log_prior = scene
    terms = rule(z, embed, log_prior)
    belief = Belief(z, z, terms[:1], log_prior)
    valid = torch.ones(2, 3, 5, dtype=torch.bool)
    loss = discrimination.InstanceLoss(1.0, T, discrimination.AtImage(), discrimination.ClassWeights(C, 0.0))
    found = loss(Prediction(z, student, z), belief, Mixed(z, valid.long(), valid, ~valid, valid), bank)
    expected = -(with_prior(embed, bank, log_prior) * with_prior(student, bank, log_prior).log()).sum(1).mean()
    assert torch.allclose(found, terms[0].share * expected)


def test_where_z_scales_it_the_teachers_q_has_the_prior_of_z_alone(scene):
    _, z, embed, _, log_prior = scene
    (term,) = regeneration.ScaleInstance()(z, embed, log_prior)
    assert term.factor is z
    assert regeneration.SmoothInstance(0.7)(z, embed, log_prior)[1].factor is z


def test_what_the_bank_says_of_a_class_has_the_prior_where_it_is_smoothed(scene):
    bank, z, embed, _, log_prior = scene
    q_ga = gather(with_prior(embed, bank, log_prior), bank.labels, classes=C).view(2, 3, 5, C).permute(0, 3, 1, 2)
    smoothed = regeneration.SmoothSemantic(0.9, T)(z, embed, bank, log_prior)
    assert torch.allclose(smoothed, 0.9 * z + 0.1 * q_ga)
    scaled = regeneration.ScaleSemantic(T)
    assert torch.equal(scaled(z, embed, bank, log_prior), scaled(z, embed, bank, None))

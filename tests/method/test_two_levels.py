"""III-C and III-D: regeneration at both levels, and which pixels the instance loss looks at."""

import random

import pytest
import torch

from dida.batch import IGNORE, Belief, InstanceTarget, Mixed, Prediction
from dida.method import discrimination, regeneration
from dida.method.bank import InstanceBank
from dida.method.views import StepRandom
from dida_kernels.equations import bank_similarity, gather, pixels, scale, scatter

C, D, K, T = 4, 6, 9, 0.2


@pytest.fixture
def scene():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    bank = InstanceBank(torch.arange(K) % C, D, C).double()
    bank.labels = bank.labels.sort().values
    bank.features.copy_(draw(K, D))
    z = draw(2, C, 3, 5).softmax(1)
    student = draw(2, D, 3, 5).requires_grad_()
    return bank, z, draw(2, D, 3, 5), student


def mixed(valid: torch.Tensor, label: torch.Tensor | None = None) -> Mixed:
    label = torch.zeros_like(valid, dtype=torch.int64) if label is None else label
    return Mixed(image=valid, label=label, weight=valid, pasted=~valid, valid=valid)


def rng() -> StepRandom:
    return StepRandom(random.Random(0), torch.Generator().manual_seed(0))


ALL, BALANCED = discrimination.CountAll(), discrimination.CountBalanced(C)


def test_semantic_strategies_by_their_formulas(scene):
    bank, z, embed, _ = scene
    q = bank_similarity(pixels(embed), bank.features, temperature=T)
    q_ga = gather(q, bank.labels, classes=C).view(2, 3, 5, C).permute(0, 3, 1, 2)
    smoothed = regeneration.SmoothSemantic(phi=0.9, temperature=T)(z, embed, bank)
    assert torch.allclose(smoothed, 0.9 * z + 0.1 * q_ga)
    scaled = regeneration.ScaleSemantic(temperature=T)(z, embed, bank)
    assert torch.allclose(scaled, z * q_ga / (z * q_ga).sum(1, keepdim=True))
    assert regeneration.KeepSemantic()(z, embed, bank) is z


def test_scaling_falls_back_to_the_teacher_where_the_bank_knows_no_believed_class(scene):
    bank, z, embed, _ = scene
    bank.labels.fill_(0)
    z = torch.zeros_like(z)
    z[:, 3] = 1.0
    assert torch.equal(regeneration.ScaleSemantic(temperature=T)(z, embed, bank), z)


def loss_of(target, scene, student, valid=None):
    bank, z, _, _ = scene
    valid = torch.ones(2, 3, 5, dtype=torch.bool) if valid is None else valid
    seen = Prediction(z, student, z)
    belief = Belief(semantic=z, prior=z, terms=target)
    at_image = discrimination.InstanceLoss(1.0, T, grid=discrimination.AtImage(), choose=ALL)
    return at_image(seen, belief, mixed(valid), bank, rng())


@pytest.mark.parametrize(
    "name, rule",
    [
        ("scale", regeneration.ScaleInstance()),
        ("smooth", regeneration.SmoothInstance(phi=0.7)),
        ("none", regeneration.KeepInstance()),
    ],
)
def test_instance_targets_are_the_q_hat_they_stand_for(scene, name, rule):
    bank, z, embed, student = scene
    q = bank_similarity(pixels(embed), bank.features, temperature=T)
    z_sc = scatter(pixels(z), bank.labels)
    q_hat = {
        "scale": scale(q, z_sc)[0],
        "smooth": 0.7 * q + 0.3 * z_sc / z_sc.sum(1, keepdim=True),
        "none": q,
    }[name]
    log_q = bank_similarity(pixels(student), bank.features, temperature=T).log()
    expected = -(q_hat * log_q).sum(1).mean()
    terms = rule(z, embed)
    assert sum(term.share for term in terms) == pytest.approx(1)
    assert torch.allclose(loss_of(terms, scene, student), expected)


def test_pasted_and_unused_pixels_do_not_matter(scene):
    _, z, embed, student = scene
    valid = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1)) > 0.5
    target = regeneration.ScaleInstance()(z, embed)
    loss = loss_of(target, scene, student, valid)
    loss.backward()
    assert student.grad.abs().sum(1)[~valid].eq(0).all()
    assert student.grad.abs().sum(1)[valid].gt(0).all()


def test_stride_four_keeps_only_cells_of_target_pixels(scene):
    bank, _, embed, student = scene
    z = torch.randn(2, C, 12, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64).softmax(1)
    valid = torch.ones(2, 12, 20, dtype=torch.bool)
    valid[0, 0, 0] = False  # one pasted pixel takes its whole cell out
    belief = Belief(semantic=z, prior=z, terms=(InstanceTarget(1.0, embed, z),))
    seen = Prediction(z, student, z)
    at_stride4 = discrimination.InstanceLoss(2.0, T, grid=discrimination.AtStride4(), choose=ALL)
    at_stride4(seen, belief, mixed(valid), bank, rng()).backward()
    touched = student.grad.abs().sum(1) > 0
    assert not touched[0, 0, 0]
    assert touched.sum() == touched.numel() - 1


@pytest.mark.parametrize(
    "grid, size",  # 40 x 40 places that can count
    [(discrimination.AtImage(), (40, 40)), (discrimination.AtStride4(), (160, 160))],
    ids=["image", "stride4"],
)
def test_balanced_counts_as_much_of_every_class_on_either_grid(scene, grid, size):
    bank, *_ = scene
    z = torch.full((1, C, *size), 1 / C, dtype=torch.float64)
    label = torch.zeros(1, *size, dtype=torch.int64)
    label[:, : size[0] // 4] = 1  # a quarter
    label[:, -(size[0] // 10) :] = IGNORE  # pasted from the source, where it has no class
    student = torch.randn(
        1, D, 40, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    ).requires_grad_()
    belief = Belief(semantic=z, prior=z, terms=(InstanceTarget(1.0, torch.randn_like(student), z),))
    instance_loss = discrimination.InstanceLoss(1.0, T, grid=grid, choose=BALANCED)
    instance_loss(Prediction(z, student, z), belief, mixed(label != IGNORE, label), bank, rng()).backward()
    counted = student.grad.abs().sum(1)[0] > 0
    assert counted[:10].sum() == 400  # the rarer class keeps all it has
    assert counted[10:36].sum().item() == pytest.approx(400, abs=60)
    assert counted[36:].sum() == 0


def test_balanced_pixels_are_about_as_many_of_each_class_as_of_the_rarest():
    label = torch.cat([torch.full((count,), c) for c, count in enumerate((200, 600, 1000, 50_000))])[None, None]
    valid = torch.ones_like(label, dtype=torch.bool)
    valid[0, 0, 200:500] = False  # half of class 1
    balanced = discrimination.CountBalanced(6)
    chosen = balanced(valid, label, rng())  # classes 4 and 5 do not occur
    assert not (chosen & ~valid).any()
    kept = torch.bincount(label[chosen], minlength=6)
    assert kept[0] == 200  # the rarest keeps all it has
    assert kept[1:4].tolist() == pytest.approx([200] * 3, abs=50)  # 3.5 standard deviations of a binomial draw
    assert kept[4:].sum() == 0
    assert not balanced(torch.zeros_like(valid), label, rng()).any()


def test_every_valid_pixel_counts_where_all_do():
    label = torch.zeros(1, 2, 3, dtype=torch.int64)
    valid = torch.tensor([[[True, False, True], [False, True, True]]])
    assert torch.equal(ALL(valid, label, rng()), valid)


def test_the_weight_multiplies_the_loss(scene):
    bank, z, embed, student = scene
    terms = regeneration.ScaleInstance()(z, embed)
    arguments = (Prediction(z, student, z), Belief(z, z, terms), mixed(torch.ones(2, 3, 5, dtype=torch.bool)), bank)
    once, thrice = (
        discrimination.InstanceLoss(weight, T, grid=discrimination.AtImage(), choose=ALL)(*arguments, rng())
        for weight in (1.0, 3.0)
    )
    assert once > 0
    assert torch.allclose(thrice, 3 * once)


def test_the_loss_is_zero_without_an_instance_level(scene):
    bank, z, _, student = scene
    assert loss_of((), scene, student) == 0  # before the bank is used
    arguments = Prediction(z, student, z), Belief(z, z, ()), mixed(torch.ones(2, 3, 5, dtype=torch.bool))
    assert discrimination.NoInstanceLoss()(*arguments, bank, rng()) == 0


def test_both_levels_are_the_teachers_own_until_the_bank_is_used(scene):
    bank, z, embed, _ = scene
    regenerate = regeneration.Regenerate(
        regeneration.SmoothSemantic(phi=0.9, temperature=T), regeneration.ScaleInstance(), start=3
    )
    seen = Prediction(z.log(), embed, z)
    early, late = regenerate(seen, bank, 2), regenerate(seen, bank, 3)
    assert torch.allclose(early.prior, z)
    assert early.semantic is early.prior
    assert early.terms == ()
    assert torch.allclose(late.prior, z)
    assert not torch.allclose(late.semantic, z)
    assert [term.share for term in late.terms] == [1.0]


def test_no_instance_level_has_no_term(scene):
    _, z, embed, _ = scene
    assert regeneration.NoInstance()(z, embed) == ()

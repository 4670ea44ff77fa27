"""III-C and III-D: regeneration at both levels, and which pixels the instance loss looks at."""

import pytest
import torch

from dida.batch import IGNORE, Belief, InstanceTarget, Mixed, Prediction
from dida.method import discrimination, regeneration
from dida.method.bank import InstanceBank
from dida.method.prior import ClassShares, NoPrior
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


ALL, BALANCED = (discrimination.ClassWeights(C, power) for power in (0.0, 1.0))


def test_semantic_strategies_by_their_formulas(scene):
    bank, z, embed, _ = scene
    q = bank_similarity(pixels(embed), bank.features, temperature=T)
    q_ga = gather(q, bank.labels, classes=C).view(2, 3, 5, C).permute(0, 3, 1, 2)
    smoothed = regeneration.SmoothSemantic(phi=0.9, temperature=T)(z, embed, bank, None)
    assert torch.allclose(smoothed, 0.9 * z + 0.1 * q_ga)
    scaled = regeneration.ScaleSemantic(temperature=T)(z, embed, bank, None)
    assert torch.allclose(scaled, z * q_ga / (z * q_ga).sum(1, keepdim=True))
    assert regeneration.KeepSemantic()(z, embed, bank, None) is z


def test_scaling_falls_back_to_the_teacher_where_the_bank_knows_no_believed_class(scene):
    bank, z, embed, _ = scene
    bank.labels.fill_(0)
    z = torch.zeros_like(z)
    z[:, 3] = 1.0
    assert torch.equal(regeneration.ScaleSemantic(temperature=T)(z, embed, bank, None), z)


def loss_of(target, scene, student, valid=None):
    bank, z, _, _ = scene
    valid = torch.ones(2, 3, 5, dtype=torch.bool) if valid is None else valid
    seen = Prediction(z, student, z)
    belief = Belief(semantic=z, z=z, terms=target)
    at_image = discrimination.InstanceLoss(1.0, T, grid=discrimination.AtImage(), weigh=ALL)
    return at_image(seen, belief, mixed(valid), bank)


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
    terms = rule(z, embed, None)
    assert sum(term.share for term in terms) == pytest.approx(1)
    assert torch.allclose(loss_of(terms, scene, student), expected)


def test_pasted_and_unused_pixels_do_not_matter(scene):
    _, z, embed, student = scene
    valid = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1)) > 0.5
    target = regeneration.ScaleInstance()(z, embed, None)
    loss = loss_of(target, scene, student, valid)
    loss.backward()
    assert student.grad.abs().sum(1)[~valid].eq(0).all()
    assert student.grad.abs().sum(1)[valid].gt(0).all()


def test_stride_four_keeps_only_cells_of_target_pixels(scene):
    bank, _, embed, student = scene
    z = torch.randn(2, C, 12, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64).softmax(1)
    valid = torch.ones(2, 12, 20, dtype=torch.bool)
    valid[0, 0, 0] = False  # one pasted pixel takes its whole cell out
    belief = Belief(semantic=z, z=z, terms=(InstanceTarget(1.0, embed, z),))
    seen = Prediction(z, student, z)
    at_stride4 = discrimination.InstanceLoss(2.0, T, grid=discrimination.AtStride4(), weigh=ALL)
    at_stride4(seen, belief, mixed(valid), bank).backward()
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
    belief = Belief(semantic=z, z=z, terms=(InstanceTarget(1.0, torch.randn_like(student), z),))
    instance_loss = discrimination.InstanceLoss(1.0, T, grid=grid, weigh=BALANCED)
    instance_loss(Prediction(z, student, z), belief, mixed(label != IGNORE, label), bank).backward()
    counts = student.grad.square().sum(1)[0].sqrt()
    assert counts[:10].mean() / counts[10:36].mean() == pytest.approx(26 / 10, rel=0.1)  # both classes as much
    assert counts[36:].sum() == 0


def test_weights_of_a_pixel_are_a_power_of_how_many_its_class_has():
    label = torch.cat([torch.full((count,), c) for c, count in enumerate((4, 36, 100))])[None, None]
    valid = torch.ones_like(label, dtype=torch.bool)
    valid[0, 0, 4:24] = False  # 20 of class 1: they count nothing, and are not counted
    for power, expected in ((0.0, (1, 1, 1)), (0.5, (1 / 2, 1 / 4, 1 / 10)), (1.0, (1 / 4, 1 / 16, 1 / 100))):
        weight = discrimination.ClassWeights(6, power)(valid, label)  # classes 3 to 5 do not occur
        assert weight[~valid].eq(0).all()
        for c, value in enumerate(expected):
            assert weight[valid & (label == c)].tolist() == pytest.approx([value] * int((valid & (label == c)).sum()))
    assert torch.equal(ALL(valid, label), valid.float())
    assert not BALANCED(torch.zeros_like(valid), label).any()


def test_balanced_is_the_mean_over_classes_of_each_classs_mean(scene):
    bank, z, embed, student = scene
    label = torch.arange(30).remainder(7).clamp(max=2).view(2, 3, 5)
    seen, belief = Prediction(z, student, z), Belief(z, z, regeneration.ScaleInstance()(z, embed, None))

    def loss(valid: torch.Tensor, weigh: discrimination.ClassWeights) -> torch.Tensor:
        at_image = discrimination.InstanceLoss(1.0, T, grid=discrimination.AtImage(), weigh=weigh)
        return at_image(seen, belief, mixed(valid, label), bank)

    of_classes = torch.stack([loss(label == c, ALL) for c in range(3)])
    assert torch.allclose(loss(label >= 0, BALANCED), of_classes.mean())


def test_the_weight_multiplies_the_loss(scene):
    bank, z, embed, student = scene
    terms = regeneration.ScaleInstance()(z, embed, None)
    arguments = (Prediction(z, student, z), Belief(z, z, terms), mixed(torch.ones(2, 3, 5, dtype=torch.bool)), bank)
    once, thrice = (
        discrimination.InstanceLoss(weight, T, grid=discrimination.AtImage(), weigh=ALL)(*arguments)
        for weight in (1.0, 3.0)
    )
    assert once > 0
    assert torch.allclose(thrice, 3 * once)


def test_the_loss_is_zero_without_an_instance_level(scene):
    bank, z, _, student = scene
    assert loss_of((), scene, student) == 0  # before the bank is used
    arguments = Prediction(z, student, z), Belief(z, z, ()), mixed(torch.ones(2, 3, 5, dtype=torch.bool))
    assert discrimination.NoInstanceLoss()(*arguments, bank) == 0


def test_both_levels_are_the_teachers_own_until_the_bank_is_used(scene):
    bank, z, embed, _ = scene
    regenerate = regeneration.Regenerate(
        regeneration.SmoothSemantic(phi=0.9, temperature=T), regeneration.ScaleInstance(), NoPrior(), start=3
    )
    seen = Prediction(z.log(), embed, z)
    early, late = (regenerate(seen, bank, ClassShares(C), step) for step in (2, 3))
    assert torch.allclose(early.z, z)
    assert early.semantic is early.z
    assert early.terms == ()
    assert torch.allclose(late.z, z)
    assert not torch.allclose(late.semantic, z)
    assert [term.share for term in late.terms] == [1.0]


def test_no_instance_level_has_no_term(scene):
    _, z, embed, _ = scene
    assert regeneration.NoInstance()(z, embed, None) == ()

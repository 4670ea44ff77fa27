"""III-E: how the bank is allocated, filled and averaged."""

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from dida.batch import IGNORE
from dida.method.bank import BankRule, InstanceBank, NoBankRule, Select
from dida.method.sampling import (
    AllPixels,
    BoundaryAndInterior,
    CentreOnly,
    OneAtRandom,
    balanced_slots,
    slot_labels,
    slots_by_frequency,
    slots_by_inverse_frequency,
)
from dida.method.views import StepRandom

PIXELS = torch.tensor([5000, 300, 0, 20])  # class 2 does not occur
MEAN = AllPixels()


def rng(seed: int = 0) -> StepRandom:
    return StepRandom(random.Random(seed), torch.Generator().manual_seed(seed))


def counts(slots: Callable, size: int, pixels=PIXELS) -> list[int]:
    label_K = slot_labels(slots, size, pixels)
    assert len(label_K) == size
    assert torch.equal(label_K, label_K.sort().values)
    return torch.bincount(label_K, minlength=len(pixels)).tolist()


def test_class_balanced_slots_match_the_paper():
    assert counts(balanced_slots, 300, torch.ones(19)) == [16] * 15 + [15] * 4
    synthia = torch.ones(19)
    synthia[[9, 14, 16]] = 0
    assert sorted(c for c in counts(balanced_slots, 300, synthia) if c) == [18] * 4 + [19] * 12
    assert counts(balanced_slots, 7) == [3, 2, 0, 2]


def test_the_others_follow_frequency_and_its_inverse():
    assert counts(slots_by_frequency, 100) == [93, 6, 0, 1]
    inverse = counts(slots_by_inverse_frequency, 100)
    assert inverse[3] > inverse[1] > inverse[0] >= 1
    assert inverse[2] == 0


def test_a_bank_smaller_than_the_classes_is_refused():
    with pytest.raises(ValueError, match="--bank-size 2: the source has 3 classes"):
        slot_labels(balanced_slots, 2, PIXELS)


def test_a_bank_goes_on_with_the_slots_of_its_checkpoint():
    """Class statistics of today, where pictures were added since, may give other ones."""
    saved = InstanceBank(torch.tensor([0, 0, 0, 1]), dim=1, classes=2)
    saved.fill(torch.tensor([[1.0], [2.0]]), torch.tensor([True, True]))
    resumed = InstanceBank(torch.tensor([0, 1, 1, 1]), dim=1, classes=2)
    resumed.load_state_dict(saved.state_dict())
    assert resumed.held.tolist() == [3, 1]
    assert resumed.place.tolist() == [0, 1, 2, 0]
    assert resumed.filled == saved.filled
    for number in range(2, 6):
        for bank in (saved, resumed):
            bank.fill(torch.full((2, 1), float(number)), torch.tensor([True, False]))
        assert torch.equal(resumed.features, saved.features)
    with pytest.raises(ValueError, match="classes 0 to 1"):
        resumed.load_state_dict(saved.state_dict() | {"labels": torch.tensor([0, 1, 1, 2])})


def test_fill_goes_round_and_leaves_no_slot_of_a_seen_class_empty():
    bank = InstanceBank(torch.tensor([0, 0, 0, 1, 3]), dim=1, classes=4)
    vectors = lambda x: torch.full((4, 1), float(x))  # noqa: E731
    only_0 = torch.tensor([True, False, False, False])
    bank.fill(vectors(1), only_0)
    assert bank.features[:, 0].tolist() == [1, 1, 1, 0, 0]
    bank.fill(vectors(2), only_0)
    assert bank.features[:, 0].tolist() == [1, 2, 2, 0, 0]
    bank.fill(vectors(3), torch.tensor([True, True, True, False]))
    assert bank.features[:, 0].tolist() == [1, 2, 3, 3, 0]
    assert bank.filled.item() == pytest.approx(4 / 5)
    bank.fill(vectors(4), only_0)  # round again: the oldest goes
    assert bank.features[:, 0].tolist() == [4, 2, 3, 3, 0]


def test_the_bank_travels_in_the_state_dict():
    bank = InstanceBank(torch.tensor([0, 0, 1]), dim=2, classes=2)
    bank.fill(torch.ones(2, 2), torch.tensor([True, False]))
    other = InstanceBank(torch.tensor([0, 0, 1]), dim=2, classes=2)
    other.load_state_dict(bank.state_dict())
    other.fill(torch.full((2, 2), 5.0), torch.tensor([True, False]))
    assert other.features[:, 0].tolist() == [1, 5, 0]


def rule(select: Select = MEAN, **options) -> BankRule:
    return BankRule(select, classes=3, **({"momentum": 0.5, "every": 2, "start": 4, "fill": 2} | options))


def scene():
    """Two images of 4x4 pixels on a 4x4 grid; the embedding of a pixel is its class + 1, plus 100 in image 1."""
    label = torch.tensor([[[0, 0, 1, 1]] * 4, [[0, 0, 0, IGNORE]] * 4])
    embed = (torch.where(label == IGNORE, 9, label) + 1.0 + torch.tensor([0.0, 100.0]).view(2, 1, 1))[:, None]
    return embed, label


def test_rule_fills_instances_then_averages_the_batch():
    bank, (embed, label) = InstanceBank(torch.tensor([0, 0, 1, 2]), dim=1, classes=3), scene()
    average = rule()
    for step, expected in [
        (0, [0, 0, 0, 0]),  # too early
        (2, [1, 101, 2, 0]),  # filling: one vector per image, class 2 absent
        (3, [1, 101, 2, 0]),
        (5, [1, 101, 2, 0]),  # 5 is no multiple of 2
        (6, [31, 81, 2, 0]),  # mean of class 0 over the batch is (8*1 + 12*101)/20 = 61
    ]:
        average(bank, embed, label, step, rng())
        assert bank.features[:, 0].tolist() == pytest.approx(expected), step


def test_without_a_rule_the_bank_stays_what_it_was():
    bank, (embed, label) = InstanceBank(torch.tensor([0, 1, 2]), dim=1, classes=3), scene()
    for step in range(8):
        NoBankRule()(bank, embed, label, step, rng())
    assert not bank.features.any()
    assert bank.filled == 0


def test_boundary_and_interior_count_the_same_whatever_their_sizes():
    label = torch.tensor([[[0, 0, 0, 1]]])
    embed = torch.tensor([[[[1.0, 2.0, 6.0, 50.0]]]])  # class 0: interior 1 and 2, boundary 6
    bank = InstanceBank(torch.tensor([0, 1]), dim=1, classes=3)
    rule(BoundaryAndInterior(3, boundary_classes=2, clusters=1), momentum=0.0, start=0, fill=0)(
        bank, embed, label, 0, rng()
    )
    assert bank.features[:, 0].tolist() == [(1.5 + 6) / 2, 50]
    rule(CentreOnly(3, boundary_classes=2, clusters=1), momentum=0.0, start=0, fill=0)(bank, embed, label, 0, rng())
    assert bank.features[:, 0].tolist() == [1.5, 50]  # class 1 has no interior and keeps its vector
    rule(MEAN, momentum=0.0, start=0, fill=0)(bank, embed, label, 0, rng())
    assert bank.features[:, 0].tolist() == [3, 50]


def test_random_selection_takes_one_pixel_of_every_class_of_every_image():
    embed, label = scene()
    chosen, edge = OneAtRandom()(embed, label, rng())
    assert not edge.any()
    assert [int((chosen[b] == c).sum()) for b in (0, 1) for c in (0, 1)] == [1, 1, 1, 0]


def test_k_means_finds_the_larger_of_two_groups():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 2, 8, 8, generator=generator) * 0.01
    x[:, :, :, 5:] += 10  # 24 of 64 pixels lie elsewhere
    label = torch.zeros(1, 8, 8, dtype=torch.int64)
    chosen, _ = CentreOnly(3, boundary_classes=2, clusters=2)(x, label, rng())
    assert torch.equal(chosen == 0, (torch.arange(8) < 5).expand(1, 8, 8))


def test_k_means_takes_no_pixel_for_what_a_node_of_another_class_is_in():
    label = (torch.arange(8) >= 4).long().expand(1, 8, 8).clone()
    label[:, :, 0] = 1  # its nearest nodes lie on column 2, which is class 0
    chosen, _ = CentreOnly(2, boundary_classes=9, clusters=2)(torch.ones(1, 2, 2, 2), label, rng())
    assert (chosen[:, :, 0] == IGNORE).all()
    assert torch.equal(chosen[:, :, 1:], label[:, :, 1:])


def test_random_start_is_unit_vectors_and_counts_as_full():
    bank = InstanceBank(torch.tensor([0, 0, 1]), dim=8, classes=2)
    bank.fill_random(torch.Generator().manual_seed(0))
    assert torch.allclose(F.normalize(bank.features), bank.features)
    assert bank.filled == 1

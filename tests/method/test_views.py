"""III-A: ClassMix, colour jitter and blur."""

import colorsys
import random

import pytest
import torch

from dida.batch import IGNORE, LabelledCrops, PseudoLabel
from dida.method import views
from dida.method.views import Photometric, StepRandom

PLAIN = Photometric(jitter_chance=0, jitter_strength=0.2, blur_chance=0)
STRONG = Photometric(jitter_chance=1, jitter_strength=0.2, blur_chance=1)


def rng(seed: int = 0) -> StepRandom:
    return StepRandom(random.Random(seed), torch.Generator().manual_seed(seed))


def test_class_mix_takes_half_of_the_batch_classes_rounded_up():
    label = torch.tensor([[[0, 1, 2, 2]], [[3, 4, 4, IGNORE]]])  # 6 labels in the batch, 255 among them
    for seed in range(20):
        mask = views.class_mix_mask(label, rng(seed), classes=5, per_image=False)
        for b in range(2):  # whole classes: a label is pasted everywhere or nowhere
            for c in label[b].unique():
                assert mask[b][label[b] == c].unique().numel() == 1
    # Each image draws 3 of the 6, so a given label is pasted in half of the draws.
    share = torch.stack([views.class_mix_mask(label, rng(s), classes=5, per_image=False) for s in range(400)])
    assert share.float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_class_mix_per_image_counts_only_its_own_classes():
    label = torch.tensor([[[0, 1, 2]], [[3, 3, 3]]])
    for seed in range(20):
        mask = views.class_mix_mask(label, rng(seed), classes=5, per_image=True)
        assert mask[0].sum() == 2  # ceil(3 / 2) of its three classes, one pixel each
        assert mask[1].all()  # ceil(1 / 2) = 1: its only class


def test_mixed_view_pairs_image_label_and_weight():
    source = LabelledCrops(torch.ones(1, 3, 2, 2), torch.tensor([[[0, 0], [1, 1]]]))
    used = torch.tensor([[[True, False], [True, False]]])  # of either class, whichever is pasted
    pseudo = PseudoLabel(torch.full((1, 2, 2), 7), torch.full((1, 2, 2), 0.25), used, torch.tensor(0.25))
    mix = views.ClassMix(9, per_image=False, photometric=PLAIN)
    mixed = mix(source, torch.zeros(1, 3, 2, 2), pseudo, rng())
    assert mixed.pasted.sum() == 2  # one of the two classes
    assert torch.equal(mixed.image[:, 0], mixed.pasted.float())
    assert torch.equal(mixed.label, torch.where(mixed.pasted, source.label, 7))
    assert torch.equal(mixed.weight, torch.where(mixed.pasted, 1.0, 0.25))
    assert torch.equal(mixed.valid, ~mixed.pasted & used)


@pytest.mark.parametrize("per_image", [False, True])
def test_the_strong_view_draws_classes_as_it_was_told_and_recolours(per_image):
    label = torch.tensor([[[0, 1, 2]], [[3, 3, 3]]])
    source = LabelledCrops(torch.ones(2, 3, 1, 3), label)
    used = torch.ones(2, 1, 3, dtype=torch.bool)
    pseudo = PseudoLabel(torch.full((2, 1, 3), 4), torch.ones(2, 1, 3), used, torch.tensor(1.0))
    only_jitter = Photometric(1, 0.2, 0)
    for seed in range(10):
        mixed = views.ClassMix(5, per_image, only_jitter)(source, torch.zeros(2, 3, 1, 3), pseudo, rng(seed))
        expected = views.class_mix_mask(label, rng(seed), classes=5, per_image=per_image)
        assert torch.equal(mixed.pasted, expected)
        assert not torch.equal(mixed.image[:, 0], expected.float())


@pytest.mark.parametrize("view", [views.PlainView(), views.PhotometricView(STRONG)])
def test_weak_view_leaves_the_crop_alone(view):
    target = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = target.clone()
    seen = view(target, rng())
    assert torch.equal(target, before)
    assert torch.equal(seen, target) == isinstance(view, views.PlainView)


def test_hsv_agrees_with_the_standard_library():
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image[0, :, 0, 0] = 0.5  # grey: no hue
    image[0, :, 0, 1] = 0.0  # black: no saturation
    h, s, v = views.rgb_to_hsv(image)
    for y in range(8):
        for x in range(8):
            expected = colorsys.rgb_to_hsv(*image[0, :, y, x].tolist())
            assert (h[0, y, x].item(), s[0, y, x].item(), v[0, y, x].item()) == pytest.approx(expected, abs=1e-9)
    assert torch.allclose(views.hsv_to_rgb(h, s, v), image, atol=1e-9)


def test_jitter_without_strength_changes_nothing_visible():
    image = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(views.jitter(image, rng(), 0.0), image, atol=2e-6)


def test_jitter_stays_in_range_and_differs_per_image():
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
    out = views.jitter(image, rng(), 0.2)
    assert out.min() >= 0
    assert out.max() <= 1
    assert all(not torch.allclose(out[0], out[i], atol=1e-3) for i in (1, 2, 3))


def test_brightness_is_added_as_in_the_baseline():
    """A multiplied brightness would keep mid-grey above 0.5 * 0.8 * 0.8 = 0.32."""
    grey = torch.full((1, 3, 4, 4), 0.5)
    moved = torch.stack([views.jitter(grey, rng(seed), 0.2).mean() for seed in range(300)])
    # Contrast multiplies 0.5 + shift by a factor of mean 1, so the mean stays and both extremes are reached.
    assert moved.mean().item() == pytest.approx(0.5, abs=0.02)
    assert 0.2 <= moved.min() < 0.3  # contrast first: 0.5 * 0.8 - 0.2 = 0.2
    assert 0.74 < moved.max() <= 0.84 + 1e-6  # brightness first: (0.5 + 0.2) * 1.2 = 0.84


def test_blur_is_a_normalised_gaussian_of_each_image_own_sigma():
    impulse = torch.zeros(2, 3, 21, 21)
    impulse[:, :, 10, 10] = 1.0
    out = views.blur(impulse, torch.tensor([0.15, 1.15]), reach=6)
    assert torch.allclose(out.sum((2, 3)), torch.ones(2, 3), atol=1e-5)
    assert out[0, 0, 10, 10] > 0.999  # sigma 0.15: hardly any blur
    offset = torch.arange(-10, 11.0)
    tap = torch.exp(-(offset**2) / (2 * 1.15**2))
    assert torch.allclose(out[1, 0], torch.outer(tap, tap) / tap.sum() ** 2, atol=2e-6)


def test_chances_are_per_step_and_mean_what_they_say():
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    only_jitter = Photometric(0.8, 0.2, 0.0)
    changed = [not torch.equal(only_jitter(image, rng(s)), image) for s in range(400)]
    assert sum(changed) / 400 == pytest.approx(0.8, abs=0.06)

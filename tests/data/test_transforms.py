import cv2
import numpy as np
import pytest
import torch

from dida.data import transforms
from dida.data.transforms import Crop, Normalise, cut_image, cut_label, keep_ratio_size


class Script:
    """A stand-in generator that returns the corners it is told, as (top, left) pairs, and counts them."""

    def __init__(self, *corners):
        self.values = [value for corner in corners for value in corner]
        self.bounds = []

    def integers(self, bound):
        self.bounds.append(bound)
        return self.values[len(self.bounds) - 1]

    @property
    def crops(self):
        return len(self.bounds) // 2


@pytest.mark.parametrize(
    "size, scale, expected",
    [
        ((1914, 1052), (1280, 720), (1280, 704)),
        ((1914, 1046), (1280, 720), (1280, 700)),
        ((1280, 760), (1280, 760), (1280, 760)),
        ((2048, 1024), (1024, 512), (1024, 512)),
        ((1052, 1914), (1280, 720), (704, 1280)),  # upright: the box turns with the image
        ((100, 50), (300, 100), (200, 100)),
    ],
)
def test_keep_ratio_size(size, scale, expected):
    assert keep_ratio_size(size, scale) == expected


def test_scaling_is_opencv_bilinear_for_images_and_nearest_for_labels():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 40, 3), dtype=np.uint8)
    label = rng.integers(0, 19, (20, 40), dtype=np.uint8)
    scaled = transforms.scaled_image(image, (28, 14))
    assert np.array_equal(scaled, cv2.resize(image, (28, 14), interpolation=cv2.INTER_LINEAR))
    scaled = transforms.scaled_label(label, (28, 14))
    assert np.array_equal(scaled, cv2.resize(label, (28, 14), interpolation=cv2.INTER_NEAREST))
    assert transforms.scaled_image(image, (40, 20)) is image


def test_random_crops_reach_every_corner_and_never_leave():
    rng = np.random.default_rng(0)
    crops = {transforms.random_crop(rng, (7, 5), (4, 4)) for _ in range(300)}
    assert crops == {Crop(left, top) for left in range(4) for top in range(2)}
    assert transforms.random_crop(rng, (3, 3), (4, 4)) == Crop(0, 0)


def halves() -> np.ndarray:
    """40 wide, 10 high: left half road, right half sky, and a void column at the very right."""
    label = np.zeros((10, 40), dtype=np.uint8)
    label[:, 20:] = 10
    label[:, 39] = 255
    return label


def test_varied_crop_takes_the_first_that_shows_two_classes_in_balance():
    # only road; 1 of 10 columns sky: 0.9; 2 of 10: 0.8; 3 of 10: 0.7 < 0.75
    rng = Script((0, 0), (0, 11), (0, 12), (0, 13), (0, 15))
    assert transforms.varied_crop(rng, halves(), (10, 10), 0.75) == Crop(13, 0)
    assert rng.crops == 4
    assert set(rng.bounds[0::2]) == {1}
    assert set(rng.bounds[1::2]) == {31}


def test_a_share_equal_to_the_limit_is_refused():
    rng = Script((0, 12), (0, 13))
    assert transforms.varied_crop(rng, halves(), (10, 10), 0.8) == Crop(13, 0)


def test_void_counts_neither_as_a_class_nor_as_labelled_pixels():
    rng = Script((0, 30), (0, 15))  # sky and void: one class
    assert transforms.varied_crop(rng, halves(), (10, 10), 0.75) == Crop(15, 0)
    only_void = np.full((10, 10), 255, dtype=np.uint8)
    assert transforms.varied_crop(np.random.default_rng(0), only_void, (10, 10), 0.75) == Crop(0, 0)


def test_varied_crop_gives_up_after_ten_tests_and_keeps_the_eleventh():
    rng = Script(*((0, i) for i in range(11)))
    assert transforms.varied_crop(rng, halves(), (10, 10), 0.75) == Crop(10, 0)
    assert rng.crops == 11


def test_a_ratio_of_one_tests_nothing():
    rng = Script((0, 0))
    assert transforms.varied_crop(rng, halves(), (10, 10), 1.0) == Crop(0, 0)


def test_rare_class_crop_needs_more_than_the_minimum():
    rng = Script((0, 15), (0, 16), (0, 17))  # 50, 60, 70 pixels of sky
    at = transforms.rare_class_crop(rng, halves(), (10, 10), 0.75, train_id=10, min_pixels=60)
    assert at == Crop(17, 0)


def test_rare_class_crop_tests_ten_varied_crops_and_keeps_the_eleventh():
    rng = Script(*((0, 13 + i % 5) for i in range(11)))
    at = transforms.rare_class_crop(rng, halves(), (10, 10), 0.75, train_id=4, min_pixels=0)
    assert at == Crop(13, 0)
    assert rng.crops == 11


def test_cut_mirrors_image_and_label_alike():
    label = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = np.stack([label, label + 50, label + 100], axis=2)
    cut = cut_image(image, Crop(1, 1), (2, 2), flip=True)
    assert cut.flags["C_CONTIGUOUS"]
    assert cut[0].tolist() == cut_label(label, Crop(1, 1), (2, 2), flip=True).tolist() == [[6, 5], [10, 9]]
    assert cut[2].tolist() == [[106, 105], [110, 109]]


@pytest.mark.parametrize("flip", [False, True])
def test_small_images_are_padded_right_and_below_with_what_normalises_to_zero(flip):
    image = np.full((2, 3, 3), 200, dtype=np.uint8)
    label = np.ones((2, 3), dtype=np.uint8)
    cut = cut_label(label, Crop(0, 0), (4, 4), flip=flip)
    assert cut.tolist() == [[1, 1, 1, 255], [1, 1, 1, 255], [255] * 4, [255] * 4]
    padded = Normalise()(torch.from_numpy(cut_image(image, Crop(0, 0), (4, 4), flip=flip)))
    assert padded.shape == (3, 4, 4)
    assert padded[:, 2:].abs().max() < 0.01
    assert padded[:, :2, :3].min() > 1


def test_normalise():
    image = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 2, 2)
    expected = torch.tensor([(124 - 123.675) / 58.395, (116 - 116.28) / 57.12, (104 - 103.53) / 57.375])
    normal = Normalise()(image)
    assert normal.dtype == torch.float32
    assert torch.allclose(normal[1, :, 1, 1], expected, atol=1e-6)


@pytest.mark.parametrize("size, kept", [((20, 10), True), ((28, 14), True), ((40, 20), False), ((14, 28), True)])
def test_small_pictures_are_only_blown_up_when_asked(size, kept):
    image = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    for scaled in (transforms.scaled_image, lambda a, s, **k: transforms.scaled_label(a[:, :, 0], s, **k)):
        assert (scaled(image, (28, 14), enlarge=False).shape[:2] == image.shape[:2]) == kept
        assert 28 in scaled(image, (28, 14)).shape[:2]

"""What each part of the colour distortion does to a picture; tests/reference compares bytes with mmsegmentation."""

import numpy as np
import pytest

from dida.data.colour_distortion import BRIGHTNESS, CONTRAST, HUE, SATURATION, Distortion, distorted, draw_distortion

NOTHING = Distortion(brightness=None, contrast_first=False, contrast=None, saturation=None, hue=None)
ALL = Distortion(brightness=-20.5, contrast_first=True, contrast=1.3, saturation=0.6, hue=11)


def noise(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pixel(*rgb: int) -> np.ndarray:
    return np.array([[rgb]], dtype=np.uint8)


@pytest.mark.parametrize(
    "part, before, after",
    [
        ({"brightness": 10.9}, (0, 100, 250), (10, 110, 255)),  # decimals are cut off, the ends are kept
        ({"brightness": -10.5}, (0, 100, 250), (0, 89, 239)),
        ({"contrast": 1.5}, (1, 100, 200), (1, 150, 255)),
        ({"saturation": 0.5}, (200, 100, 100), (200, 150, 150)),  # S 127.5 of 255 -> 63
        ({"saturation": 1.5}, (200, 200, 200), (200, 200, 200)),  # grey has no colour to saturate
        ({"hue": 60}, (200, 0, 0), (0, 200, 0)),  # a third of a turn
        ({"hue": -60}, (200, 0, 0), (0, 0, 200)),  # and backwards past 0
    ],
)
def test_one_part_alone(part, before, after):
    out = distorted(pixel(*before), NOTHING._replace(**part))
    assert np.abs(out.astype(int) - pixel(*after)).max() <= 1  # OpenCV rounds on its way through HSV
    if "brightness" in part or "contrast" in part:
        assert np.array_equal(out, pixel(*after))


def test_contrast_stands_on_its_side_of_the_saturation():
    early = NOTHING._replace(contrast_first=True, contrast=1.5, saturation=1.5)
    # White is reached first and takes colour away: 255, 225, 225, whose S of 30 becomes 45.
    assert np.abs(distorted(pixel(200, 150, 150), early) - [255, 210, 210]).max() <= 1
    # S of 64 becomes 96: 200, 125, 125; then all by one half more.
    assert np.abs(distorted(pixel(200, 150, 150), early._replace(contrast_first=False)) - [255, 187, 187]).max() <= 1


def test_the_picture_that_was_given_is_left_alone():
    image = noise()
    out = distorted(image, ALL)
    assert np.array_equal(image, noise())
    assert out.dtype == np.uint8
    assert out.shape == image.shape
    assert not np.array_equal(out, image)
    assert np.array_equal(distorted(image, NOTHING), image)


def test_crop_and_flip_may_come_before_or_after():
    image = noise()
    inside = np.ascontiguousarray(image[3:17, 5:20][:, ::-1])
    assert np.array_equal(distorted(inside, ALL), distorted(image, ALL)[3:17, 5:20][:, ::-1])


def test_draws_stay_in_their_ranges_and_each_part_is_drawn_half_of_the_time():
    rng = np.random.default_rng(0)
    drawn = [draw_distortion(rng) for _ in range(2000)]
    assert 0.45 < np.mean([distortion.contrast_first for distortion in drawn]) < 0.55
    for part, (low, high) in {
        "brightness": BRIGHTNESS,
        "contrast": CONTRAST,
        "saturation": SATURATION,
        "hue": HUE,
    }.items():
        values = [value for distortion in drawn if (value := getattr(distortion, part)) is not None]
        assert 0.45 < len(values) / len(drawn) < 0.55
        reach = 0.05 * (high - low)
        assert low <= min(values) < low + reach
        assert high - reach < max(values) < high
    assert len(set(drawn)) > 1800

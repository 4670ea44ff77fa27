import logging

import numpy as np
import pytest

from dida.data.classes import CITYSCAPES_CLASSES
from dida.data.rare_class import class_chances, rare_classes

NAMES = CITYSCAPES_CLASSES.names


def pixels(rows: list[dict[int, int]]) -> np.ndarray:
    table = np.zeros((len(rows), 19), dtype=np.int64)
    for row, counts in zip(table, rows, strict=True):
        for train_id, n in counts.items():
            row[train_id] = n
    return table


def test_chances_by_hand():
    # shares 0.75, 0.2, 0.05 at T = 0.1: exponents 2.5, 8, 9.5, that is exp(-7), exp(-1.5) and 1
    weights = np.exp([-7.0, -1.5, 0.0])
    chances = class_chances(pixels([{0: 750, 5: 200, 18: 50}])[0], temperature=0.1)
    assert np.allclose(chances[[0, 5, 18]], weights / weights.sum())
    assert np.count_nonzero(chances) == 3


def test_chances_stay_finite_at_the_default_temperature():
    chances = class_chances(pixels([{0: 10**11, 5: 1}])[0], temperature=0.01)
    assert chances[5] == pytest.approx(1)
    assert chances[0] == pytest.approx(np.exp(-100), rel=1e-6)


def test_candidates_have_more_than_the_minimum():
    sampler = rare_classes(pixels([{0: 9000, 3: 3000}, {0: 9000, 3: 3001}, {0: 100, 3: 5000}]), NAMES)
    assert sampler.classes.tolist() == [0, 3]
    assert [files.tolist() for files in sampler.candidates] == [[0, 1], [1, 2]]
    assert sampler.chance.sum() == pytest.approx(1)
    assert sampler.min_crop_pixels == 1500


def test_a_class_without_candidates_is_dropped_with_a_warning(caplog):
    table = pixels([{0: 9000, 3: 4000, 18: 10}])
    with caplog.at_level(logging.WARNING):
        sampler = rare_classes(table, NAMES, temperature=0.1)
    assert sampler.classes.tolist() == [0, 3]
    assert "leaves out bicycle: no file has more than 3000 pixels" in caplog.text
    everything = class_chances(table.sum(axis=0), 0.1)
    assert sampler.chance[0] / sampler.chance[1] == pytest.approx(everything[0] / everything[3])


def test_draws_follow_the_chances():
    sampler = rare_classes(pixels([{0: 60, 3: 40}, {0: 60}, {3: 40}]), NAMES, temperature=0.2, min_pixels=10)
    rng = np.random.default_rng(0)
    draws = [sampler.draw(rng) for _ in range(4000)]
    rare = np.mean([draw.train_id == 3 for draw in draws])
    assert rare == pytest.approx(sampler.chance[1], abs=0.03)
    files = {c: {draw.file for draw in draws if draw.train_id == c} for c in (0, 3)}
    assert files == {0: {0, 1}, 3: {0, 2}}


def test_what_cannot_be_sampled_from_is_refused():
    with pytest.raises(ValueError, match="more than 3000 pixels of any class"):
        rare_classes(pixels([{0: 100}]), NAMES)
    with pytest.raises(ValueError, match="temperature is 0"):
        rare_classes(pixels([{0: 9000}]), NAMES, temperature=0)


@pytest.mark.parametrize("side", [64, 256, 1024])
def test_a_threshold_in_shares_is_the_same_for_pictures_of_any_size(side):
    """Half road, a hundredth pole, a thousandth bicycle, in files of two sizes."""
    total = np.array([side**2, 4 * side**2])
    table = np.zeros((2, 19))
    table[:, 0], table[:, 5], table[:, 18] = total / 2, total / 100, total / 1000
    sampler = rare_classes(table, NAMES, temperature=0.1, min_pixels=0.0015 * total, min_crop_pixels=3.0)
    assert sampler.classes.tolist() == [0, 5]
    assert [files.tolist() for files in sampler.candidates] == [[0, 1], [0, 1]]
    assert sampler.min_crop_pixels == 3.0

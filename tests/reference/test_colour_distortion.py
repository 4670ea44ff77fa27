"""Ten pictures and every draw of mmsegmentation's PhotoMetricDistortion: the same bytes come out of ours."""

from pathlib import Path

import numpy as np
import pytest

from dida.data.colour_distortion import distorted, draw_distortion

RECORD = np.load(Path(__file__).parent / "data" / "pmd.npz")
PICTURES = sum(name.endswith(".in") for name in RECORD.files)


class Script:
    """A generator that returns the recorded draws, and only if it is asked for them: row (kind, low, high, value)."""

    def __init__(self, draws: np.ndarray):
        self.left = draws.tolist()

    def integers(self, low: int, high: int) -> int:
        return int(self._next(1, low, high))

    def uniform(self, low: float, high: float) -> float:
        return self._next(2, low, high)

    def _next(self, *asked: float) -> float:
        *recorded, value = self.left.pop(0)
        assert tuple(recorded) == asked
        return value


@pytest.mark.parametrize("picture", range(PICTURES))
def test_the_same_draws_give_the_same_bytes(picture):
    script = Script(RECORD[f"{picture}.draws"])
    distortion = draw_distortion(script)
    assert not script.left
    bgr = RECORD[f"{picture}.in"]
    assert np.array_equal(distorted(bgr[..., ::-1], distortion)[..., ::-1], RECORD[f"{picture}.out"])


def test_the_record_shows_every_part_done_and_left_out():
    drawn = [draw_distortion(Script(RECORD[f"{picture}.draws"])) for picture in range(PICTURES)]
    for part in ("brightness", "contrast", "saturation", "hue"):
        assert 0 < sum(getattr(distortion, part) is None for distortion in drawn) < PICTURES
    assert {distortion.contrast_first for distortion in drawn if distortion.contrast is not None} == {False, True}

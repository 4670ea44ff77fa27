"""Panels are drawn from what a step leaves behind, whichever method it was."""

import cv2
import numpy as np
import pytest
import torch

from dida.batch import (
    IGNORE,
    MEAN,
    STD,
    Batch,
    Belief,
    InstanceTarget,
    LabelledCrops,
    Mixed,
    PseudoLabel,
    Target,
    Trace,
)
from dida.data.classes import CITYSCAPES_CLASSES
from dida.data.drawing import legend
from dida.method.bank import InstanceBank
from dida.run.panel import CAPTION, COLUMNS, Panel, draw_panel, heat, picture

CLASSES = len(CITYSCAPES_CLASSES)
PANEL = Panel(CITYSCAPES_CLASSES, boundary_classes=2, temperature=0.1)
HW = (64, 128)
DIM = 8
ONE = torch.tensor(1.0)


def drawn(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))


def batch() -> Batch:
    label = torch.full((2, *HW), 0)
    label[:, 20:] = 13
    label[:, 50:] = IGNORE
    return Batch(LabelledCrops(drawn(2, 3, *HW), label), drawn(2, 3, *HW))


def trace(*terms: InstanceTarget, passes: int = 1) -> Trace:
    z = drawn(2, CLASSES, *HW).softmax(1)
    pseudo = PseudoLabel(z.argmax(1), drawn(2, *HW), drawn(2, *HW) > 0.5, torch.tensor(0.5))
    mixed = Mixed(drawn(2, 3, *HW), batch().source.label, drawn(2, *HW), drawn(2, *HW) > 0.5, drawn(2, *HW) > 0.5)
    return Trace({"source": torch.tensor(1.0)}, Target(Belief(z, z, terms), pseudo), (mixed,) * passes, ONE, ONE)


@pytest.fixture
def bank() -> InstanceBank:
    bank = InstanceBank(torch.arange(CLASSES), DIM, CLASSES)
    bank.fill_random(torch.Generator().manual_seed(0))
    return bank


def rows_of(path) -> int:
    """Rows of tiles in a panel: the file is as wide as a row, and the legend is below."""
    pixels = cv2.imread(str(path))
    tile_h, tile_w = HW[0] * 2 + CAPTION + 4, HW[1] * 2 + 8  # 128 pixels become 256
    assert pixels.shape[1] == COLUMNS * tile_w
    rows, rest = divmod(pixels.shape[0] - legend(CITYSCAPES_CLASSES).shape[0], tile_h)
    assert rest == 0
    return rows


def test_a_panel_of_each_stage_of_training(tmp_path, bank):
    embed = InstanceTarget(1.0, drawn(2, DIM, 16, 32), torch.ones(2, CLASSES, *HW))
    nothing = InstanceTarget(1.0, torch.zeros(2, DIM, 16, 32), torch.ones(2, CLASSES, *HW))
    stages = {
        "source-only": (Trace({}, None, (), ONE, ONE), 1),
        "before the bank starts": (trace(), 3),
        "no embedding": (trace(nothing), 3),
        "with the bank": (trace(nothing, embed), 4),
        "with a second pass over the target": (trace(nothing, embed, passes=2), 6),
    }
    for name, (left_behind, rows) in stages.items():
        path = tmp_path / name / "panel.png"
        PANEL.save(path, batch(), left_behind, bank)
        assert rows_of(path) == rows, name


def test_images_come_back_as_they_were():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    normalised = (torch.from_numpy(pixels).permute(2, 0, 1) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]
    np.testing.assert_array_equal(picture(normalised), pixels)


def test_tiles_are_enlarged_without_blur():
    tile = np.zeros((128, 128, 3), dtype=np.uint8)
    tile[::2] = 200
    grid = draw_panel([("stripes", tile)], CITYSCAPES_CLASSES)
    inside = grid[CAPTION : CAPTION + 256, 4 : 4 + 256]
    np.testing.assert_array_equal(inside, np.kron(tile, np.ones((2, 2, 1), dtype=np.uint8)))


def test_large_crops_keep_their_size():
    crop = np.zeros((512, 512, 3), dtype=np.uint8)
    drawn = draw_panel([("crop", crop)], CITYSCAPES_CLASSES)
    assert drawn.shape[0] == 512 + CAPTION + 4 + legend(CITYSCAPES_CLASSES).shape[0]


def test_heat_takes_shares_and_masks():
    assert np.array_equal(heat(torch.tensor([[False, True]])), heat(torch.tensor([[0.0, 1.0]])))


def test_a_panel_that_cannot_be_written_is_an_error(tmp_path, bank):
    (tmp_path / "panel.png").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        PANEL.save(tmp_path / "panel.png", batch(), Trace({}, None, (), ONE, ONE), bank)

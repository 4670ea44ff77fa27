"""Classes in a picture."""

import numpy as np

from dida.batch import IGNORE
from dida.data.classes import CITYSCAPES_CLASSES, ClassSet
from dida.data.drawing import legend, overlay


def test_an_overlay_shows_the_image_where_there_is_no_class():
    image = np.full((1, 2, 3), 100, dtype=np.uint8)
    shown = overlay(image, np.array([[13, IGNORE]], dtype=np.uint8), CITYSCAPES_CLASSES)
    np.testing.assert_allclose(shown[0, 0], (100 + CITYSCAPES_CLASSES.palette[13].astype(float)) / 2, atol=0.5)
    np.testing.assert_array_equal(shown[0, 1], image[0, 1])


def test_legend_and_overlay_are_of_the_runs_classes():
    two = ClassSet(("barn", "cow"), ((200, 0, 0), (0, 200, 0)), things=(1,), label_ids=(1, 2))
    key = legend(two)
    assert len(key) < len(legend(CITYSCAPES_CLASSES))
    assert {(200, 0, 0), (0, 200, 0)} <= set(map(tuple, key.reshape(-1, 3).tolist()))
    grey = np.full((1, 3, 3), 100, dtype=np.uint8)
    shown = overlay(grey, np.array([[0, 1, 2]], dtype=np.uint8), two)
    assert shown.tolist() == [[[150, 50, 50], [50, 150, 50], [100, 100, 100]]]  # 2 is no class of these

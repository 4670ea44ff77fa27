"""What a network says, counted: by hand-made scores."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dida.batch import IGNORE, Prediction
from dida.config import Config
from dida.data.classes import ClassSet
from dida.data.domains import UnlabelledDomain
from dida.data.labelled_images import LabelledImage
from dida.report.measure import BINS, Measurement, WithoutLabels, measure_run
from dida.use.evaluate import WHOLE_IMAGE
from dida.use.trained import Trained
from tests.data.factories import make_folder

TWO = ClassSet(("road", "sky"), ((0, 0, 0), (9, 9, 9)), (), (0, 1))


class Fixed(nn.Module):
    """Says the same of every picture: `share` [H, W], the probability of class 1."""

    def __init__(self, share):
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, image):
        logits = torch.stack([(1 - self.share).log(), self.share.log()])[None]
        return Prediction(logits, logits, logits)


def look(label, device: str = "cpu", **shares) -> Measurement:
    networks = {name: Fixed(share).to(device) for name, share in shares.items()}
    trained = Trained(None, 1, Config(), TWO, networks)
    label = torch.tensor(label, dtype=torch.uint8)
    image = LabelledImage(torch.zeros(3, *label.shape, dtype=torch.uint8), label, "a.png", "", {})
    return measure_run(trained, [image], inference=WHOLE_IMAGE, workers=0, title="")


def test_pixels_are_counted_by_label_and_prediction_and_255_only_where_no_label_is_needed():
    found = look([[0, 1], [1, IGNORE]], student=[[0.2, 0.9], [0.4, 0.9]]).networks["student"]
    assert found.pixels_CC.tolist() == [[1, 0], [1, 1]]
    assert found.said_C.tolist() == [2, 2]
    assert found.picture_iou.tolist() == pytest.approx([0.5])  # each of the two classes 1 of 2


def test_the_calibration_error_is_the_distance_between_confidence_and_accuracy():
    # Confidence 0.8 and 0.9 right, 0.6 wrong: each in a bin of its own, distances 0.2, 0.1 and 0.6.
    found = look([[0, 1], [1, IGNORE]], student=[[0.2, 0.9], [0.4, 0.9]]).networks["student"]
    assert found.calibration_error == pytest.approx((0.2 + 0.1 + 0.6) / 3, abs=1e-6)
    assert found.bins.shape == (3, BINS)
    # Two pixels of one bin are averaged before they are compared: 0.75 sure, and half of them right.
    same = look([[0, 1]], student=[[0.25, 0.25]]).networks["student"]
    assert same.calibration_error == pytest.approx(0.25, abs=1e-6)


def test_what_needs_no_label_is_measured_without_any():
    found = look([[IGNORE] * 3], student=[[0.5, 0.99, 0.5]], teacher=[[0.4, 0.01, 0.3]])
    student = found.networks["student"]
    certain = -(0.99 * math.log2(0.99) + 0.01 * math.log2(0.01))
    assert student.entropy == pytest.approx((1 + certain + 1) / 3, abs=1e-5)
    assert student.confident == pytest.approx(1 / 3)  # above the threshold of 0.968
    assert found.agreement == pytest.approx(2 / 3)
    assert math.isnan(student.calibration_error)
    assert np.isnan(student.picture_iou).all()


@pytest.mark.gpu
def test_on_a_gpu_the_same_is_counted():
    shares = {"student": [[0.23, 0.91], [0.42, 0.93]], "teacher": [[0.63, 0.87], [0.38, 0.99]]}
    ours, theirs = (look([[0, 1], [1, IGNORE]], device, **shares) for device in ("cuda", "cpu"))
    assert ours.agreement == theirs.agreement
    for name, expected in theirs.networks.items():
        for field in ("pixels_CC", "band_CC", "said_C", "bins", "entropy", "confident", "picture_iou"):
            np.testing.assert_allclose(getattr(ours.networks[name], field), getattr(expected, field), rtol=1e-5)


def test_one_network_agrees_with_nobody():
    assert look([[0, 1]], student=[[0.2, 0.9]]).agreement is None


def test_pictures_without_labels_are_those_of_the_domain_at_their_own_size(tmp_path):
    images = sorted((make_folder(tmp_path / "own", 2, (70, 90)) / "images").iterdir())
    found = WithoutLabels(UnlabelledDomain("own", "val", tmp_path, tuple(images)), (35, 45), enlarge=False)
    assert len(found) == 2
    assert found[1].image.shape == (3, 45, 35)
    assert found[1].label.shape == (90, 70)
    assert (found[1].label == IGNORE).all()

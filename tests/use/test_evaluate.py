"""Evaluation: hand-worked scores, the ways to look at an image, and the resolution that counts."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dida.batch import IGNORE, Prediction
from dida.data.classes import CITYSCAPES_CLASSES, ClassSet
from dida.data.labelled_images import LabelledImage
from dida.models.segmentor import Segmentor
from dida.use.evaluate import (
    WHOLE_IMAGE,
    Inference,
    NothingToScore,
    boundary_band,
    class_scores,
    confusion,
    evaluate,
    evaluating,
    mean_of_known,
    predict,
    score,
)

CLASSES, NAMES, SUBSETS = len(CITYSCAPES_CLASSES), CITYSCAPES_CLASSES.names, CITYSCAPES_CLASSES.subsets


class PixelNet(nn.Module):
    """Scores that depend on a pixel alone, so every way of cutting the image must give the same."""

    def __init__(self, classes: int = CLASSES):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, classes, 1)

    def forward(self, image):
        logits = self.conv(self.norm(image))
        return Prediction(logits, logits, logits)


class WideNet(PixelNet):
    """Scores that depend on the neighbourhood, and not symmetrically."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, CLASSES, 5, padding=2)


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def sample(size_hw, label_hw, seed: int = 0) -> LabelledImage:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES + 1, label_hw).astype(np.uint8)
    label[label == CLASSES] = IGNORE
    picture = rng.integers(0, 256, (3, *size_hw), dtype=np.uint8)
    return LabelledImage(torch.from_numpy(picture), torch.from_numpy(label), f"street_{seed}.png", "", {})


def test_three_classes_by_hand():
    label = torch.tensor([[0, 0, 1], [1, 2, IGNORE]])
    predicted = torch.tensor([[0, 1, 1], [1, 0, 2]], dtype=torch.uint8)
    matrix = confusion(label, predicted, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert matrix.dtype == torch.int64
    found = score(matrix, {3: (0, 1, 2), 2: (0, 1)})
    np.testing.assert_allclose(found.iou, [1 / 3, 2 / 3, 0])
    np.testing.assert_allclose(found.accuracy, [1 / 2, 1, 0])
    assert found.all_accuracy == pytest.approx(3 / 5)
    assert found.mean_accuracy == pytest.approx(1 / 2)
    assert found.mean_iou == pytest.approx({3: 1 / 3, 2: 1 / 2})


def test_confusion_counts_bytes_as_it_counts_int64():
    label, predicted = torch.randint(0, 3, (4, 5)), torch.randint(0, 3, (4, 5))
    assert torch.equal(confusion(label, predicted, 3), confusion(label.byte(), predicted.byte(), 3))


def test_means_are_over_labelled_classes_whatever_is_predicted():
    """Two networks scored on the same labels are compared over the same classes."""
    matrix = torch.zeros(3, 3, dtype=torch.int64)
    matrix[0, 0], matrix[0, 1] = 3, 1  # class 1 is predicted but never labelled, class 2 is neither
    found = score(matrix, {3: (0, 1, 2), 1: (2,)})
    np.testing.assert_allclose(found.iou, [3 / 4, 0, math.nan])
    np.testing.assert_allclose(found.accuracy, [3 / 4, math.nan, math.nan])
    assert found.mean_iou[3] == pytest.approx(3 / 4)
    assert mean_of_known(found.iou) == pytest.approx(3 / 8)
    assert math.isnan(found.mean_iou[1])
    assert found.mean_accuracy == pytest.approx(3 / 4)
    assert math.isnan(mean_of_known(np.full(2, math.nan)))


@pytest.mark.parametrize(
    "declared, wrong, expected",
    [
        ((0, 13), (16, 17), {2: 1 - 1 / 4096}),
        ((0, 13), (), {2: 1.0}),
        ((0, 13, 5), (16, 17), {3: 1 - 1 / 4096}),  # 5 is declared, and no pixel is labelled so
        (range(19), (16, 17), {19: 1 - 1 / 4096, 16: 1 - 1 / 4096, 13: 1 - 1 / 4096}),
    ],
)
def test_a_mean_is_over_the_declared_classes(declared, wrong, expected):
    """FAULTS 11: half road, half car, right but for one pixel of each that is taken for what the labels do not hold."""
    label = torch.zeros(64, 128, dtype=torch.uint8)
    label[:, 64:] = 13
    predicted = label.clone()
    for column, other in zip((0, 127), wrong, strict=False):
        predicted[0, column] = other
    found = score(confusion(label, predicted, CLASSES), CITYSCAPES_CLASSES.subsets_among(declared))
    assert found.mean_iou == pytest.approx(expected)


def test_means_over_19_16_and_13_classes():
    matrix = torch.diag(torch.full((CLASSES,), 100))
    for absent_from_synthia in ("terrain", "truck", "train"):
        c = NAMES.index(absent_from_synthia)
        matrix[c, c], matrix[c, NAMES.index("road")] = 0, 100  # taken for road: they count against road
    wall = NAMES.index("wall")
    matrix[wall, wall] = 0
    matrix[wall, NAMES.index("building")] = 100
    found = score(matrix, SUBSETS)
    road, building = 100 / 400, 100 / 200
    assert found.mean_iou[19] == pytest.approx((13 + road + building) / 19)
    assert found.mean_iou[16] == pytest.approx((13 + road + building) / 16)  # wall is one of the 16
    assert found.mean_iou[13] == pytest.approx((11 + road + building) / 13)  # without wall, fence and pole


def test_confusion_agrees_with_counting():
    drawn = sample((4, 4), (37, 41))
    predicted = torch.randint(0, CLASSES, (37, 41), generator=torch.Generator().manual_seed(1))
    matrix = confusion(drawn.label, predicted, CLASSES)
    expected = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    for truth, guess in zip(drawn.label.flatten().tolist(), predicted.flatten().tolist(), strict=True):
        if truth != IGNORE:
            expected[truth, guess] += 1
    np.testing.assert_array_equal(matrix.numpy(), expected)


def test_no_pixel_of_an_aerial_picture_is_lost():
    """36 megapixels, as those of Potsdam are; a float32 counts to 16 without a gap."""
    label = torch.zeros(6000, 6000, dtype=torch.uint8)
    label[0, 0] = 1
    assert confusion(label, torch.zeros_like(label), 2).tolist() == [[6000**2 - 1, 0], [1, 0]]


def test_the_band_reaches_three_pixels_to_either_side_of_a_boundary():
    label = np.zeros((5, 12), dtype=np.uint8)
    label[:, 6:] = 7
    assert boundary_band(label).tolist() == [[False] * 3 + [True] * 6 + [False] * 3] * 5
    corner = np.zeros((9, 9), dtype=np.uint8)
    corner[0, 0] = 7  # a diagonal counts as far as its longer side
    assert np.argwhere(boundary_band(corner)).max() == 3
    assert boundary_band(corner).sum() == 16


def test_the_edge_of_void_and_of_the_image_is_no_boundary():
    label = np.full((6, 6), 18, dtype=np.uint8)
    label[:, 3:] = IGNORE
    assert not boundary_band(label).any()
    assert not boundary_band(np.full((6, 6), IGNORE, dtype=np.uint8)).any()
    label[:, 5] = 0  # three columns from the 18s: across the void, and still within reach
    assert np.argwhere(boundary_band(label).any(0)).ravel().tolist() == [2, 5]


@pytest.mark.parametrize("width", [1, 3])
def test_the_band_agrees_with_looking_at_every_window(width):
    rng = np.random.default_rng(width)
    label = np.kron(rng.choice([0, 5, 18, IGNORE], (5, 6)), np.ones((5, 7))).astype(np.uint8)
    padded = np.pad(label, width, constant_values=IGNORE)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * width + 1, 2 * width + 1))
    other = ((windows != label[:, :, None, None]) & (windows != IGNORE)).any((2, 3))
    expected = other & (label != IGNORE)
    assert expected.any()
    assert not expected.all()
    np.testing.assert_array_equal(boundary_band(label, width), expected)


@pytest.mark.parametrize("inference", [Inference(*w) for w in ((8, 5), (8, 8), (8, 3), (64, 20), (13, 13))], ids=str)
def test_windows_of_a_pixelwise_network_agree_with_the_whole(inference):
    net = PixelNet().eval()
    whole = class_scores(net, image(13, 17), WHOLE_IMAGE)
    torch.testing.assert_close(class_scores(net, image(13, 17), inference), whole)


def test_overlapping_windows_are_averaged():
    net = WideNet().eval()
    x = image(32, 48)
    left, right = net(x[..., :32]).logits, net(x[..., 16:]).logits
    expected = torch.cat([left[..., :16], (left[..., 16:] + right[..., :16]) / 2, right[..., 16:]], 3)
    torch.testing.assert_close(class_scores(net, x, Inference(32, 16)), expected)


@pytest.mark.parametrize("window", [0, 8])
def test_with_the_mirror_image_left_and_right_are_alike(window):
    net, x = WideNet().eval(), image(8, 16)
    once, both = (
        Inference(window, 4),
        Inference(window, 4, flip=True),
    )  # of this width, windows from either end are the same
    assert not torch.allclose(class_scores(net, x, once).flip(3), class_scores(net, x.flip(3), once))
    torch.testing.assert_close(class_scores(net, x, both).flip(3), class_scores(net, x.flip(3), both))


@pytest.mark.parametrize("window, stride", [(8, 0), (8, 9), (-1, 1)])
def test_a_window_that_would_leave_gaps_is_refused(window, stride):
    with pytest.raises(ValueError, match=f"window {window} and stride {stride}"):
        Inference(window, stride)


def test_scores_are_enlarged_before_the_argmax():
    net = PixelNet().eval()
    x = image(6, 8)
    expected = nn.functional.interpolate(net(x).logits, size=(12, 16), mode="bilinear", align_corners=False).argmax(1)
    predicted = predict(net, x, (12, 16), WHOLE_IMAGE)
    assert predicted.dtype == torch.uint8
    assert torch.equal(predicted.long(), expected)


def test_of_equal_scores_the_first_class_is_taken():
    """As argmax does."""
    scores = torch.randint(0, 3, (2, CLASSES, 32, 48), generator=torch.Generator().manual_seed(0)).float()
    net = nn.Module()
    net.forward = lambda x: Prediction(scores, scores, scores)
    predicted = predict(net, torch.zeros(2, 3, 32, 48), (32, 48), WHOLE_IMAGE)
    assert torch.equal(predicted.long(), scores.argmax(1))


def test_what_a_prediction_is_handed_to_may_refuse_it():
    """A full disk, in a thread beside the networks."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device", "a.png")

    pictures = [sample((6, 8), (6, 8), i) for i in range(9)]
    with pytest.raises(OSError, match="No space left"):
        evaluate({"student": PixelNet()}, pictures, CITYSCAPES_CLASSES, on_prediction=refuse)


def test_every_label_is_scored_at_its_own_size():
    samples = [sample((6, 8), (12, 16), 1), sample((6, 8), (12, 16), 2), sample((5, 9), (10, 18), 3)]
    samples[0].label[:, :10] = 3  # the others are noise, all of it near a boundary
    student, teacher = PixelNet(), WideNet()
    seen = {}
    found = evaluate(
        {"student": student, "teacher": teacher},
        samples,
        CITYSCAPES_CLASSES,
        on_prediction=lambda name, path, train_ids: seen.__setitem__((name, path), train_ids),
    )
    assert found.images == 3
    assert found.sizes == {(16, 12): 2, (18, 10): 1}
    assert seen["teacher", "street_3.png"].shape == (10, 18)
    for name in ("student", "teacher"):
        total = sum(confusion(s.label, torch.from_numpy(seen[name, s.path]), CLASSES) for s in samples)
        np.testing.assert_array_equal(found.scores[name].iou, score(total, SUBSETS).iou)
        near = sum(
            confusion(
                torch.from_numpy(np.where(boundary_band(s.label.numpy()), s.label.numpy(), IGNORE)),
                torch.from_numpy(seen[name, s.path]),
                CLASSES,
            )
            for s in samples
        )
        np.testing.assert_array_equal(found.band[name].iou, score(near, SUBSETS).iou)
        assert total.sum() == sum(int((s.label != IGNORE).sum()) for s in samples)


@pytest.mark.gpu
def test_on_a_gpu_networks_are_scored_as_on_the_cpu():
    samples = [sample((64, 96), (64, 96), i) for i in range(9)]
    seen = {}

    def keep(name, path, train_ids):
        seen[path] = train_ids

    ours = evaluate({"student": PixelNet().to("cuda")}, samples, CITYSCAPES_CLASSES, on_prediction=keep)
    theirs = evaluate({"student": PixelNet()}, samples, CITYSCAPES_CLASSES)
    assert ours[2:] == theirs[2:]  # pictures, sizes, share and ids
    for found, expected in ((ours.scores, theirs.scores), (ours.band, theirs.band)):
        np.testing.assert_allclose(found["student"].iou, expected["student"].iou, atol=0.01)  # convolutions round
    total = sum(confusion(s.label, torch.from_numpy(seen[s.path]), CLASSES) for s in samples)
    np.testing.assert_array_equal(ours.scores["student"].iou, score(total, SUBSETS).iou)


def test_a_set_of_three_classes_is_scored_as_one():
    three = ClassSet(("a", "b", "c"), ((0, 0, 0),) * 3, (), (0, 1, 2), means={2: (0, 2)})
    drawn = sample((6, 8), (6, 8))
    drawn = drawn._replace(label=torch.where(drawn.label < 3, drawn.label, IGNORE))
    found = evaluate({"student": PixelNet(3)}, [drawn], three).scores["student"]
    assert found.iou.shape == (3,)
    assert set(found.mean_iou) == {3, 2}
    assert found.mean_iou[2] == pytest.approx(np.nanmean(found.iou[[0, 2]]))


def test_networks_are_left_in_the_modes_they_were_in():
    teacher = WideNet().eval()
    teacher.norm.train()  # as a teacher that normalises with its own batch
    student = PixelNet().train()
    before = [module.training for net in (teacher, student) for module in net.modules()]
    running = teacher.norm.running_mean.clone()
    with evaluating(teacher, student):
        assert not any(module.training for net in (teacher, student) for module in net.modules())
        assert torch.is_inference_mode_enabled()
    evaluate({"teacher": teacher}, [sample((6, 8), (6, 8))], CITYSCAPES_CLASSES)
    assert [module.training for net in (teacher, student) for module in net.modules()] == before
    assert torch.equal(teacher.norm.running_mean, running)


def test_labels_without_any_class_are_refused():
    nothing = sample((6, 8), (6, 8))._replace(label=torch.full((6, 8), IGNORE, dtype=torch.uint8))
    with pytest.raises(NothingToScore, match="none of the 1 labels"):
        evaluate({"student": PixelNet()}, [nothing], CITYSCAPES_CLASSES)


@pytest.mark.parametrize("size", [(1, 1), (10, 200), (31, 40), (200, 3), (16, 16)])
@pytest.mark.parametrize("inference", [WHOLE_IMAGE, Inference(16, 8), Inference(64, 64, flip=True)])
def test_pictures_smaller_than_an_encoder_can_look_at_are_labelled(size, inference):
    network = Segmentor("mit_b0", CLASSES, 16, 0.0)
    picture = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with evaluating(network):
        assert predict(network, picture, size, inference).shape == (1, *size)

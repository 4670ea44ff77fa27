"""Scores of a trained network: every number again from the label maps, and the table that shows them."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from dida.config import changed
from dida.data import domains
from dida.data.classes import CITYSCAPES_CLASSES, ClassSet
from dida.data.image_file import read_label
from dida.use.evaluate import Inference, boundary_band
from dida.use.scoring import Report, percent, score_domain, score_table
from dida.use.trained import load_trained
from tests.data.factories import make_cityscapes, make_folder
from tests.engine.checkpoints import tiny_config, write_checkpoint

NAMES, CLASSES = CITYSCAPES_CLASSES.names, len(CITYSCAPES_CLASSES)
CPU = torch.device("cpu")
WHOLE = Inference(0, 1)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "step_000400.pt"
    return load_trained(write_checkpoint(path, tiny_config(data)), CPU)


def scored(trained, domain, **options) -> Report:
    arguments = {"size": (64, 32), "inference": WHOLE, "workers": 0}
    return score_domain(trained, domain, **arguments | options)


def test_every_number_is_that_of_the_label_maps(trained, data, tmp_path):
    domain = domains.labelled("cityscapes", data, "val")
    report = scored(trained, domain, save_to=tmp_path)
    facts = ("domain", "split", "images", "size", "scored_at", "step", "method", "seed", "src", "tgt", "toy", "window")
    assert [report[k] for k in facts] == [
        "cityscapes", "val", 3, "64x32", ["128x64"], 400, "dida", 7, "gta5", "cityscapes", False, 0
    ]  # fmt: skip
    assert report["checkpoint"].endswith("step_000400.pt")

    truth = np.stack([read_label(label, domain.encoding(i)) for i, label in enumerate(domain.labels)])
    stems = [image.stem for image in domain.images]
    guess, label_ids, colour = (
        np.stack([np.asarray(Image.open(tmp_path / kind / f"{stem}.png")) for stem in stems])
        for kind in ("train_ids", "label_ids", "colour")
    )
    assert guess.shape == truth.shape
    assert guess.max() < CLASSES
    np.testing.assert_array_equal(label_ids, np.array(CITYSCAPES_CLASSES.label_ids)[guess])
    np.testing.assert_array_equal(colour, CITYSCAPES_CLASSES.palette[guess])
    valid = truth < CLASSES
    student = report["student"]
    for c, name in enumerate(NAMES):
        both, either = (valid & (truth == c) & (guess == c)).sum(), (valid & ((truth == c) | (guess == c))).sum()
        expected = pytest.approx(100 * both / either, abs=1e-4) if either else None
        assert student["IoU"][name] == expected
    labelled = [student["IoU"][name] for c, name in enumerate(NAMES) if (truth == c).any()]
    assert student["mIoU"]["19"] == pytest.approx(np.mean(labelled), abs=1e-3)
    assert (
        report["counted"]["19"] == len(labelled) < CLASSES
    )  # a class without a pixel is in no mean, whoever predicts it
    assert student["aAcc"] == pytest.approx(100 * (truth == guess)[valid].mean(), abs=1e-4)
    assert set(report["teacher"]) == {"mIoU", "aAcc", "mAcc", "IoU", "Acc", "band"}
    assert report["band_pixels"] == 3
    near = np.stack([boundary_band(label) for label in truth])
    assert 0 < near.sum() < valid.sum()
    road = NAMES.index("road")
    both, either = (near & (truth == road) & (guess == road)).sum(), (near & ((truth == road) | (guess == road))).sum()
    assert student["band"]["IoU"]["road"] == pytest.approx(100 * both / either, abs=1e-4)
    assert report["teacher"]["IoU"] != student["IoU"]
    json.dumps(report, allow_nan=False)


def relabelled(folder, change):
    """Apply `change` to the ids of every label below a folder."""
    for path in folder.rglob("*_labelIds.png"):
        Image.fromarray(change(np.array(Image.open(path)))).save(path)


TRAIN_IDS = np.full(256, 255, np.uint8)
TRAIN_IDS[list(CITYSCAPES_CLASSES.label_ids)] = range(CLASSES)


@pytest.mark.parametrize(
    "change, warned",
    [
        (lambda ids: ids, ()),
        (lambda ids: TRAIN_IDS[ids], ("raw id 255: not defined", "only ")),  # where label ids belong
        (lambda ids: np.where(ids < 12, 0, ids).astype(np.uint8), ("only ",)),  # void
        (lambda ids: np.where(ids < 12, 77, ids).astype(np.uint8), ("raw id 77: not defined", "only ")),
        (lambda ids: np.where(ids > 23, 200, ids).astype(np.uint8), ("raw id 200: not defined",)),
    ],
)
def test_the_share_of_the_pixels_that_scores_are_of_is_said(trained, tmp_path, caplog, change, warned):
    relabelled(make_cityscapes(tmp_path, val=2), change)
    domain = domains.labelled("cityscapes", tmp_path, "val")
    report = scored(trained, domain)
    of_class = np.mean([read_label(label, domain.encoding(i)) < CLASSES for i, label in enumerate(domain.labels)])
    assert report["scored_pixels"] == pytest.approx(100 * of_class, abs=1e-4)
    assert any(line.startswith(f"{100 * of_class:.1f} % of all pixels are labelled") for line in score_table(report))
    for words in warned:
        assert words in caplog.text
    assert bool(warned) == bool(caplog.text)
    for line in caplog.text.splitlines():
        assert "not defined" not in line or line.endswith("_gtFine_labelIds.png")  # the file to look at
    known = [255, 77, 200]
    assert list(report["unknown_ids"]) == [str(raw) for raw in known if f"raw id {raw}:" in caplog.text]


def test_the_table_shows_the_report(trained, data):
    report = scored(trained, domains.labelled("cityscapes", data, "val"))
    lines = list(score_table(report))
    assert lines[0] == "cityscapes val: 3 images at 64x32"
    assert lines[1].startswith("19 classes (16 and 13 below), student and teacher")
    assert lines[1].endswith("(128x64)")
    assert lines[2].startswith("dida from gta5, mit_b0, seed 7, step 400: ")
    (head,) = [i for i, line in enumerate(lines) if line.startswith("class ")]
    rows = lines[head + 1 : head + 1 + CLASSES]
    assert [line.split("  ")[0] for line in rows] == list(NAMES)
    assert not any("toy" in line for line in lines[:2])
    counted = report["counted"]["19"]
    absent = [name for name in NAMES if name in report["without_pixels"]]
    assert len(absent) == CLASSES - counted > 0
    assert f"no pixel is labelled {', '.join(absent)}: in no mean" in lines
    (band,) = [line for line in lines if line.startswith(f"band mIoU ({counted} classes)")]
    assert f"{report['student']['band']['mIoU']['19']:.2f}" in band
    for name, line in zip(NAMES, rows, strict=True):
        cells = [report[n][what][name] for n in ("student", "teacher") for what in ("IoU", "Acc")]
        assert line.removeprefix(name).split() == ["-" if x is None else f"{x:.2f}" for x in cells]


def test_the_way_of_looking_is_said(trained, data):
    domain = domains.labelled("cityscapes", data, "val")
    report = scored(trained, domain, size=(128, 64), inference=Inference(32, 16, flip=True), workers=1)
    assert [report[k] for k in ("window", "stride", "flip", "size")] == [32, 16, True, "128x64"]
    assert "at 128x64, window 32 every 16, with mirror image" in next(score_table(report))
    assert report["student"] != scored(trained, domain)["student"]


def test_a_toy_domain_says_that_it_is_one(trained, data):
    report = scored(trained, domains.labelled("toy-cityscapes", data, "val"))
    assert report["toy"] is True
    title = next(score_table(report))
    assert title.startswith("toy-cityscapes val (toy benchmark: not to be compared with published numbers)")


def test_a_synthia_run_is_scored_on_16_classes_first(data, tmp_path):
    trained = load_trained(write_checkpoint(tmp_path / "s.pt", changed(tiny_config(data), src="synthia")), CPU)
    report = scored(trained, domains.labelled("cityscapes", data, "val"))
    assert report["headline"] == 16
    lines = list(score_table(report))
    assert lines[1].startswith("16 classes (19 and 13 below)")
    counted = [f"mIoU ({report['counted'][n]} classes)" for n in ("16", "19", "13")]
    assert [line.split("  ")[0] for line in lines if line.startswith("mIoU")] == counted


def test_pictures_of_several_sizes_are_scored_at_their_own(trained, tmp_path):
    make_folder(tmp_path / "a", 1, (128, 64))
    make_cityscapes(tmp_path, (128, 64), val=1)
    make_cityscapes(tmp_path, (96, 48), folder="larger", val=1)
    for kind in ("leftImg8bit", "gtFine"):
        (tmp_path / "larger" / kind / "val" / "aachen").rename(tmp_path / "cityscapes" / kind / "val" / "bonn")
    for path in list((tmp_path / "cityscapes").rglob("bonn/aachen_*")):
        path.rename(path.with_name(path.name.replace("aachen", "bonn")))
    report = scored(trained, domains.labelled("cityscapes", tmp_path, "val"))
    assert report["scored_at"] == ["96x48", "128x64"]
    assert "(2 sizes from 96x48 to 128x64)" in list(score_table(report))[1]


def test_other_classes_have_a_table_of_their_own(data, tmp_path):
    few = ClassSet(("road", "car"), ((0, 0, 0), (9, 9, 9)), (), (1, 2))
    trained = load_trained(write_checkpoint(tmp_path / "x.pt", tiny_config(data), class_set=few), CPU)
    domain = domains.labelled("cityscapes", data, "val")
    report = scored(trained, domain)
    assert list(report["student"]["IoU"]) == ["road", "car"]
    assert list(report["student"]["mIoU"]) == ["2"]
    lines = list(score_table(report))
    assert lines[1].startswith("2 classes, student and teacher")


@pytest.mark.parametrize("share, expected", [(0.5, 50.0), (1 / 3, 33.3333), (math.nan, None), (0.0, 0.0)])
def test_percent_has_four_decimals_and_no_nan(share, expected):
    assert percent(share) == expected


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_the_label_maps_are_those_of_the_network_asked_for(trained, data, tmp_path, network):
    domain = domains.labelled("cityscapes", data, "val")
    report = scored(trained, domain, save_to=tmp_path, network=network)
    truth = np.stack([read_label(label, domain.encoding(i)) for i, label in enumerate(domain.labels)])
    guess = np.stack([np.asarray(Image.open(tmp_path / "train_ids" / f"{image.stem}.png")) for image in domain.images])
    valid = truth < CLASSES
    assert report[network]["aAcc"] == pytest.approx(100 * (truth == guess)[valid].mean(), abs=1e-4)

"""The toy benchmark: the same pixels everywhere, the real layouts and encodings, the promised statistics."""

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dida.data import sweep
from dida.data.classes import CITYSCAPES_CLASSES, CITYSCAPES_TO_TRAIN
from dida.data.domains import labelled, unlabelled
from dida.data.toy import DIGEST, Counts, benchmark, generate
from dida.data.toy.benchmark import BENCHMARK, SHIFT, digest, draw_picture, fingerprint, planned_pictures
from dida.data.toy.canvas import Kind
from dida.data.toy.dice import Dice
from dida.data.toy.shapes import HEIGHT, WIDTH
from dida.data.toy.weather import WEATHER

MINI = Counts(source=3, source_val=1, target=3, val=2, test=2)
MINI_DIGEST = "68e264b2143b3dc389998e25d46711b6a7ff31e184cc4ac6ab5e8c57f285cac2"
MINI_WEATHER = {
    "night": "35d90939d962908974b10360cf9043488f26389e9a961c145f9e873e683fd43e",
    "fog": "8d0a4c5e3b929d6a156daffcea8be03a20f8c0fa6df0dca963ac43366320809a",
}
A_TENTH = "23affb7c8af11f64848bd33753371ca108b2876ad992306e737e9a7fbc7e4d9e"  # of the pictures by day
EGO = 255  # the hood, after mapping to train ids


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> Path:
    """A data root that holds a miniature."""
    root = tmp_path_factory.mktemp("data")
    generate(root, counts=MINI)
    return root


@pytest.fixture(scope="module")
def sample() -> dict[str, np.ndarray]:
    """Train ids [120, H, W] of the first training pictures of each domain."""
    labels = {"source": [], "target": []}
    for picture in planned_pictures(Counts(source=120, source_val=0, target=120, val=0, test=0)):
        labels["target" if picture.shift else "source"].append(draw_picture(picture)[1])
    return {domain: CITYSCAPES_TO_TRAIN.apply(np.stack(found)) for domain, found in labels.items()}


def content(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_a_subset_has_the_frozen_pixels():
    assert fingerprint(digest(*draw_picture(picture)) for picture in planned_pictures(MINI)) == MINI_DIGEST


@pytest.mark.parametrize("weather", WEATHER)
def test_a_subset_in_other_weather_has_the_frozen_pixels(weather):
    drawn = fingerprint(digest(*draw_picture(picture)) for picture in planned_pictures(MINI, weather))
    assert drawn == MINI_WEATHER[weather]


def test_every_tenth_picture_has_the_frozen_pixels():
    """By day; `generate`, which everybody's set comes from, refuses other pixels of any of them."""
    some = planned_pictures(BENCHMARK)[::10]
    assert fingerprint(digest(*draw_picture(picture)) for picture in some) == A_TENTH


def in_all_weather(count: int) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """(image, label) of the first validation pictures, as float64 and label ids, by weather."""
    counts = Counts(0, 0, 0, count, 0)
    return {name: [draw_picture(picture) for picture in planned_pictures(counts, name)] for name in DIGEST}


def test_weather_changes_the_light_and_not_the_street():
    drawn = in_all_weather(8)
    for name in WEATHER:
        for (day, label), (other, same) in zip(drawn["day"], drawn[name], strict=True):
            assert np.array_equal(label, same)
            assert np.abs(day.astype(float) - other).mean() > 8


def test_the_night_is_dark_and_noisy():
    drawn = in_all_weather(8)
    sky = {name: [image[label == Kind.SKY] for image, label in drawn[name]] for name in drawn}
    darkness = [np.mean([np.median(one) for one in sky[name]]) for name in ("day", "night")]
    assert darkness[1] < 0.75 * darkness[0]
    for day, night in zip(sky["day"], sky["night"], strict=True):
        assert np.diff(night.astype(float), axis=0).std() > np.diff(day.astype(float), axis=0).std()


def test_fog_hides_what_is_far_and_leaves_what_is_near():
    """The further down a row of road, the nearer it is, and the more of its colour is left."""
    lost = []
    for (day, label), (foggy, _) in zip(*(in_all_weather(12)[name] for name in ("day", "fog")), strict=True):
        change = np.abs(day.astype(float) - foggy).mean(2)
        road = [change[rows][(label == Kind.ROAD)[rows]] for rows in (slice(60, 75), slice(95, 110))]
        lost += [[part.mean() for part in road]] if all(part.size for part in road) else []
    far, near = np.mean(lost, 0)
    assert far > 1.3 * near


def test_weather_is_drawn_beside_the_benchmark(mini):
    before = content(mini)
    outcome = generate(mini, weather="night", counts=MINI)
    assert (outcome.digest, outcome.pictures, outcome.written) == (MINI_WEATHER["night"], 7, 7)
    assert generate(mini, counts=MINI).written == 0  # and is no stray to it
    assert before.items() <= content(mini).items()
    assert len(unlabelled("toy-night", mini, "train").images) == 3
    assert len(labelled("toy-night", mini, "test").labels) == 2
    with pytest.raises(FileNotFoundError):
        labelled("toy-night", mini, "train")
    for folder in ("night", "night-oracle"):
        shutil.rmtree(mini / "toy" / folder)


def test_a_smaller_set_is_the_beginning_of_a_larger_one():
    few = {(p.split, p.index): p for p in planned_pictures(MINI)}
    all_ = {(p.split, p.index): p for p in planned_pictures(BENCHMARK)}
    assert few.items() <= all_.items()


def test_other_processes_write_the_same_files(mini, tmp_path):
    code = f"import sys; from dida.data.toy import Counts, generate; generate(sys.argv[1], counts={MINI})"
    # Another hash seed: nothing may depend on the order of a set.
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert content(tmp_path) == content(mini)


def test_a_pool_draws_what_one_process_draws(mini, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(sweep, "_CHUNK", 4)
    outcome = generate(tmp_path, jobs=2, counts=MINI)
    assert outcome == (tmp_path / "toy", MINI_DIGEST, 11, 11)
    assert content(tmp_path) == content(mini)


def test_layout(mini):
    names = {name for name in content(mini / "toy") if not name.startswith("cityscapes-oracle/")}
    target = {
        *(f"leftImg8bit/train/toyburg/toyburg_00000{i}_000019_leftImg8bit.png" for i in range(3)),
        *(f"leftImg8bit/val/toyhaven/toyhaven_00000{i}_000019_leftImg8bit.png" for i in range(2)),
        *(f"leftImg8bit/test/toymouth/toymouth_00000{i}_000019_leftImg8bit.png" for i in range(2)),
        *(f"gtFine/val/toyhaven/toyhaven_00000{i}_000019_gtFine_labelIds.png" for i in range(2)),
        *(f"gtFine/test/toymouth/toymouth_00000{i}_000019_gtFine_labelIds.png" for i in range(2)),
    }
    assert names == {
        *(f"gta/{kind}/0000{i}.png" for kind in ("images", "labels") for i in (1, 2, 3)),
        *(f"gta-val/{kind}/00001.png" for kind in ("images", "labels")),
        *(f"cityscapes/{name}" for name in target),
    }


def test_target_train_labels_exist_for_the_oracle_only(mini):
    toy = mini / "toy"
    assert not (toy / "cityscapes/gtFine/train").exists()
    target, oracle = content(toy / "cityscapes"), content(toy / "cityscapes-oracle")
    assert target.items() <= oracle.items()
    assert set(oracle) - set(target) == {
        f"gtFine/train/toyburg/toyburg_00000{i}_000019_gtFine_labelIds.png" for i in range(3)
    }


def test_encodings(mini):
    modes = {"images": "RGB", "leftImg8bit": "RGB", "labels": "P", "gtFine": "L"}
    for path in (mini / "toy").rglob("*.png"):
        with Image.open(path) as image:
            kind = path.relative_to(mini / "toy").parts[1]
            assert (image.mode, image.size) == (modes[kind], (WIDTH, HEIGHT)), path
            if image.mode != "RGB":
                assert set(np.unique(image)) <= set(Kind), path
            if image.mode == "P":
                colours = np.array(image.getpalette("RGB")).reshape(-1, 3)
                assert np.array_equal(colours[list(CITYSCAPES_CLASSES.label_ids)], CITYSCAPES_CLASSES.palette)


def test_kinds_are_the_classes_and_the_hood():
    train_ids = [int(CITYSCAPES_TO_TRAIN.train[kind]) for kind in Kind]
    assert sorted(train_ids) == [*range(19), EGO]


def test_the_domains_read_it(mini):
    source, target = labelled("toy-gta5", mini, "train"), unlabelled("toy-cityscapes", mini, "train")
    assert (len(source.images), len(target.images)) == (3, 3)
    assert len(labelled("toy-cityscapes", mini, "val").labels) == 2
    with pytest.raises(FileNotFoundError):
        labelled("toy-cityscapes", mini, "train")


@pytest.mark.parametrize("domain", ["source", "target"])
def test_every_class_is_in_many_pictures(sample, domain):
    # 16 pixels are one cell of the network's stride-4 grid. Few pictures would leave a class's IoU to chance.
    present = np.array([((sample[domain] == c).sum((1, 2)) >= 16).mean() for c in range(19)])
    assert present.min() >= 0.1, dict(enumerate(present.round(2)))


@pytest.mark.parametrize("domain", ["source", "target"])
def test_long_tail(sample, domain):
    counts = np.bincount(sample[domain].ravel(), minlength=256)[:19]
    share = counts / counts.sum()
    assert 0.68 < share[[0, 1, 2, 10]].sum() < 0.82  # road, sidewalk, building, sky
    assert share[[6, 7, 12, 17, 18]].max() < 0.015  # light, sign, rider, motorcycle, bicycle


def test_the_hood_is_in_every_target_picture_and_nowhere_else(sample):
    assert not (sample["source"] == EGO).any()
    hood = sample["target"] == EGO
    assert hood.any((1, 2)).all()
    assert not hood[:, : HEIGHT * 9 // 10].any()


def test_the_domains_differ_in_more_than_a_cast():
    """The shift moves each class its own way, so no global change of colour undoes it."""
    moved, kinds = [], (Kind.ROAD, Kind.SIDEWALK, Kind.BUILDING, Kind.SKY)
    for shift in (0.0, SHIFT):
        drawn = [
            draw_picture(dataclasses.replace(picture, shift=shift))
            for picture in planned_pictures(Counts(30, 0, 0, 0, 0))
        ]
        image, label = (np.stack(part) for part in zip(*drawn, strict=True))
        moved.append([image[label == kind].mean(0) for kind in kinds])
    change = np.array(moved[1]) - np.array(moved[0])
    assert (np.ptp(change, axis=0) > 10).all()  # of 255, in every channel


def test_running_again_writes_nothing(mini):
    before = {path: path.stat().st_mtime_ns for path in mini.rglob("*.png")}
    assert generate(mini, counts=MINI) == (mini / "toy", MINI_DIGEST, 11, 0)
    assert {path: path.stat().st_mtime_ns for path in mini.rglob("*.png")} == before


def test_running_again_mends_what_is_missing_cut_off_or_changed(tmp_path):
    generate(tmp_path, counts=MINI)
    before, toy = content(tmp_path), tmp_path / "toy"
    (toy / "gta/labels/00001.png").unlink()
    cut = toy / "gta/images/00002.png"
    cut.write_bytes(cut.read_bytes()[:1000])
    changed = toy / "cityscapes-oracle/leftImg8bit/val/toyhaven/toyhaven_000000_000019_leftImg8bit.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(changed)
    assert generate(tmp_path, counts=MINI).written == 3
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    ["gta/images/00004.png", "cityscapes/gtFine/train/toyburg/toyburg_000000_000019_gtFine_labelIds.png"],
)
def test_pictures_of_another_set_are_refused(tmp_path, name):
    stray = tmp_path / "toy" / name
    stray.parent.mkdir(parents=True)
    stray.touch()
    with pytest.raises(ValueError, match=stray.name):
        generate(tmp_path, counts=MINI)


def test_train_ids_beside_our_labels_are_left_alone(mini):
    converted = mini / "toy/gta/labels/00001_labelTrainIds.png"
    converted.touch()
    assert generate(mini, counts=MINI).written == 0
    converted.unlink()


def test_other_pixels_than_the_frozen_ones_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "BENCHMARK", MINI)
    with pytest.raises(RuntimeError, match=DIGEST["day"]):
        generate(tmp_path, counts=MINI)


def test_dice():
    """The stream is part of the freeze; the shapes of the distributions are what the drawing counts on."""
    assert [Dice(1, 2).integer(0, 1000) for _ in range(3)] == [Dice(1, 2).integer(0, 1000)] * 3
    dice = Dice(3)
    throws = [dice.integer(2, 5) for _ in range(300)]
    assert set(throws) == {2, 3, 4}
    assert all(1.5 <= dice.uniform(1.5, 2) < 2 for _ in range(300))
    assert abs(np.mean([dice.chance(0.2) for _ in range(2000)]) - 0.2) < 0.04
    bell = dice.bell(100, 100)
    assert bell.shape == (100, 100)
    assert abs(bell.mean()) < 0.04
    assert abs(bell.std() - 1) < 0.02

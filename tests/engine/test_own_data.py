"""From one's own files to an answer: other classes, other ids, other sizes, through training, scores and label maps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.figures import warehouse
from dida import recipes
from dida.assemble import Parts, assemble
from dida.command import run_check, run_training
from dida.config import Config, changed, to_dict
from dida.data import domains
from dida.data.check import check_labelled
from dida.data.class_file import read_class_file
from dida.data.loader import batches
from dida.state import load_checkpoint
from dida.step import train_step
from dida.use.evaluate import WHOLE_IMAGE, NothingToScore
from dida.use.labelling import Summary, label_pictures
from dida.use.scoring import score_domain, score_table
from dida.use.trained import load_trained
from tests.engine.checkpoints import evaluate
from tests.pairs.run import small_networks

CPU = torch.device("cpu")
SIZES = ((96, 64), (64, 96), (80, 80), (120, 72))
WAREHOUSE = [
    {"id": 10, "name": "floor", "color": [90, 90, 90]},
    {"id": 20, "name": "shelf", "color": [200, 120, 0]},
    {"id": 30, "name": "box", "color": [160, 110, 60], "thing": True},
    {"id": 40, "name": "forklift", "color": [250, 220, 0], "thing": True},
    {"id": 50, "name": "exit sign", "color": [0, 160, 80]},
    {"id": 0, "name": "ignore", "color": [0, 0, 0]},
]


def drawn(folder: Path, n: int, ids: list[int], size: tuple[int, int], colours: dict[int, list[int]] | None = None):
    """Pictures and label maps of stripes, nested; JPEGs, every other one stored on its side."""
    for i in range(n):
        width, height = SIZES[i % 4] if size == (0, 0) else size
        label = np.resize(np.repeat(np.roll(ids, i), width // len(ids) + 1)[:width], (height, width)).astype(np.uint8)
        picture = np.stack([label * 5, 255 - label * 4, label], -1).astype(np.uint8)
        exif = Image.Exif()
        if i % 2:
            picture = np.ascontiguousarray(np.rot90(picture))
            exif[0x0112] = 6
        place = Path(f"cam{i % 2}") / f"{i:03d}"
        for part in ("images", "labels"):
            (folder / part / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / "images" / place.with_suffix(".jpg"), exif=exif)
        if colours is not None:
            label = np.array([colours.get(raw, [0, 0, 0]) for raw in range(256)], dtype=np.uint8)[label]
        Image.fromarray(label).save(folder / "labels" / place.with_suffix(".png"))


def options(src: str, tgt: str, root: Path, *more: str) -> Config:
    small = ("--backbone", "mit_b0", "--weights", "none", "--embed-dim", "16", "--crop", "64", "--steps", "6",
             "--workers", "0", "--device", "cpu", "--bank-every", "1", "--threshold", "0.1")  # fmt: skip
    return recipes.from_command_line([*small, "--src", src, "--tgt", tgt, "--data-root", str(root), *more])


def trained(config: Config, run: Path, steps: int = 2) -> Parts:
    parts = assemble(config)
    stream = batches(parts.pairs, batch_size=2, start=parts.state.step, stop=steps, workers=0, device=CPU)
    for batch, _ in stream:
        trace = train_step(parts.state, batch, parts.method)
        assert all(loss.isfinite() for loss in trace.losses.values())
    parts.panel.save(run / "panel.png", batch, trace, parts.state.bank)
    parts.state.save(run, to_dict(config), parts.class_set.to_dict(), parts.pairs.listing())
    (run / "config.json").write_text(json.dumps(to_dict(config)))
    return parts


@pytest.mark.parametrize("in_colours", [False, True])
def test_a_warehouse_of_five_classes(tmp_path, in_colours):
    colours = {e["id"]: e["color"] for e in WAREHOUSE} if in_colours else None
    for name in ("sim", "real"):
        drawn(tmp_path / name, 4, [10, 20, 30, 40, 50, 0], (0, 0), colours)
        (tmp_path / name / "classes.json").write_text(json.dumps(WAREHOUSE))
    src, tgt = (f"folder:{tmp_path / name}" for name in ("sim", "real"))
    assert check_labelled(domains.survey(src, tmp_path, "train")).ok

    parts = trained(options(src, tgt, tmp_path), tmp_path / "run")
    assert parts.class_set.names == ("floor", "shelf", "box", "forklift", "exit sign")
    assert parts.state.student.decode_head.conv_seg.weight.shape[0] == 5
    assert torch.bincount(parts.state.bank.labels).tolist() == [60] * 5  # K // C
    resumed = assemble(recipes.from_command_line(["--resume", str(tmp_path / "run")])).state
    assert resumed.step == 2

    loaded = load_trained(tmp_path / "run", CPU)
    report = score_domain(loaded, domains.labelled(tgt, tmp_path, "val"), size=(120, 120), inference=WHOLE_IMAGE,
                          workers=0, save_to=tmp_path / "maps")  # fmt: skip
    text = "\n".join(score_table(report))
    assert list(report["student"]["mIoU"]) == list(report["teacher"]["mIoU"]) == ["5"]
    assert "mIoU (5 classes)" in text
    assert not any(n in text for n in ("19", "16 ", "13 ", "road"))
    assert set(np.unique(Image.open(tmp_path / "maps" / "label_ids" / "001.png"))) <= {10, 20, 30, 40, 50}

    summary = label_pictures(loaded, [tmp_path / "real" / "images"], tmp_path / "out", network="student",
                             size=(120, 120), inference=WHOLE_IMAGE)  # fmt: skip
    assert summary == Summary(4, 0, 0, ())
    overlaid = np.asarray(Image.open(tmp_path / "out" / "overlay" / "cam1" / "001.png"))
    assert overlaid.shape == (96, 64, 3)  # upright, at its own size
    painted = np.asarray(Image.open(tmp_path / "out" / "colour" / "cam1" / "001.png")).reshape(-1, 3)
    assert {tuple(map(int, p)) for p in np.unique(painted, axis=0)} <= {tuple(e["color"]) for e in WAREHOUSE[:5]}


def test_from_two_folders_to_labelled_pictures_by_the_commands(tmp_path, capsys):
    """Nested JPEGs of four sizes and some on their side, ids 10 to 50, names that are none of Cityscapes': checked,
    trained for 30 steps, resumed from the 20th, scored, and a folder with a film in it labelled."""
    warehouse.main(tmp_path)
    src, tgt, run = f"folder:{tmp_path / 'warehouse_sim'}", f"folder:{tmp_path / 'warehouse_real'}", tmp_path / "run"
    common = ("--src", src, "--tgt", tgt, "--weights", "none", "--embed-dim", "16", "--crop", "32", "--workers", "0",
              "--device", "cpu", "--steps", "30", "--save-every", "10", "--out", str(run))  # fmt: skip
    with small_networks():
        with pytest.raises(SystemExit) as checked:
            run_check(recipes.from_command_line([*common, "--check-data"]), "train.py")
        assert checked.value.code == 0
        run_training(recipes.from_command_line([*common]))
        straight = load_checkpoint(run / "checkpoints" / "step_000030.pt")["student"]
        run_training(recipes.from_command_line(["--resume", str(run / "checkpoints" / "step_000020.pt")]))
        resumed = load_checkpoint(run / "checkpoints" / "step_000030.pt")["student"]
        assert all(torch.equal(resumed[name], tensor) for name, tensor in straight.items())
        evaluate(run, "--tgt", src, "--json", tmp_path / "x.json", "--save-predictions", tmp_path / "maps")
        evaluate(run, "--images", tmp_path / "warehouse_real", "--out", tmp_path / "out", "--confidence")
    said = capsys.readouterr().out
    assert f"python eval.py {run} --images {tmp_path / 'warehouse_real'}" in said
    assert "mIoU (5 classes)" in said
    assert "20 pictures and 10 frames of 1 video labelled" in said
    names, ids = [e["name"] for e in warehouse.CLASSES[:5]], {e["id"] for e in warehouse.CLASSES[:5]}
    assert list(json.loads((tmp_path / "x.json").read_text())["teacher"]["IoU"]) == names
    colours = {tuple(e["color"]) for e in warehouse.CLASSES[:5]}
    for name in ("cam0/000", "cam1/001", "round.mp4/000009"):
        height, width = (160, 120) if name.startswith("cam1") else (120, 160)
        label, colour = (
            np.asarray(Image.open(tmp_path / "out" / kind / f"{name}.png")) for kind in ("label_ids", "colour")
        )
        assert label.shape == (height, width)  # upright
        assert set(np.unique(label).tolist()) <= ids
        assert {tuple(p) for p in colour.reshape(-1, 3).tolist()} <= colours
    assert len(list((tmp_path / "maps" / "label_ids").rglob("*.png"))) == warehouse.RENDERED


@pytest.mark.parametrize("C", [2, 7, 11, 150])
def test_any_number_of_classes_trains_and_is_scored(tmp_path, C):
    ids = [400 + i for i in range(C)] if C == 7 else list(range(1, C + 1))
    label = np.resize(np.repeat(ids, 2), (64, 2 * C if C > 32 else 64)).astype(np.uint16)
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for i in range(2):
        Image.fromarray(np.stack([label % 251] * 3, -1).astype(np.uint8)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(label).save(tmp_path / "labels" / f"{i}.png")
    (tmp_path / "classes.json").write_text(json.dumps({str(raw): f"kind {raw}" for raw in ids}))
    name = f"folder:{tmp_path}"
    trained(options(name, name, tmp_path), tmp_path / "run", steps=1)
    loaded = load_trained(tmp_path / "run", CPU)
    report = score_domain(loaded, domains.labelled(name, tmp_path, "val"), size=(320, 64), inference=WHOLE_IMAGE,
                          workers=0, save_to=tmp_path / "maps")  # fmt: skip
    assert f"mIoU ({C} classes)" in "\n".join(score_table(report))
    written = np.asarray(Image.open(tmp_path / "maps" / "label_ids" / "0.png"))
    assert written.dtype == (np.uint16 if C == 7 else np.uint8)
    assert set(np.unique(written).tolist()) <= set(ids)


POTSDAM = [
    {"name": "impervious surface", "color": [255, 255, 255]}, {"name": "building", "color": [0, 0, 255]},
    {"name": "low vegetation", "color": [0, 255, 255]}, {"name": "tree", "color": [0, 255, 0]},
    {"name": "car", "color": [255, 255, 0], "thing": True}, {"name": "clutter", "color": [255, 0, 0]},
]  # fmt: skip


def potsdam(folder: Path) -> str:
    """ISPRS Potsdam: top_potsdam_2_10_RGB.tif, and top_potsdam_2_10_label.tif in colours."""
    rgb = np.array([e["color"] for e in POTSDAM], dtype=np.uint8)[np.resize(np.arange(6).repeat(12), (64, 72))]
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in ("2_10", "2_11", "3_10"):
        Image.fromarray(255 - rgb // 2).save(folder / "images" / f"top_potsdam_{number}_RGB.tif")
        Image.fromarray(rgb).save(folder / "labels" / f"top_potsdam_{number}_label.tif")
    (folder / "classes.json").write_text(json.dumps(POTSDAM))
    assert read_class_file(folder / "classes.json").class_set.label_ids == tuple(range(6))
    return f"folder:{folder}"


def loveda(root: Path) -> str:
    label = np.resize(np.arange(8).repeat(9), (64, 72)).astype(np.uint8)
    for split in ("Train", "Val"):
        for place in ("Urban", "Rural"):
            for part, pixels in (("images_png", np.stack([label * 30] * 3, -1)), ("masks_png", label)):
                folder = root / "loveda" / split / place / part
                folder.mkdir(parents=True)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / "0.png")
    return "loveda"


@pytest.mark.parametrize("make, C", [(potsdam, 6), (loveda, 7)])
def test_aerial_pictures_have_tables_with_their_own_names(tmp_path, make, C):
    name = make(tmp_path / "potsdam" if make is potsdam else tmp_path)
    parts = trained(options(name, name, tmp_path, "--rare-class-pixels", "10"), tmp_path / "run", steps=1)
    report = score_domain(load_trained(tmp_path / "run", CPU), domains.labelled(name, tmp_path, "val"), size=(72, 64),
                          inference=WHOLE_IMAGE, workers=0)  # fmt: skip
    assert list(report["student"]["IoU"]) == list(parts.class_set.names)
    for network in ("student", "teacher"):
        mean = np.mean([value or 0.0 for value in report[network]["IoU"].values()])
        assert report[network]["mIoU"][str(C)] == pytest.approx(mean, abs=1e-3)
    assert f"mIoU ({C} classes)" in "\n".join(score_table(report))


def test_a_checkpoint_is_scored_on_another_class_set_by_name(tmp_path, caplog):
    """Two of the run's five are declared, and one class that it does not know."""
    drawn(tmp_path / "sim", 2, [10, 20, 30, 40, 50], (60, 64))
    (tmp_path / "sim" / "classes.json").write_text(json.dumps(WAREHOUSE))
    name = f"folder:{tmp_path / 'sim'}"
    trained(options(name, name, tmp_path), tmp_path / "run", steps=1)
    drawn(tmp_path / "other", 2, [1, 2, 3], (60, 64))
    (tmp_path / "other" / "classes.json").write_text(json.dumps({"1": "Box", "2": "exit_sign", "3": "robot"}))
    loaded = load_trained(tmp_path / "run", CPU)
    report = score_domain(loaded, domains.labelled(f"folder:{tmp_path / 'other'}", tmp_path, "val"), size=(60, 64),
                          inference=WHOLE_IMAGE, workers=0)  # fmt: skip
    for network in ("student", "teacher"):
        assert list(report[network]["IoU"]) == ["box", "exit sign"]
        assert list(report[network]["mIoU"]) == ["2"]
    assert "mIoU (2 classes)" in "\n".join(score_table(report))
    assert caplog.text.count("robot ignored") == 1
    fresh = assemble(changed(options(name, name, tmp_path), init=tmp_path / "run"))
    assert torch.equal(
        fresh.state.student.decode_head.conv_seg.weight, loaded.networks["student"].decode_head.conv_seg.weight
    )


@pytest.mark.parametrize(
    "change", ["target grows", "target shrinks", "target renamed", "source grows", "nothing", "told"]
)
def test_data_that_changed_before_a_resume_is_said(tmp_path, change):
    """FAULTS 4: other files would be other samples."""
    for name in ("sim", "real"):
        drawn(tmp_path / name, 4, [10, 20, 30], (64, 64))
        (tmp_path / name / "classes.json").write_text(json.dumps(WAREHOUSE))
    trained(options(f"folder:{tmp_path / 'sim'}", f"folder:{tmp_path / 'real'}", tmp_path), tmp_path / "run", 1)
    if change in ("target grows", "told"):
        drawn(tmp_path / "real", 7, [10, 20, 30], (64, 64))
    elif change == "source grows":
        drawn(tmp_path / "sim", 5, [10, 20, 30], (64, 64))
    elif change != "nothing":
        picture = tmp_path / "real" / "images" / "cam0" / "000.jpg"
        picture.rename(picture.with_name("9.jpg")) if change == "target renamed" else picture.unlink()
    told = ["--new-data"] if change == "told" else []
    resume = recipes.from_command_line(["--resume", str(tmp_path / "run"), *told])
    if change in ("nothing", "told"):
        assert assemble(resume).state.step == 1
        return
    said = {
        "target grows": "4 pictures of the target, which now has 7",
        "target shrinks": "4 pictures of the target, which now has 3",
        "target renamed": "4 pictures of the target, which now has as many with other names",
        "source grows": "4 pictures of the source, which now has 5",
    }
    with pytest.raises(ValueError, match=said[change]) as caught:
        assemble(resume)
    assert "--new-data" in str(caught.value)


@pytest.mark.parametrize("ids", [[100, 200], [0], [1, 2, 3], [255]])
def test_labels_with_other_ids_are_not_called_unpublished_alone(tmp_path, ids):
    """K4: the ids that were found and those that are mapped stand beside the usual cause."""
    drawn(tmp_path, 2, [10, 20, 30], (64, 64))
    (tmp_path / "classes.json").write_text(json.dumps(WAREHOUSE))
    name = f"folder:{tmp_path}"
    trained(options(name, name, tmp_path), tmp_path / "run", 1)
    drawn(tmp_path / "other", 1, ids, (64, 64))
    (tmp_path / "other" / "classes.json").write_text(json.dumps(WAREHOUSE))
    domain = domains.labelled(f"folder:{tmp_path / 'other'}", tmp_path, "val")
    with pytest.raises(
        NothingToScore, match=f"raw ids {', '.join(map(str, ids))}; classes.json maps 10, 20, 30, 40, 50"
    ):
        score_domain(load_trained(tmp_path / "run", CPU), domain, size=(64, 64), inference=WHOLE_IMAGE, workers=0)

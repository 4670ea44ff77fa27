"""Pictures without labels, from a file or a folder to overlays and label maps."""

import numpy as np
import pytest
import torch
from PIL import Image

from dida.data.classes import CITYSCAPES_CLASSES, ClassSet
from dida.evaluate import WHOLE_IMAGE
from dida.labelling import find_pictures, label_pictures
from dida.panel import legend
from dida.trained import Trained, load_trained
from tests.data.factories import make_folder
from tests.engine.checkpoints import tiny_config, write_checkpoint


def network(tmp_path, class_set: ClassSet = CITYSCAPES_CLASSES) -> Trained:
    path = write_checkpoint(tmp_path / "x.pt", tiny_config(tmp_path), class_set=class_set)
    return load_trained(path, torch.device("cpu"))


def label(trained: Trained, images, out, name: str = "student") -> int:
    return label_pictures(trained, images, out, network=name, size=(64, 32), inference=WHOLE_IMAGE)


def test_pictures_are_labelled_without_reading_any_label(tmp_path, monkeypatch):
    def no_label(*args):
        raise AssertionError("a label was read")

    monkeypatch.setattr("dida.data.labelled_images.read_label", no_label)
    monkeypatch.setattr("dida.data.domains.labelled", no_label)
    photos, out = make_folder(tmp_path / "own", 2, (70, 90)) / "images", tmp_path / "out"
    assert label(network(tmp_path), photos, out) == 2
    for kind in ("overlay", "train_ids", "label_ids", "colour"):
        assert sorted(p.name for p in (out / kind).iterdir()) == ["street 0.png", "street 1.png"]
        assert Image.open(out / kind / "street 0.png").size == (70, 90)
    assert np.array_equal(np.asarray(Image.open(out / "legend.png")), legend(CITYSCAPES_CLASSES))
    photo = np.asarray(Image.open(photos / "street 0.jpg")).astype(float)
    train_ids = np.asarray(Image.open(out / "train_ids" / "street 0.png"))
    drawn = np.asarray(Image.open(out / "overlay" / "street 0.png"))
    np.testing.assert_allclose(drawn, (photo + CITYSCAPES_CLASSES.palette[train_ids]) / 2, atol=0.5)


def test_the_network_asked_for_is_the_one_that_answers(tmp_path):
    photo, trained = make_folder(tmp_path / "own", 1) / "images" / "street 0.jpg", network(tmp_path)
    answers = []
    for name in ("student", "teacher"):
        label(trained, photo, tmp_path / name, name)
        answers.append(np.asarray(Image.open(tmp_path / name / "train_ids" / "street 0.png")))
    assert not np.array_equal(*answers)


def test_label_files_hold_the_ids_and_colours_of_the_runs_classes(tmp_path):
    farm = ClassSet(("field", "barn"), ((0, 200, 0), (120, 60, 0)), (), (7, 40_000))
    photo, out = make_folder(tmp_path / "own", 1) / "images" / "street 0.jpg", tmp_path / "out"
    label(network(tmp_path, farm), photo, out)
    train_ids, ids, colour = (
        np.asarray(Image.open(out / kind / "street 0.png")) for kind in ("train_ids", "label_ids", "colour")
    )
    assert train_ids.max() < 2
    assert np.array_equal(ids, np.array(farm.label_ids)[train_ids])  # of more than 8 bits
    assert np.array_equal(colour, farm.palette[train_ids])


def test_two_pictures_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        make_folder(tmp_path / "own" / folder, 1)
    with pytest.raises(ValueError, match="would have the same name"):
        label(network(tmp_path), tmp_path / "own", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_are_found_below_a_folder_and_hidden_files_are_not(tmp_path):
    for name in ("b.png", "deep/er/A.JPG", "._b.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in find_pictures(tmp_path)] == ["b.png", "deep/er/A.JPG"]
    assert find_pictures(tmp_path / "b.png") == [tmp_path / "b.png"]
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"{nothing}: no picture there"):
            find_pictures(tmp_path / nothing)

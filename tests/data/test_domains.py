"""Every on-disk format, both kinds of label file, and what is said when something is missing."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from dida.data import domains
from dida.data.classes import CITYSCAPES_CLASSES
from dida.data.image_file import ImageFileError, image_size, read_image, read_label

from .factories import (
    NOT_IN_SYNTHIA,
    SIZE,
    make_cityscapes,
    make_folder,
    make_gta,
    make_synthia,
    save_ids,
    save_image,
    scene,
)


def label_of(domain: domains.LabelledDomain, index: int) -> np.ndarray:
    return read_label(domain.labels[index], domain.encoding(index))


@pytest.mark.parametrize("name", ["gta5", "gta"])
@pytest.mark.parametrize("folder", ["gta", "gta5"])
@pytest.mark.parametrize("raw, train", [(True, False), (False, True), (True, True)])
def test_gta5(tmp_path, name, folder, raw, train):
    make_gta(tmp_path, 3, folder=folder, raw=raw, train=train)
    domain = domains.labelled(name, tmp_path, "train")
    assert (domain.name, domain.folder) == ("gta5", tmp_path / folder)
    assert domain.class_set == CITYSCAPES_CLASSES
    assert [path.name for path in domain.images] == ["00001.png", "00002.png", "00003.png"]
    ending = ".png" if raw else "_labelTrainIds.png"
    assert [path.name for path in domain.labels] == [f"0000{i}{ending}" for i in (1, 2, 3)]
    for i in range(3):
        assert np.array_equal(label_of(domain, i), scene(i))


def test_raw_ids_and_train_ids_may_be_mixed(tmp_path):
    folder = make_gta(tmp_path, 2, train=True)
    (folder / "labels" / "00002.png").unlink()
    domain = domains.labelled("gta5", tmp_path, "train")
    assert [path.name for path in domain.labels] == ["00001.png", "00002_labelTrainIds.png"]
    assert all(np.array_equal(label_of(domain, i), scene(i)) for i in range(2))


def test_synthia_classes_are_the_red_of_16_bits(tmp_path):
    make_synthia(tmp_path, 2)
    domain = domains.labelled("synthia", tmp_path, "train")
    for i in range(2):
        assert np.array_equal(label_of(domain, i), scene(i, (160, 95), absent=NOT_IN_SYNTHIA))


def test_a_synthia_label_of_8_bits_is_refused(tmp_path):
    folder = make_synthia(tmp_path, 1)
    path = folder / "GT" / "LABELS" / "0000000.png"
    save_ids(path, np.zeros((95, 160), dtype=np.uint8))
    with pytest.raises(ImageFileError, match=r"0000000\.png: a 16-bit RGB label was expected"):
        label_of(domains.labelled("synthia", tmp_path, "train"), 0)


@pytest.mark.parametrize("train_ids", [False, True])
@pytest.mark.parametrize("name, folder", [("cityscapes", "cityscapes"), ("toy-cityscapes", "toy/cityscapes")])
def test_cityscapes(tmp_path, train_ids, name, folder):
    make_cityscapes(tmp_path, folder=folder, train_ids=train_ids, train=3, val=2)
    domain = domains.labelled(name, tmp_path, "train")
    names = [path.relative_to(domain.folder / "leftImg8bit/train").as_posix() for path in domain.images]
    assert names == [
        "aachen/aachen_000000_000019_leftImg8bit.png",
        "aachen/aachen_000002_000019_leftImg8bit.png",
        "zurich/zurich_000001_000019_leftImg8bit.png",
    ]
    for image, label in zip(domain.images, domain.labels, strict=True):
        assert label.name.startswith(image.name.removesuffix("_leftImg8bit.png"))
    assert np.array_equal(label_of(domain, 2), scene(1000 + 1 + sum(b"train"), (128, 64)))
    assert len(domains.labelled(name, tmp_path, "val").images) == 2


def test_toy_gta5(tmp_path):
    make_gta(tmp_path, 1, folder="toy/gta")
    make_gta(tmp_path, 2, folder="toy/gta-val")
    assert len(domains.labelled("toy-gta5", tmp_path, "train").images) == 1
    assert len(domains.labelled("toy-gta5-val", tmp_path, "val").images) == 2


def test_folder(tmp_path):
    make_folder(tmp_path / "mine", 2)
    domain = domains.labelled(f"folder:{tmp_path / 'mine'}", Path("nowhere"), "val")
    assert [path.name for path in domain.images] == ["street 0.jpg", "street 1.jpg"]
    assert all(np.array_equal(label_of(domain, i), scene(i)) for i in range(2))


def test_folder_maps_names_numbers_and_16_bit_ids(tmp_path):
    save_image(tmp_path / "images" / "a.png", np.ones((1, 4, 3), dtype=np.uint8))
    save_ids(tmp_path / "labels" / "a.png", np.array([[7, 60000, 9, 1]], dtype=np.uint16))
    (tmp_path / "classes.json").write_text(json.dumps({"7": "car", "60000": 18, "9": "ignore"}))
    domain = domains.labelled(f"folder:{tmp_path}", tmp_path, "train")
    assert domain.class_set.names == ("car", "bicycle")
    assert label_of(domain, 0).tolist() == [[0, 1, 255, 255]]
    assert domain.raw.ids.known[[7, 60000, 9, 1]].tolist() == [True, True, True, False]


def test_folder_with_splits(tmp_path):
    for split, n in (("train", 3), ("val", 1)):
        for i in range(n):
            save_image(tmp_path / "images" / split / "deep" / f"{i}.png", np.ones((4, 4, 3), dtype=np.uint8))
            save_ids(tmp_path / "labels" / split / "deep" / f"{i}_labelTrainIds.png", np.zeros((4, 4), dtype=np.uint8))
    name = f"folder:{tmp_path}"
    assert len(domains.unlabelled(name, tmp_path, "train").images) == 3
    assert len(domains.labelled(name, tmp_path, "val").images) == 1  # train ids need no classes.json
    with pytest.raises(FileNotFoundError, match="images/test"):
        domains.unlabelled(name, tmp_path, "test")


@pytest.mark.parametrize(
    "entries, complaint",
    [
        ({"7": 19}, "entry '7': 19"),
        ({"road": 0}, "entry 'road'"),
        ({"70000": 0}, "entry '70000'"),
        ({"7": None}, "entry '7': None"),
        ({"7": [0]}, "entry '7'"),
        (["road"], "object"),
    ],
)
def test_a_bad_class_file_is_named_with_its_entry(tmp_path, entries, complaint):
    make_folder(tmp_path, 1, classes=entries)
    with pytest.raises(ValueError, match=r"classes\.json") as caught:
        domains.labelled(f"folder:{tmp_path}", tmp_path, "train")
    assert complaint in str(caught.value)


def test_a_missing_or_malformed_class_file(tmp_path):
    make_folder(tmp_path, 1)
    (tmp_path / "classes.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        domains.labelled(f"folder:{tmp_path}", tmp_path, "train")
    (tmp_path / "classes.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"classes\.json is missing"):
        domains.labelled(f"folder:{tmp_path}", tmp_path, "train")
    assert len(domains.unlabelled(f"folder:{tmp_path}", tmp_path, "train").images) == 1


def test_two_images_of_one_name_are_refused(tmp_path):
    make_folder(tmp_path, 1)
    save_image(tmp_path / "images" / "street 0.png", np.ones((4, 4, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"street 0\.jpg and .*street 0\.png: two images"):
        domains.labelled(f"folder:{tmp_path}", tmp_path, "train")


def test_hidden_files_are_passed_over(tmp_path):
    folder = make_gta(tmp_path, 1)
    (folder / "images" / "._00001.png").write_bytes(b"macOS")
    (folder / "labels" / ".00001.png").write_bytes(b"macOS")
    assert len(domains.labelled("gta5", tmp_path, "train").images) == 1


def test_pairs_broken_as_published_are_left_out_and_named(tmp_path, caplog):
    folder = make_gta(tmp_path, 2)
    for part in ("images", "labels"):
        (folder / part / "00002.png").rename(folder / part / "15188.png")
    with caplog.at_level(logging.INFO):
        domain = domains.labelled("gta5", tmp_path, "train")
    assert [path.name for path in domain.images] == ["00001.png"]
    assert "15188.png left out" in caplog.text


def test_unknown_names_and_splits(tmp_path):
    with pytest.raises(ValueError, match=r"no domain is called 'gta6'.*gta5.*folder:PATH"):
        domains.unlabelled("gta6", tmp_path, "train")
    with pytest.raises(ValueError, match="gta5 has no split 'val'; it has train"):
        domains.unlabelled("gta5", tmp_path, "val")


@pytest.mark.parametrize(
    "name, expected, origin",
    [
        ("gta5", "gta/images", "https://download.visinf.tu-darmstadt.de/data/from_games/"),
        ("synthia", "synthia/RGB", "https://synthia-dataset.net"),
        ("cityscapes", "cityscapes/leftImg8bit/train", "https://www.cityscapes-dataset.com"),
        ("toy-gta5", "toy/gta/images", "python -m dida.data.toy --data-root"),
        ("toy-cityscapes", "toy/cityscapes/leftImg8bit/train", "python -m dida.data.toy --data-root"),
    ],
)
def test_a_missing_domain_says_what_where_and_whence(tmp_path, name, expected, origin):
    (tmp_path / "somewhere else").mkdir()
    for find in (domains.unlabelled, domains.labelled):
        with pytest.raises(FileNotFoundError) as caught:
            find(name, tmp_path, "train")
        message = str(caught.value)
        assert str(tmp_path / expected) in message
        assert "somewhere else" in message
        assert origin in message


def test_missing_labels_show_what_the_folder_holds(tmp_path):
    folder = make_gta(tmp_path, 2)
    shutil.rmtree(folder / "labels")
    with pytest.raises(FileNotFoundError) as caught:
        domains.labelled("gta5", tmp_path, "train")
    assert f"{folder} holds images" in str(caught.value)
    assert str(folder / "labels") in str(caught.value)
    assert len(domains.unlabelled("gta5", tmp_path, "train").images) == 2


def test_one_lost_label_is_an_error_that_names_the_image(tmp_path):
    folder = make_gta(tmp_path, 3)
    (folder / "labels" / "00002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images have no label.*00002\.png"):
        domains.labelled("gta5", tmp_path, "train")


def test_damaged_files_are_named(tmp_path):
    folder = make_gta(tmp_path, 1)
    path = folder / "images" / "00001.png"
    whole = path.read_bytes()
    for damaged in (b"", b"not an image", whole[: len(whole) // 2], whole[:20]):
        path.write_bytes(damaged)
        with pytest.raises(ImageFileError, match=r"images/00001\.png"):
            read_image(path)
    with pytest.raises(ImageFileError, match=r"images/00001\.png"):
        image_size(path)
    label = folder / "labels" / "00001.png"
    label.write_bytes(label.read_bytes()[:-60])
    with pytest.raises(ImageFileError, match=r"labels/00001\.png"):
        label_of(domains.labelled("gta5", tmp_path, "train"), 0)


def test_a_truncated_jpeg_is_not_filled_with_grey(tmp_path):
    make_folder(tmp_path, 1)
    path = tmp_path / "images" / "street 0.jpg"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageFileError, match=r"street 0\.jpg"):
        read_image(path)


def test_a_colour_rendering_is_no_label(tmp_path):
    folder = make_gta(tmp_path, 1)
    save_image(folder / "labels" / "00001.png", np.full((SIZE[1], SIZE[0], 3), (128, 64, 128), dtype=np.uint8))
    with pytest.raises(ImageFileError, match="holds colours"):
        label_of(domains.labelled("gta5", tmp_path, "train"), 0)

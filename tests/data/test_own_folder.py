"""K1 and K4: which files of one's own folder are taken for what, and what is said when it is in doubt."""

import json
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from dida.data import domains
from dida.data.listing import files_below
from dida.data.pictures import find_pictures

from .factories import save_ids, save_image

PIXEL = np.ones((4, 6, 3), dtype=np.uint8)


def put(folder: Path, *names: str, ids: int = 1) -> None:
    for name in names:
        if name.startswith("labels"):
            save_ids(folder / name, np.full((4, 6), ids, dtype=np.uint8))
        else:
            save_image(folder / name, PIXEL)
    (folder / "classes.json").write_text(json.dumps({"1": "soil", "2": "wheat"}))


def labelled(folder: Path, split: str = "train") -> domains.LabelledDomain:
    return domains.labelled(f"folder:{folder}", folder, split)


def names(domain) -> list[str]:
    return [path.relative_to(domain.folder).as_posix() for path in domain.images]


# ---- K1: splits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "train, val",
    [("train", "val"), ("training", "validation"), ("Train", "Val"), ("train", "valid"), ("TRAINING", "test")],
)
def test_splits_by_other_names_are_kept_apart_and_said(tmp_path, train, val, caplog):
    """FAULTS 1."""
    for i in range(3):
        put(tmp_path, f"images/{train}/{i}.png", f"labels/{train}/{i}.png")
    for i in range(3, 5):
        put(tmp_path, f"images/{val}/{i}.png", f"labels/{val}/{i}.png")
    assert len(labelled(tmp_path).images) == 3
    assert len(domains.unlabelled(f"folder:{tmp_path}", tmp_path, "train").images) == 3
    assert len(labelled(tmp_path, "test" if val == "test" else "val").images) == 2
    assert (f"images/{train} is taken as the split train" in caplog.text) == (train != "train")


@pytest.mark.parametrize(
    "folders, both",
    [
        (("train", "training"), ("train", "training")),
        (("val", "valid", "train"), ("val", "valid")),
        (("valid", "city"), ("valid", "city")),
        (("training", "extra"), ("training", "extra")),
        (("train_day", "train_night"), ("train_day", "train_night")),
        (("train", "val2"), ("train", "val2")),
        (("Train", "train"), ("Train", "train")),
        (("trainset", "night"), ("trainset", "night")),
    ],
)
def test_what_is_nearly_a_split_is_refused_naming_both(tmp_path, folders, both):
    for name in folders:
        put(tmp_path, f"images/{name}/{name}.png", f"labels/{name}/{name}.png")
    with pytest.raises(ValueError) as caught:
        labelled(tmp_path)
    assert all(name in str(caught.value) for name in (*both, str(tmp_path / "images")))


@pytest.mark.parametrize("folders", [("valencia", "testaccio"), ("trainstation",), ("cam0", "cam1"), ("2024", "2025")])
def test_folders_that_are_no_splits_are_all_taken(tmp_path, folders, caplog):
    for name in folders:
        put(tmp_path, f"images/{name}/0.png", f"labels/{name}/0.png")
    for split in ("train", "val"):
        assert names(labelled(tmp_path, split)) == [f"images/{name}/0.png" for name in sorted(folders)]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_picture_beside_splits_is_refused(tmp_path):
    put(tmp_path, "images/train/0.png", "labels/train/0.png", "images/1.png", "labels/1.png")
    with pytest.raises(ValueError, match=r"images holds train, .* beside it 1 files that are in none, e\.g\. 1\.png"):
        labelled(tmp_path)


@pytest.mark.parametrize(
    "pictures, maps",
    [("train/images", "train/labels"), ("img", "masks"), ("a/rgb", "a/GT"), ("cam0", "annotations")],
)
def test_label_maps_are_no_pictures_of_a_plain_folder(tmp_path, pictures, maps):
    """Nothing to learn from, and nothing to label."""
    for place in (pictures, maps):
        save_image(tmp_path / place / "0.png", PIXEL)
    for read in (lambda: domains.unlabelled(f"folder:{tmp_path}", tmp_path, "train"), lambda: find_pictures(tmp_path)):
        with pytest.raises(ValueError, match="is called like label maps") as caught:
            read()
        assert f"{tmp_path / maps} is called" in str(caught.value)
        assert str(caught.value).endswith(f"folder:{tmp_path / pictures}")


def test_a_folder_beside_splits_is_left_out_and_said(tmp_path, caplog):
    put(tmp_path, "images/train/0.png", "labels/train/0.png", "images/extra/1.png")
    assert names(labelled(tmp_path)) == ["images/train/0.png"]
    assert "extra belongs to no split" in caplog.text


def test_which_files_were_taken_is_said(tmp_path, caplog):
    put(tmp_path, "images/a.png", "labels/a.png")
    with caplog.at_level(logging.INFO):
        labelled(tmp_path)
    assert f"1 images in {tmp_path / 'images'}, labels in {tmp_path / 'labels'}" in caplog.text


@pytest.mark.parametrize("odd", ["b.heic", "B.AVIF", "deep/c.jp2", "clip.mp4", "d.jpg.part"])
def test_what_is_no_picture_by_its_ending_is_left_out_and_said(tmp_path, odd, caplog):
    put(tmp_path, "images/a.png", "labels/a.png")
    (tmp_path / "images" / odd).parent.mkdir(exist_ok=True)
    (tmp_path / "images" / odd).write_bytes(b"x")
    for read in (labelled, lambda folder: domains.unlabelled(f"folder:{folder}", folder, "train")):
        caplog.clear()
        assert names(read(tmp_path)) == ["images/a.png"]
        (said,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
        assert "1 files end in none of .png, .jpg" in said
        assert said.endswith(f"are left out, e.g. {odd}")


# ---- K1, K17: links ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [{"a": ".."}, {"a": "."}, {"a": ".", "b": "."}, {"a": "deep"}, {"deep/a": ".."},
                                   {"a": "b", "b": "a"}, {"a": "../.."}], ids=str)  # fmt: skip
def test_links_show_no_picture_twice(tmp_path, links):
    """FAULTS 2 and 37: two pictures are two."""
    put(tmp_path, "images/0.png", "images/deep/1.png")
    for name, target in links.items():
        (tmp_path / "images" / name).symlink_to(target)
    found = domains.unlabelled(f"folder:{tmp_path}", tmp_path, "train")
    assert names(found) == ["images/0.png", "images/deep/1.png"]


def test_links_out_of_the_tree_are_followed_once(tmp_path):
    put(tmp_path / "store", "images/0.png")
    (tmp_path / "mine" / "images").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "mine" / "images" / name).symlink_to(tmp_path / "store" / "images")
    assert [path.name for path in files_below(tmp_path / "mine" / "images")] == ["0.png"]


def test_a_link_in_cityscapes_split_does_not_join_the_others(tmp_path):
    from .factories import make_cityscapes

    folder = make_cityscapes(tmp_path, train=2, val=3)
    (folder / "leftImg8bit" / "train" / "a").symlink_to("..")
    assert len(domains.unlabelled("cityscapes", tmp_path, "train").images) == 2


def test_a_pipe_among_pictures_is_refused(tmp_path):
    put(tmp_path, "images/0.png")
    os.mkfifo(tmp_path / "images" / "zz.png")
    with pytest.raises(ValueError, match=r"zz\.png is a pipe"):
        domains.unlabelled(f"folder:{tmp_path}", tmp_path, "train")


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no such names")
@pytest.mark.parametrize("part", [b"images", b"labels"])
def test_a_name_that_is_not_utf_8_is_named(tmp_path, part):
    put(tmp_path, "images/0.png", "labels/0.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + part + b"/\xff.png")).write_bytes(b"")
    with pytest.raises(ValueError, match=r"udcff\.png': the name of this file is not UTF-8") as caught:
        labelled(tmp_path)
    str(caught.value).encode()


# ---- K4: not found -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".PNG", ".Png", ".tif", ".TIFF", ".bmp"])
def test_endings_in_any_case_are_read(tmp_path, ending):
    put(tmp_path, "images/a.JPG", f"labels/a{ending}")
    assert names(labelled(tmp_path)) == ["images/a.JPG"]


@pytest.mark.parametrize(
    "labels, said",
    [
        (("a.jpg", "b.jpg"), ("2 files", "none ends in .png or", "e.g. a.jpg", "JPEG changes the numbers")),
        (("a.json",), ("1 files", "none ends in", "e.g. a.json", "have to be drawn into label maps")),
        (("a_color.webp",), ("1 files", "none ends in", "a_color.webp", "colour renderings")),
        ((), ("labels holds no files",)),
        (None, ("labels does not exist", "holds classes.json, images")),
    ],
)
def test_labels_not_found_say_what_lies_there_and_why(tmp_path, labels, said):
    """FAULTS 12."""
    put(tmp_path, "images/a.png")
    if labels is not None:
        (tmp_path / "labels").mkdir()
    for name in labels or ():
        (tmp_path / "labels" / name).write_bytes(b"x")
    with pytest.raises(FileNotFoundError) as caught:
        labelled(tmp_path)
    assert all(part in str(caught.value) for part in said), caught.value


@pytest.mark.parametrize(
    "files, cause",
    [
        (("Images/a.png", "Labels/a.png"), r"Images/ is images/ by another name; rename it"),
        (("images/a.png", "LABELS/a.png"), r"LABELS/ is labels/ by another name; rename it"),
        (("images/a.png", "masks/a.png"), r"masks/ is called like label maps, .* in labels/; rename it"),
        (("images/a.png", "gt/a.png"), r"gt/ is called like label maps"),
        (("rgb/a.png", "labels/a.png"), r"labels/ is called like label maps, and pictures .* in images/; rename rgb/"),
        (("JPEGImages/a.jpg", "Annotations/a.png"), r".*rename JPEGImages/"),
    ],
)
def test_folders_by_another_name_are_the_cause(tmp_path, files, cause):
    """K4: that a source needs labels is no hint for who has them."""
    put(tmp_path, *files)
    with pytest.raises(FileNotFoundError, match=rf"likely: +{cause}"):
        labelled(tmp_path)


def test_a_data_set_that_lies_one_folder_deeper_is_found_for_the_user(tmp_path):
    put(tmp_path / "train", "images/0.png", "labels/0.png")
    with pytest.raises(FileNotFoundError, match=rf"likely: .* name that one, folder:{tmp_path / 'train'}"):
        labelled(tmp_path)


def test_a_folder_that_was_named_without_folder_is_recognised(tmp_path):
    put(tmp_path / "mine", "images/0.png", "labels/0.png")
    with pytest.raises(ValueError, match=rf"no domain is called .* is named folder:{tmp_path / 'mine'}"):
        domains.labelled(str(tmp_path / "mine"), tmp_path, "train")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x.zip").touch()
    with pytest.raises(FileNotFoundError, match=r"x\.zip is a file, not a folder"):
        labelled(tmp_path / "x.zip")


def test_colour_renderings_of_cityscapes_alone_are_called_so(tmp_path):
    from .factories import make_cityscapes

    folder = make_cityscapes(tmp_path, train=2)
    for path in (folder / "gtFine").rglob("*_labelIds.png"):
        path.rename(path.with_name(path.name.replace("labelIds", "color")))
    for path in (folder / "gtFine").rglob("*.json"):
        path.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        domains.labelled("cityscapes", tmp_path, "train")
    for part in ("2 files, none ends in _gtFine_labelIds.png", "_gtFine_color.png", "colour renderings"):
        assert part in str(caught.value)


# ---- suffixes, and targets without images/ -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image, label",
    [
        ("{}_leftImg8bit.png", "{}_gtFine_labelIds.png"),
        ("{}.jpg", "{}_mask.png"),
        ("top_potsdam_{}_RGB.tif", "top_potsdam_{}_label.tif"),
        ("deep/{}_rgb.png", "deep/{}_road.png"),
        ("{}-image.png", "{}.png"),
        ("{} sat.png", "{} map.png"),
    ],
)
@pytest.mark.parametrize("numbers", [("1", "2", "11"), ("2_10", "2_11", "3_1")])
def test_one_constant_suffix_pairs_them_and_is_said(tmp_path, image, label, numbers, caplog):
    for number in numbers:
        put(tmp_path, "images/" + image.format(number), "labels/" + label.format(number))
    domain = labelled(tmp_path)
    assert len(domain.images) == len(numbers)
    for picture, paired in zip(domain.images, domain.labels, strict=True):
        (number,) = [n for n in numbers if picture.name == Path(image.format(n)).name]
        assert paired.name == Path(label.format(number)).name
    assert "paired by their endings" in caplog.text


@pytest.mark.parametrize(
    "images, labels",
    [
        (("a_1.png",), ("a_2_mask.png",)),
        (("a_1.png", "a_2.png"), ("b_1.png", "b_2.png")),
        (("a_12.png",), ("a_1_mask.png",)),
        (("1.png", "2.png"), ("1_mask.png", "3_mask.png")),
        (("imgA.png",), ("imgB.png",)),
    ],
)
def test_what_no_suffix_explains_is_not_paired(tmp_path, images, labels):
    put(tmp_path, *(f"images/{name}" for name in images), *(f"labels/{name}" for name in labels))
    with pytest.raises(FileNotFoundError, match="have no label"):
        labelled(tmp_path)


def test_two_suffixes_that_both_explain_all_are_refused(tmp_path):
    put(tmp_path, *(f"images/{i}.png" for i in "12"), *(f"labels/{i}_{kind}.png" for i in "12" for kind in "ab"))
    with pytest.raises(ValueError, match=r"which label belongs to it, 1_a and 1_b"):
        labelled(tmp_path)


@pytest.mark.parametrize("places", [("0.jpg", "1.png"), ("cam0/0.jpg", "cam1/0.jpg"), ("train/0.jpg", "train/1.jpg")])
def test_a_plain_folder_of_pictures_is_a_target(tmp_path, places, caplog):
    for place in places:
        save_image(tmp_path / place, PIXEL)
    found = domains.unlabelled(f"folder:{tmp_path}", tmp_path, "train")
    assert names(found) == list(places)
    assert "has no folder images/" in caplog.text


def test_pictures_without_labels_are_called_so_where_labels_are_needed(tmp_path):
    save_image(tmp_path / "cam0/0.jpg", PIXEL)
    with pytest.raises(FileNotFoundError, match=r"likely: +pictures without labels, .*dida label"):
        domains.labelled(f"folder:{tmp_path}", tmp_path, "val")


def test_an_empty_folder_is_not_called_pictures(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        domains.labelled(f"folder:{tmp_path}", tmp_path, "val")
    assert "pictures without labels" not in str(raised.value)


def test_a_folder_of_labels_is_no_target(tmp_path):
    put(tmp_path, "labels/0.png")
    with pytest.raises(FileNotFoundError, match="no images found"):
        domains.unlabelled(f"folder:{tmp_path}", tmp_path, "train")

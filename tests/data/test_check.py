import shutil

import numpy as np
import pytest
from PIL import Image

from dida.data import domains, sweep
from dida.data.check import check_labelled, check_unlabelled

from .factories import SIZE, make_cityscapes, make_gta, save_ids, save_image, to_raw


def check_gta(root):
    return check_labelled(domains.survey("gta5", root, "train"))


def test_a_sound_data_set_is_ok(tmp_path):
    make_gta(tmp_path, 4)
    report = check_gta(tmp_path)
    assert report.ok
    assert report.problems == {}
    assert (report.images, report.labels.files) == (4, 4)
    assert report.sizes == {SIZE: 4}
    assert {7, 8, 11, 23} <= set(report.labels.ids) <= set(range(35))
    assert sum(report.labels.ids.values()) == 4 * SIZE[0] * SIZE[1]
    text = str(report)
    assert f"gta5 (train) in {tmp_path / 'gta'}: ok" in text
    assert "4 images: 4 of 174x96" in text
    assert "road " in text


def test_processes_find_the_same(tmp_path, monkeypatch):
    make_gta(tmp_path, 70, size=(40, 22))
    survey = domains.survey("gta5", tmp_path, "train")
    by_processes = str(check_labelled(survey))
    monkeypatch.setattr(sweep, "_WORTH_PROCESSES", 71)
    assert str(check_labelled(survey)) == by_processes


def spoil(folder):
    """One of each fault, in a file of its own."""
    images, labels = folder / "images", folder / "labels"
    (images / "00001.png").write_bytes(b"damaged")
    (labels / "00002.png").write_bytes(b"damaged")
    Image.new("L", (50, 40), 7).save(labels / "00003.png")
    (labels / "00004.png").unlink()
    (images / "00005.png").unlink()
    save_image(images / "00006.png", np.zeros((SIZE[1], SIZE[0], 3), dtype=np.uint8))
    save_ids(labels / "00007.png", np.full(SIZE[::-1], 40, dtype=np.uint8))


def test_every_fault_is_found_by_name(tmp_path):
    folder = make_gta(tmp_path, 12)
    spoil(folder)
    report = check_gta(tmp_path)
    assert not report.ok
    names = {
        "unreadable images": ["images/00001.png"],
        "unreadable labels": ["labels/00002.png"],
        "labels of another size than their image": ["images/00003.png", "labels/00003.png is 50x40"],
        "images without label": ["images/00004.png"],
        "labels without image": ["labels/00005.png"],
        "what the label format does not define": ["40: ", "1 files", "labels/00007.png"],
    }
    assert set(report.problems) == set(names)
    for what, parts in names.items():
        (found,) = report.problems[what]
        assert all(part in found for part in parts)
        assert found in str(report)
    assert report.black == (str(folder / "images" / "00006.png"),)
    assert "all-black images (1)" in str(report)


def test_labels_of_which_none_can_be_read_have_no_shares(tmp_path):
    folder = make_gta(tmp_path, 2)
    for path in (folder / "labels").iterdir():
        path.write_bytes(b"damaged")
    report = check_gta(tmp_path)
    assert "2 labels, of which none could be read" in str(report)
    assert "%" not in str(report)
    assert "classes that never occur" not in report.notes


def test_label_maps_in_colours_are_not_called_ids(tmp_path):
    drawn = np.full((20, 30, 3), 200, dtype=np.uint8)
    drawn[:5] = 9  # of no class
    save_image(tmp_path / "images" / "a.png", drawn)
    save_image(tmp_path / "labels" / "a.png", drawn)
    (tmp_path / "classes.json").write_text('[{"name": "sand", "color": "#c8c8c8"}]')
    report = check_labelled(domains.survey(f"folder:{tmp_path}", tmp_path, "train"))
    assert "1 labels: colours; 75.0% of all pixels belong to a class" in str(report)
    (found,) = report.problems["what the label format does not define"]
    assert found.startswith("colours that classes.json does not have: 150 pixels in 1 files")


def test_black_frames_alone_are_a_note(tmp_path):
    folder = make_gta(tmp_path, 2)
    save_image(folder / "images" / "00001.png", np.zeros((SIZE[1], SIZE[0], 3), dtype=np.uint8))
    report = check_gta(tmp_path)
    assert report.ok
    assert report.notes["all-black images"] == (str(folder / "images" / "00001.png"),)


def test_train_ids_in_place_of_raw_ids_are_noticed(tmp_path):
    folder = make_gta(tmp_path, 2)
    for path in (folder / "labels").iterdir():
        save_ids(path, to_raw(np.zeros(SIZE[::-1], dtype=np.uint8), tuple(range(19)), 255))
    assert "labels mostly void" in check_gta(tmp_path).problems


@pytest.mark.parametrize("damaged", [1, 20])
def test_of_a_list_that_is_shown_whole_nothing_is_left_out(tmp_path, damaged):
    folder = make_gta(tmp_path, 21, size=(24, 16))
    for path in sorted((folder / "images").iterdir())[:damaged]:
        path.write_bytes(b"damaged")
    report = str(check_gta(tmp_path))
    assert report.count("not a readable image") == damaged
    assert "more" not in report


def test_long_lists_are_cut_in_print_only(tmp_path):
    folder = make_gta(tmp_path, 30, size=(24, 16))
    for path in sorted((folder / "images").iterdir())[:25]:
        path.write_bytes(b"damaged")
    report = check_gta(tmp_path)
    assert len(report.unreadable) == 25
    assert "... and 5 more" in str(report)
    assert str(report).count("not a readable image") == 20


@pytest.mark.parametrize("labels_exist", [True, False])
def test_an_unlabelled_target_is_checked_by_its_images_alone(tmp_path, labels_exist):
    folder = make_cityscapes(tmp_path, train=3)
    for path in (folder / "gtFine").rglob("*_labelIds.png"):
        path.write_bytes(b"nobody reads this")
    if not labels_exist:
        shutil.rmtree(folder / "gtFine")
    report = check_unlabelled(domains.unlabelled("cityscapes", tmp_path, "train"))
    assert report.ok
    assert report.labels is None
    assert "unlabelled: no label was looked at" in str(report)
    images = sorted((folder / "leftImg8bit").rglob("*.png"))
    images[0].write_bytes(b"damaged")
    report = check_unlabelled(domains.unlabelled("cityscapes", tmp_path, "train"))
    assert not report.ok
    assert str(images[0]) in report.problems["unreadable images"][0]

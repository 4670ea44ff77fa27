"""Counts, the cache and when it is not to be trusted."""

import json
import logging
import os

import numpy as np
import pytest
from PIL import Image

from dida.data import domains, statistics
from dida.data.classes import id_map
from dida.data.image_file import Encoding, ImageFileError
from dida.data.statistics import class_statistics

from .factories import SIZE, make_cityscapes, make_folder, make_gta, make_synthia, save_ids, scene


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user cache"))
    return tmp_path / "user cache" / "dida"


@pytest.fixture
def counted(monkeypatch) -> list:
    """The label files that are counted, in order."""
    files = []
    count = statistics.count_label

    def spy(path, encoding, *, classes):
        files.append(path)
        return count(path, encoding, classes=classes)

    monkeypatch.setattr(statistics, "count_label", spy)
    return files


def gta(tmp_path, n=3):
    make_gta(tmp_path, n)
    return domains.labelled("gta5", tmp_path, "train")


def expected(n: int) -> np.ndarray:
    return np.stack([np.bincount(scene(i).ravel(), minlength=256)[:19] for i in range(n)])


def test_counts_are_those_of_the_labels(tmp_path):
    found = class_statistics(gta(tmp_path))
    assert np.array_equal(found.pixels, expected(3))
    assert found.total.tolist() == [SIZE[0] * SIZE[1]] * 3
    assert found.unknown == {}


def test_synthia_is_counted_by_class_not_instance(tmp_path):
    make_synthia(tmp_path, 1)
    found = class_statistics(domains.labelled("synthia", tmp_path, "train"))
    assert found.unknown == {}
    assert found.pixels.sum() > 0.9 * found.total.sum()


def test_processes_count_the_same(tmp_path):
    found = class_statistics(gta(tmp_path, 70), workers=2)
    assert np.array_equal(found.pixels, expected(70))


def test_a_second_call_counts_nothing(tmp_path, counted):
    domain = gta(tmp_path)
    first = class_statistics(domain)
    assert len(counted) == 3
    second = class_statistics(domains.labelled("gta5", tmp_path, "train"))
    assert len(counted) == 3
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(first.total, second.total)
    assert first.unknown == second.unknown


def test_the_cache_moves_with_the_data(tmp_path, counted):
    class_statistics(gta(tmp_path))
    (tmp_path / "gta").rename(tmp_path / "gta5")
    class_statistics(domains.labelled("gta5", tmp_path, "train"))
    assert len(counted) == 3


@pytest.mark.parametrize("change", ["touched", "removed", "renamed", "converted"])
def test_any_change_of_the_files_counts_anew(tmp_path, counted, change):
    class_statistics(gta(tmp_path))
    labels, images = tmp_path / "gta" / "labels", tmp_path / "gta" / "images"
    if change == "touched":
        os.utime(labels / "00001.png", ns=(1, 1))
    elif change == "removed":
        (labels / "00003.png").unlink()
        (images / "00003.png").unlink()
    elif change == "renamed":
        for folder in (labels, images):
            (folder / "00003.png").rename(folder / "00009.png")
    else:
        (labels / "00001.png").unlink()
        save_ids(labels / "00001_labelTrainIds.png", scene(0))
    class_statistics(domains.labelled("gta5", tmp_path, "train"))
    assert len(counted) == (5 if change == "removed" else 6)


def test_splits_have_caches_of_their_own(tmp_path, counted):
    make_cityscapes(tmp_path, train=2, val=1)
    for split in ("train", "val", "train", "val"):
        class_statistics(domains.labelled("cityscapes", tmp_path, split))
    assert len(counted) == 3


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut", b"not a zip file"])
def test_a_damaged_cache_is_reported_and_replaced(tmp_path, counted, caplog, damage):
    domain = gta(tmp_path)
    class_statistics(domain)
    cache = tmp_path / "gta" / ".dida_statistics_train.npz"
    cache.write_bytes(damage)
    class_statistics(domain)
    assert len(counted) == 6
    assert f"{cache} cannot be read" in caplog.text
    class_statistics(domain)
    assert len(counted) == 6


def refuse(monkeypatch, *folders):
    """Make folders read-only even for root, for whom permission bits do not count."""
    write = statistics.whole_file

    def whole_file(path):
        if path.parent in folders:
            raise PermissionError(13, "Permission denied", str(path.parent))
        return write(path)

    monkeypatch.setattr(statistics, "whole_file", whole_file)


def test_a_read_only_data_set_is_cached_for_the_user(tmp_path, counted, user_cache, monkeypatch):
    domain = gta(tmp_path)
    refuse(monkeypatch, domain.folder)
    class_statistics(domain)
    assert [path.suffix for path in user_cache.iterdir()] == [".npz"]
    class_statistics(domain)
    assert len(counted) == 3


def test_nowhere_to_write_is_said_and_does_no_harm(tmp_path, counted, user_cache, monkeypatch, caplog):
    domain = gta(tmp_path)
    refuse(monkeypatch, domain.folder, user_cache)
    assert np.array_equal(class_statistics(domain).pixels, expected(3))
    assert "cannot be cached" in caplog.text


def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    domain = gta(tmp_path)
    monkeypatch.setattr(statistics.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        class_statistics(domain)
    assert sorted(path.name for path in domain.folder.iterdir()) == ["images", "labels"]


def test_unknown_ids_are_reported_once_each_with_the_worst_file(tmp_path, caplog):
    folder = make_gta(tmp_path, 3)
    ids = np.full(SIZE[::-1], 7, dtype=np.uint8)
    ids[0, :5] = 77
    save_ids(folder / "labels" / "00001.png", ids)
    ids[0, :9] = 77
    save_ids(folder / "labels" / "00002.png", ids)
    domain = domains.labelled("gta5", tmp_path, "train")
    for _ in range(2):  # counted, then from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = class_statistics(domain)
        assert found.unknown == {77: (14, 2, str(folder / "labels" / "00002.png"))}
        assert len(caplog.records) == 1
        assert "raw id 77: not defined, 14 pixels in 2 files are read as 255" in caplog.text


def test_ids_of_the_wrong_kind_are_noticed(tmp_path, caplog):
    folder = make_gta(tmp_path, 1)
    save_ids(folder / "labels" / "00001.png", np.full(SIZE[::-1], 3, dtype=np.uint8))
    class_statistics(domains.labelled("gta5", tmp_path, "train"))
    assert "only 0 % of all pixels belong to a class" in caplog.text


def test_a_label_of_another_size_names_both_files(tmp_path):
    folder = make_gta(tmp_path, 2)
    Image.new("L", (10, 20)).save(folder / "labels" / "00002.png")
    with pytest.raises(ImageFileError, match=r"images/00002\.png is 174x96, but.*labels/00002\.png is 10x20"):
        class_statistics(domains.labelled("gta5", tmp_path, "train"))


@pytest.mark.parametrize(
    "change", ["a row less", "a class less", "negative", "more than there are", "floats", "no total"]
)
def test_a_cache_that_cannot_be_of_these_files_is_counted_anew(tmp_path, counted, caplog, change):
    """FAULTS 42."""
    domain = gta(tmp_path)
    right = class_statistics(domain)
    cache = tmp_path / "gta" / ".dida_statistics_train.npz"
    with np.load(cache) as stored:
        values = dict(stored)
    values["pixels"] = {
        "a row less": values["pixels"][:-1],
        "a class less": values["pixels"][:, :-1],
        "negative": values["pixels"] - 10**6,
        "more than there are": values["pixels"] + 10**6,
        "floats": values["pixels"] / 1.0,
        "no total": values["pixels"],
    }[change]
    if change == "no total":
        del values["total"]
    np.savez_compressed(cache, **values)
    assert np.array_equal(class_statistics(domain).pixels, right.pixels)
    assert len(counted) == 6
    assert f"{cache} cannot be read" in caplog.text


def test_a_bit_flipped_anywhere_in_the_cache_is_counted_anew_or_nothing_at_all(tmp_path, counted):
    """FAULTS 43: never a traceback, never other numbers."""
    domain = gta(tmp_path)
    right = class_statistics(domain)
    cache = tmp_path / "gta" / ".dida_statistics_train.npz"
    whole = cache.read_bytes()
    for place in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        cache.write_bytes(damaged)
        found = class_statistics(domain)
        assert np.array_equal(found.pixels, right.pixels)
        assert np.array_equal(found.total, right.total)
        assert found.unknown == right.unknown
    assert len(counted) > 3


@pytest.mark.parametrize("names", [("road", "car"), ("road", "tractor")])
def test_the_cache_is_bound_to_the_class_set(tmp_path, counted, names):
    make_folder(tmp_path, 2, classes={"100": "road", "101": "sidewalk"})
    class_statistics(domains.labelled(f"folder:{tmp_path}", tmp_path, "train"))
    (tmp_path / "classes.json").write_text(json.dumps({"100": names[0], "101": names[1]}))
    class_statistics(domains.labelled(f"folder:{tmp_path}", tmp_path, "train"))
    assert len(counted) == 4


@pytest.mark.parametrize(
    "classes, said",
    [
        ({"1": "road", "2": "car"}, ("Found: raw id 0, raw id 100", "maps 1, 2")),
        ({"0": "ignore", "1": "road"}, ("Found: raw id 100", "maps 1")),
        ([{"id": 7, "name": "soil", "color": [1, 2, 3]}], ("raw id 100", "maps 7")),
        (
            [{"name": "soil", "color": [1, 2, 3]}],
            ("colours that classes.json does not have", 'give each class its "id"'),
        ),
        ({"0": "ignore", "1": "soil"} | {str(100 + c): "ignore" for c in range(19)}, ("only ids that are no class",)),
    ],
)
def test_labels_without_a_pixel_of_any_class_name_the_ids(tmp_path, classes, said):
    """FAULTS 13: wrong ids are not small objects."""
    make_folder(tmp_path, 2, classes=classes)
    domain = domains.labelled(f"folder:{tmp_path}", tmp_path, "train")
    with pytest.raises(ValueError, match="no pixel of any class") as caught:
        statistics.require_pixels(domain, class_statistics(domain))
    assert all(part in str(caught.value) for part in said)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 6), (96, 174)])
def test_every_pixel_is_counted_once(tmp_path, shape, dtype):
    ids = np.random.default_rng(0).integers(0, 34, shape).astype(dtype)
    ids.flat[-1] = 33 if dtype == np.uint8 else 700
    count = statistics.count_label(save_ids(tmp_path / "x.png", ids), ANY_ID, classes=200)
    values, pixels = np.unique(ids, return_counts=True)
    assert count.ids == dict(zip(values.tolist(), pixels.tolist(), strict=True))
    assert count.shape == shape


ANY_ID = Encoding(id_map("any", {raw: raw for raw in range(200)}))

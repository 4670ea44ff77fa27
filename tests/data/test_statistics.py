"""Counts, the cache and when it is not to be trusted."""

import logging
import os

import numpy as np
import pytest
from PIL import Image

from dida.data import domains, statistics
from dida.data.image_file import ImageFileError
from dida.data.statistics import class_statistics

from .factories import SIZE, make_cityscapes, make_gta, make_synthia, save_ids, scene


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
    make = statistics.tempfile.mkstemp

    def mkstemp(*, prefix, dir):
        if dir in folders:
            raise PermissionError(13, "Permission denied", str(dir))
        return make(prefix=prefix, dir=dir)

    monkeypatch.setattr(statistics.tempfile, "mkstemp", mkstemp)


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
        assert "raw id 77 is not defined, its 14 pixels in 2 files are read as 255" in caplog.text


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

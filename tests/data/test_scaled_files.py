"""--cache DIR: what comes out of it is what decoding gives, whoever fills it, and however it ends."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from dida.data import scaled_files
from dida.data.classes import id_map
from dida.data.image_file import Encoding, ImageFileError
from dida.data.scaled_files import CachedFiles, ScaledFiles
from dida.data.sweep import sweep

from .factories import picture, save_ids, save_image, scene
from .samples import make_pairs, same

ANY_ID = Encoding(id_map("any", {raw: raw for raw in range(200)}))
SCALE = (100, 60)


@pytest.fixture
def image(tmp_path) -> Path:
    return save_image(tmp_path / "a.png", picture(scene(0), 0))


def kept(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "kept").rglob("*") if path.is_file())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("enlarge", [True, False])
@pytest.mark.parametrize("scale", [SCALE, (400, 300)])
def test_what_is_kept_is_what_decoding_gives(tmp_path, image, scale, enlarge, dtype):
    label = save_ids(tmp_path / "l.png", scene(0).astype(dtype) + (0 if dtype == np.uint8 else 300))
    cached = CachedFiles(tmp_path / "cache")
    for _ in range(2):  # made, then read
        for ours, theirs in (
            (cached.image(image, scale, enlarge=enlarge), ScaledFiles().image(image, scale, enlarge=enlarge)),
            (
                cached.label(label, ANY_ID, scale, enlarge=enlarge),
                ScaledFiles().label(label, ANY_ID, scale, enlarge=enlarge),
            ),
        ):
            assert ours.native == theirs.native
            assert ours.pixels.dtype == np.uint8
            assert np.array_equal(ours.pixels, theirs.pixels)
    assert len(kept(tmp_path / "cache")) == 2


@pytest.mark.parametrize("source", ["gta5", "synthia"])
def test_samples_do_not_depend_on_it(root, tmp_path, source):
    plain, cached = make_pairs(root, source=source), make_pairs(root, source=source)
    cached.reader = CachedFiles(tmp_path / "cache")
    assert all(same(plain[i], cached[i]) for _ in range(2) for i in range(6))


def test_nothing_is_decoded_twice(tmp_path, image, monkeypatch):
    cached = CachedFiles(tmp_path / "cache")
    cached.image(image, SCALE, enlarge=True)
    monkeypatch.setattr(scaled_files, "decode_image", None)
    cached.image(image, SCALE, enlarge=True)
    copy = Path(shutil.copy(image, tmp_path / "another name.png"))  # the same content
    cached.image(copy, SCALE, enlarge=True)
    moved = CachedFiles((tmp_path / "cache").rename(tmp_path / "moved"))
    moved.image(image, SCALE, enlarge=True)
    with pytest.raises(TypeError):  # another size has to be made
        moved.image(image, (60, 40), enlarge=True)


def test_a_file_that_changed_is_made_anew(tmp_path, image):
    cached = CachedFiles(tmp_path / "cache")
    cached.image(image, SCALE, enlarge=True)
    save_image(image, picture(scene(1), 1))
    os.utime(image, ns=(1, 1))
    expected = ScaledFiles().image(image, SCALE, enlarge=True).pixels
    assert np.array_equal(cached.image(image, SCALE, enlarge=True).pixels, expected)


@pytest.mark.parametrize("damage", [b"", b"short", bytes(56), "cut"], ids=str)
def test_what_is_damaged_is_made_anew_and_said(tmp_path, image, caplog, damage):
    cached = CachedFiles(tmp_path / "cache")
    expected = cached.image(image, SCALE, enlarge=True).pixels.copy()
    (file,) = kept(tmp_path / "cache")
    whole = file.read_bytes()
    file.unlink()  # a mapped file is never changed
    file.write_bytes(whole[:-5] if damage == "cut" else damage)
    assert np.array_equal(cached.image(image, SCALE, enlarge=True).pixels, expected)
    assert "made anew" in caplog.text
    assert file.read_bytes() == whole


def test_files_that_cannot_be_used_are_named_as_ever(tmp_path):
    cached = CachedFiles(tmp_path / "cache")
    with pytest.raises(ImageFileError, match=r"nothing\.png: not a readable image"):
        cached.image(tmp_path / "nothing.png", SCALE, enlarge=True)
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ImageFileError, match=r"text\.png: not a readable label"):
        cached.label(tmp_path / "text.png", ANY_ID, SCALE, enlarge=True)


def test_a_folder_that_cannot_be_written_to_is_refused_at_the_door(tmp_path, image):
    with pytest.raises(OSError, match=r"--cache .*a\.png: cannot be written to"):
        CachedFiles(image)


def test_two_fill_it_at_once(tmp_path):
    paths = [save_image(tmp_path / f"{i}.png", picture(scene(i % 5), i % 5)) for i in range(20)]
    jobs = [(tmp_path / "cache", path) for path in paths * 8]
    sums = sweep(_sum, jobs, title="filling", workers=4)
    assert sums == [int(ScaledFiles().image(path, SCALE, enlarge=True).pixels.sum()) for path in paths] * 8
    assert len(kept(tmp_path / "cache")) == 5


def _sum(job: tuple[Path, Path]) -> int:
    return int(CachedFiles(job[0]).image(job[1], SCALE, enlarge=True).pixels.sum())


def test_a_kill_in_the_middle_leaves_nothing_that_is_taken_for_whole(tmp_path):
    cache, pictures = tmp_path / "cache", tmp_path / "pictures"
    for i in range(150):
        save_image(pictures / f"{i:03d}.png", picture(scene(i), i))
    filling = os.fork()
    if filling == 0:
        for path in sorted(pictures.iterdir()):
            _sum((cache, path))
        os._exit(0)
    while not (cache / "kept").is_dir() or len(kept(cache)) < 5:
        time.sleep(0.001)
    os.kill(filling, signal.SIGKILL)
    os.waitpid(filling, 0)
    assert len(kept(cache)) < 150
    cached = CachedFiles(cache)
    for path in sorted(pictures.iterdir()):
        expected = ScaledFiles().image(path, SCALE, enlarge=True).pixels
        assert np.array_equal(cached.image(path, SCALE, enlarge=True).pixels, expected)

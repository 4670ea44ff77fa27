"""A file is whole or not there, at any moment that anybody may look and whatever goes wrong while it is written."""

import errno
import json
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dida.data.image_file import save_png
from dida.machine import files
from dida.machine.files import Appended, require_writable, reserve, whole_file, write_bytes, write_json, write_text


@pytest.fixture
def small_disk():
    """Files of this process end at 4096 bytes, which the kernel says as a full disk says it: a write comes back short,
    the next one with an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


NOISE = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
WRITERS = {
    "bytes": lambda path: write_bytes(path, bytes(5000)),
    "text": lambda path: write_text(path, "x" * 5000),
    "json": lambda path: write_json(path, list(range(2000))),
    "png": lambda path: save_png(path, NOISE),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, small_disk, kind):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=str(path)):
        WRITERS[kind](path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_is_there(tmp_path, kind):
    path = tmp_path / "a" / "new" / "file.png"
    WRITERS[kind](path)
    assert path.stat().st_size > 4096
    assert [p.name for p in path.parent.iterdir()] == ["file.png"]
    if kind == "png":
        np.testing.assert_array_equal(np.asarray(Image.open(path)), NOISE)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, OSError])
def test_whatever_stops_the_writing_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def half() -> None:
        with whole_file(path) as file:
            file.write(b"half of")
            raise error("something")

    with pytest.raises(error):
        half()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_reservation_says_what_is_missing(tmp_path, small_disk):
    with pytest.raises(OSError, match=r"50\.0 MB are needed, .* MB are free.*file") as caught:
        with whole_file(tmp_path / "file") as file:
            reserve(file, 50_000_000)
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_a_reservation_is_no_content(tmp_path):
    with whole_file(tmp_path / "file") as file:
        reserve(file, 10_000)
        file.write(b"all of it")
        file.truncate()
    assert (tmp_path / "file").read_bytes() == b"all of it"


def test_a_link_is_followed_and_a_device_is_not_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/null")):
        with pytest.raises(OSError):
            write_text(path, "new")
    assert (tmp_path / "fifo").is_fifo()
    assert Path("/dev/null").is_char_device()


def test_a_name_may_be_as_long_as_names_can_be(tmp_path):
    for name in ("x" * 255, "ä" * 127):
        write_text(tmp_path / name, "new")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_record_that_does_not_fit_is_taken_back(tmp_path, small_disk):
    log = Appended(tmp_path / "log")
    log.write(b"x" * 4000)
    with pytest.raises(OSError):
        log.write(b"y" * 200)
    assert (tmp_path / "log").read_bytes() == b"x" * 4000
    log.write(b"z" * 50)
    log.close()
    assert (tmp_path / "log").read_bytes() == b"x" * 4000 + b"z" * 50


IMPOSSIBLE = {  # below a folder that holds `file` and `fifo`: path, and whether a folder is meant
    "below a file": ("file/x", False),
    "folder below a file": ("file/x", True),
    "a file as a folder": ("file", True),
    "in /proc": ("/proc/nope/x", False),
    "folder in /proc": ("/proc/nope/x", True),
    "300 characters": ("n" * 300, False),
    "folder of 300 characters": ("n" * 300, True),
    "a folder as a file": (".", False),
    "300 characters in a new folder": ("new/" + "n" * 300, True),
    "the root": ("/", False),
    "a device": ("/dev/full", False),
    "a FIFO": ("fifo", False),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_place_that_cannot_be_written_to_is_named_with_its_option(tmp_path, name):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    path, folder = IMPOSSIBLE[name]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=r"^--option .*: cannot be written to \("):
        require_writable(tmp_path / path, option="--option", folder=folder)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("folder", [True, False])
def test_a_place_that_can_be_written_to_is_left_as_it_was(tmp_path, folder):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("old")
    before = sorted(tmp_path.rglob("*"))
    for path in (tmp_path / "new", tmp_path / "a" / "b" / "new", tmp_path / "there" / "new"):
        require_writable(path, option="--option", folder=folder)
    require_writable(tmp_path / "there" / ("" if folder else "file"), option="--option", folder=folder)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there" / "file").read_text() == "old"


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a" / "b" / "x.txt"
    write_text(path, "old")
    with whole_file(path) as file:
        file.write(b"new, but not ")
        file.flush()
        assert path.read_text() == "old"
        file.write(b"all of it")
        assert path.read_text() == "old"
    assert path.read_text() == "new, but not all of it"
    assert [found.name for found in path.parent.iterdir()] == ["x.txt"]


def test_content_is_on_the_disk_before_the_name_is_and_then_the_name(tmp_path, monkeypatch):
    """A power cut between any two lines leaves the old file or the new one."""
    order = []
    fsync, replace = os.fsync, files.Path.replace
    monkeypatch.setattr(files.os, "fsync", lambda handle: order.append("fsync") or fsync(handle))
    monkeypatch.setattr(files.Path, "replace", lambda *args: order.append("rename") or replace(*args))
    write_text(tmp_path / "x.txt", "text")
    assert order == ["fsync", "rename", "fsync"]


def test_a_file_too_large_for_settings_is_not_read(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2 << 30)  # takes no room
    with pytest.raises(ValueError, match=f"{path}: 2147.5 MB, which no file of settings"):
        files.read_json(path)


def test_text_is_utf_8_and_json_is_read_back(tmp_path):
    write_text(tmp_path / "x.txt", "Straße\n")
    assert (tmp_path / "x.txt").read_bytes() == "Straße\n".encode()
    content = {"mIoU": 71.0, "class": ["road", None]}
    write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == content
    assert text.endswith("}\n")

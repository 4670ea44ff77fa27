"""A file is whole or not there, at any moment that anybody may look."""

import json
import os
from pathlib import Path

import pytest

from dida import files
from dida.files import whole_file, write_json, write_text


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


def write_half(path: Path, error: BaseException) -> None:
    with whole_file(path) as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()], ids=repr)
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    for name in ("x.txt", "never.txt"):
        with pytest.raises(type(error)):
            write_half(tmp_path / name, error)
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["x.txt"]


def test_a_name_that_cannot_be_taken_leaves_nothing_half_written(tmp_path):
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OSError):
        write_text(tmp_path / "folder", "text")
    assert [found.name for found in tmp_path.iterdir()] == ["folder"]


def test_content_is_on_the_disk_before_the_name_is_and_then_the_name(tmp_path, monkeypatch):
    """A power cut between any two lines leaves the old file or the new one."""
    order = []
    fsync, replace = os.fsync, files.Path.replace
    monkeypatch.setattr(files.os, "fsync", lambda handle: order.append("fsync") or fsync(handle))
    monkeypatch.setattr(files.Path, "replace", lambda *args: order.append("rename") or replace(*args))
    write_text(tmp_path / "x.txt", "text")
    assert order == ["fsync", "rename", "fsync"]


def test_text_is_utf_8_and_json_is_read_back(tmp_path):
    write_text(tmp_path / "x.txt", "Straße\n")
    assert (tmp_path / "x.txt").read_bytes() == "Straße\n".encode()
    content = {"mIoU": 71.0, "class": ["road", None]}
    write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == content
    assert text.endswith("}\n")

"""Data sets in their zip files are the data sets: the same pictures, labels, samples and counts, nothing unpacked."""

import shutil
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import pytest

from dida.data import domains
from dida.data.archive import ArchiveError, content, opened
from dida.data.check import check_labelled
from dida.data.image_file import ImageFileError, image_size, read_image
from dida.data.statistics import class_statistics
from dida.data.sweep import sweep

from .samples import make_pairs, same

# archive -> the folder that it has packed, and what it calls it
DOWNLOADED = {
    "gta/01_images.zip": ("gta/images", "images"),
    "gta/01_labels.zip": ("gta/labels", "labels"),
    "synthia/RAND_CITYSCAPES.zip": ("synthia", "RAND_CITYSCAPES"),
    "cityscapes/leftImg8bit_trainvaltest.zip": ("cityscapes/leftImg8bit", "leftImg8bit"),
    "cityscapes/gtFine_trainvaltest.zip": ("cityscapes/gtFine", "gtFine"),
}


def pack(folder: Path, called: str, archive: Path, files: list[Path] | None = None, **options) -> Path:
    """What macOS leaves beside the files is packed too."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with ZipFile(archive, "w", **options) as file:
        file.writestr("README", "text")
        for path in files or sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".npz"):
            inside = Path(called) / path.relative_to(folder)
            file.write(path, inside)
            file.writestr(f"__MACOSX/{inside.parent}/._{inside.name}", "x")
    return archive


@pytest.fixture(scope="module")
def packed(root, tmp_path_factory) -> Path:
    """The data sets of `root` as they are downloaded; GTA5's pictures come in several archives."""
    packed = tmp_path_factory.mktemp("packed")
    for archive, (folder, called) in DOWNLOADED.items():
        pack(root / folder, called, packed / archive)
    pictures = sorted((root / "gta/images").iterdir())
    pack(root / "gta/images", "images", packed / "gta/01_images.zip", pictures[:4], compression=ZIP_STORED)
    pack(root / "gta/images", "images", packed / "gta/02_images.zip", pictures[4:])
    return packed


@pytest.mark.parametrize("name, split", [("gta5", "train"), ("synthia", "train"), ("cityscapes", "val")])
def test_a_packed_data_set_is_the_data_set(root, packed, name, split):
    there, here = (domains.labelled(name, place, split) for place in (root, packed))
    assert [p.name for p in here.images] == [p.name for p in there.images]
    for ours, theirs in zip((*here.images, *here.labels), (*there.images, *there.labels), strict=True):
        assert content(ours) == theirs.read_bytes()
    assert image_size(here.images[0]) == image_size(there.images[0])
    assert np.array_equal(class_statistics(here).pixels, class_statistics(there).pixels)
    assert check_labelled(domains.survey(name, packed, split)).ok
    assert not [path for path in packed.rglob("*.png")]


@pytest.mark.parametrize(
    "name, split, has", [("cityscapes", "val", True), ("cityscapes", "test", False), ("gta", "train", True),
                         ("gta5", "val", False), ("urbansyn", "train", False)],
)  # fmt: skip
def test_labels_are_asked_for_without_being_unpacked(root, packed, name, split, has):
    assert domains.has_labels(name, root, split) == domains.has_labels(name, packed, split) == has


def test_of_an_own_folder_splits_are_asked_for(tmp_path):
    for folder in ("images/train", "images/val", "labels/train", "other/images/train", "other/labels/train"):
        (tmp_path / folder).mkdir(parents=True)
    assert domains.has_labels(f"folder:{tmp_path}", tmp_path, "train")
    assert not domains.has_labels(f"folder:{tmp_path}", tmp_path, "val")  # pictures alone
    assert not domains.has_labels(f"folder:{tmp_path}/other", tmp_path, "val")
    with pytest.raises(ValueError, match="no domain is called 'mars'"):
        domains.has_labels("mars", tmp_path, "val")


@pytest.mark.parametrize("source", ["gta5", "synthia"])
def test_samples_are_the_same(root, packed, source):
    there, here = (make_pairs(place, source=source) for place in (root, packed))
    assert all(same(there[i], here[i]) for i in range(6))


def test_what_is_unpacked_comes_first(root, tmp_path):
    shutil.copytree(root / "gta/images", tmp_path / "gta/images")
    pack(root / "gta/images", "images", tmp_path / "gta/01_images.zip")
    pack(root / "gta/labels", "labels", tmp_path / "gta/01_labels.zip")
    found = domains.labelled("gta5", tmp_path, "train")
    assert {p.parent for p in found.images} == {tmp_path / "gta/images"}
    assert {p.parent for p in found.labels} == {tmp_path / "gta/01_labels.zip/labels"}


def test_processes_that_inherit_an_open_archive_do_not_disturb_each_other(packed):
    paths = domains.labelled("gta5", packed, "train").images
    expected = [int(read_image(path).sum()) for path in paths]  # the archives are open now
    assert sweep(_sum, paths * 20, title="reading", workers=3) == expected * 20


def _sum(path: Path) -> int:
    return int(read_image(path).sum())


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_download_that_broke_off_is_named(root, tmp_path, damage):
    archive = pack(root / "gta/images", "images", tmp_path / "gta/01_images.zip")
    whole = archive.read_bytes()
    archive.write_bytes({"cut": whole[: len(whole) // 2], "text": b"<html>", "empty": b""}[damage])
    with pytest.raises(ArchiveError, match=r"01_images\.zip: not a readable zip file .*as a whole"):
        domains.unlabelled("gta5", tmp_path, "train")


def test_a_damaged_picture_in_an_archive_is_named(root, tmp_path):
    archive = pack(root / "gta/images", "images", tmp_path / "gta/01_images.zip", compression=ZIP_STORED)
    picture = domains.unlabelled("gta5", tmp_path, "train").images[2]
    with opened(picture) as file:
        stored = file.read()
    archive.write_bytes(archive.read_bytes().replace(stored[100:200], bytes(100)))
    with pytest.raises(ImageFileError, match=rf"{picture.name}: not a readable image .*01_images\.zip"):
        read_image(picture)


def test_a_name_that_an_archive_does_not_have(root, tmp_path):
    archive = pack(root / "gta/images", "images", tmp_path / "x.zip")
    with pytest.raises(ImageFileError, match=r"nothing\.png: not a readable image"):
        read_image(archive / "images/nothing.png")

"""Pictures and videos that nobody has labelled: which lie below a folder, and pictures as a network sees them."""

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dida.data.image_file import read_image
from dida.data.layouts import IMAGE_SUFFIXES
from dida.data.listing import files_below, what_lies_there
from dida.data.own_folder import refuse_label_maps
from dida.data.transforms import scaled_image

_log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".avi")
Picture = TypeVar("Picture")


class SeenPicture(NamedTuple):
    """A picture, and what a network sees of it."""

    native: Tensor  # [H, W, 3] uint8 RGB
    scaled: Tensor  # [3, h, w] uint8 RGB
    path: str


class Pictures(Dataset[SeenPicture]):
    """Pictures in order, each scaled to fit into `scale` (width, height); see `scaled_image`."""

    def __init__(self, paths: list[Path], scale: tuple[int, int], *, enlarge: bool) -> None:
        self._paths, self._scale, self._enlarge = paths, scale, enlarge

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> SeenPicture:
        """Raises ImageFileError for a file that is no picture."""
        native = read_image(self._paths[index])
        return seen_picture(native, self._scale, enlarge=self._enlarge, path=self._paths[index])


def seen_picture(native: np.ndarray, scale: tuple[int, int], *, enlarge: bool, path: Path) -> SeenPicture:
    """[H, W, 3] uint8 RGB with what a network sees of it."""
    scaled = scaled_image(native, scale, enlarge=enlarge)
    return SeenPicture(torch.tensor(native), torch.tensor(scaled).permute(2, 0, 1).contiguous(), str(path))


def of_one_shape(
    pictures: Iterable[Picture], most: int, shape: Callable[[Any], Any] = np.shape
) -> Iterator[list[Picture]]:
    """Neighbours of one shape, at most so many together, cut as they come: a film is longer than memory."""
    for _, same in groupby(pictures, key=shape):
        while batch := list(islice(same, most)):
            yield batch
            del batch  # or it would be kept while the next is read


class Found(NamedTuple):
    """What lies at the places that were named, place by place; below a folder paths are sorted."""

    names: dict[Path, Path]  # of each file its place below the folder that was named
    pictures: list[Path]
    videos: list[Path]


def find_pictures(*places: Path, but: Iterable[Path] = ()) -> Found:
    """Files themselves, and all pictures and videos below folders, those that are, or lie below, one of `but` apart.

    Of a data set of one's own, which has labels/ or classes.json beside images/, the images. Raises FileNotFoundError
    for a place where there is none, and as `files_below` and `refuse_label_maps`.
    """
    apart = {place.resolve() for place in but}
    found = Found({}, [], [])
    for place in places:
        folder, pictures, videos = _found_at(place, apart)
        for known, more in ((found.pictures, pictures), (found.videos, videos)):
            known += [path for path in more if path not in found.names]
        for path in (*pictures, *videos):
            found.names.setdefault(path, path.relative_to(folder))
    return found


def _found_at(path: Path, apart: set[Path]) -> tuple[Path, list[Path], list[Path]]:
    """The folder that names start from, pictures and videos."""
    if path.is_file():
        return path.parent, *_sorted_out([path], any_suffix=True)
    folder = path
    if (path / "images").is_dir() and ((path / "labels").is_dir() or (path / "classes.json").is_file()):
        folder = path / "images"
        _log.info("%s is a data set: its pictures are those in %s", path, folder)
    else:
        refuse_label_maps(folder)
    outside = [p for p in files_below(folder) if apart.isdisjoint((p.resolve(), *p.resolve().parents))]
    pictures, videos = _sorted_out(outside, any_suffix=False)
    if not pictures and not videos:
        endings = ", ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
        raise FileNotFoundError(f"{path}: no picture there (looked for {endings}); {what_lies_there(path, ['these'])}")
    if left := sorted(set(outside) - {*pictures, *videos}):
        _log.warning("%d files are neither pictures nor videos and are left out, e.g. %s", len(left), left[0])
    return folder, pictures, videos


def _sorted_out(files: Iterable[Path], *, any_suffix: bool) -> tuple[list[Path], list[Path]]:
    """Pictures and videos. A file that was named by itself counts as a picture whatever its name ends in."""
    files = list(files)
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    pictures = [
        path for path in files if path not in set(videos) and (any_suffix or path.suffix.lower() in IMAGE_SUFFIXES)
    ]
    return pictures, videos

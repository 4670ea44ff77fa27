"""Pictures and videos that nobody has labelled: which lie below a folder, and pictures as a network sees them."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

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


class Found(NamedTuple):
    """What lies below a folder. Paths are sorted."""

    folder: Path
    pictures: list[Path]
    videos: list[Path]

    def name_of(self, path: Path) -> Path:
        """The place of a file below the folder."""
        return path.relative_to(self.folder)


def find_pictures(path: Path, *, but: Iterable[Path] = ()) -> Found:
    """The file itself, or all pictures and videos below a folder, those that are, or lie below, one of `but` apart.

    Of a data set of one's own, which has labels/ or classes.json beside images/, the images. Raises FileNotFoundError
    where there is none, and as `files_below` and `refuse_label_maps`.
    """
    if path.is_file():
        found = Found(path.parent, *_sorted_out([path], any_suffix=True))
    else:
        folder = path
        if (path / "images").is_dir() and ((path / "labels").is_dir() or (path / "classes.json").is_file()):
            folder = path / "images"
            _log.info("%s is a data set: its pictures are those in %s", path, folder)
        else:
            refuse_label_maps(folder)
        apart = {place.resolve() for place in but}
        outside = [p for p in files_below(folder) if apart.isdisjoint((p.resolve(), *p.resolve().parents))]
        found = Found(folder, *_sorted_out(outside, any_suffix=False))
        left = sorted(set(outside) - {*found.pictures, *found.videos})
        if left and (found.pictures or found.videos):
            _log.warning("%d files are neither pictures nor videos and are left out, e.g. %s", len(left), left[0])
    if not found.pictures and not found.videos:
        endings = ", ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
        raise FileNotFoundError(
            f"--images {path}: no picture there (looked for {endings}); {what_lies_there(path, ['these'])}"
        )
    return found


def _sorted_out(files: Iterable[Path], *, any_suffix: bool) -> tuple[list[Path], list[Path]]:
    """Pictures and videos. A file that was named by itself counts as a picture whatever its name ends in."""
    files = list(files)
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    pictures = [
        path for path in files if path not in set(videos) and (any_suffix or path.suffix.lower() in IMAGE_SUFFIXES)
    ]
    return pictures, videos

"""Pictures and labels scaled to the size of training: decoded each time, or kept in a folder (--cache DIR).

What is kept is one file for each, which processes and runs map into their memory: a crop costs its own bytes and no
decoding. Its name is a digest of the content that it was made from and of what was done with it, so that equal pictures
are kept once and a changed one is made anew. To know the content the whole file would have to be read; so a link, named
by path, size and modification time, leads to what is kept.

A file appears under its name once it is whole. Whoever writes may be killed, and two may write the same. Nothing is
ever removed: delete the folder when it is not needed any more.
"""

import hashlib
import logging
import mmap
import os
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dida.data.archive import stamp
from dida.data.image_file import Encoding, ImageFileError, decode_ids, decode_image, encoded_file
from dida.data.transforms import scaled_image, scaled_label
from dida.machine.files import whole_file

_log = logging.getLogger(__name__)

Size = tuple[int, int]  # (width, height)


class Scaled(NamedTuple):
    """A picture [h, w, 3] RGB or a label [h, w], scaled."""

    pixels: np.ndarray
    native: tuple[int, int]  # (height, width) of the file


@dataclass(frozen=True)
class ScaledFiles:
    """Decodes and scales whenever it is asked."""

    def image(self, path: Path, scale: Size, *, enlarge: bool) -> Scaled:
        """uint8 RGB, as `scaled_image` has it. Raises ImageFileError."""
        return _scaled_image(path, encoded_file(path, "image"), scale, enlarge)

    def label(self, path: Path, encoding: Encoding, scale: Size, *, enlarge: bool) -> Scaled:
        """uint8 train ids, as `scaled_label` has them. Raises ImageFileError."""
        ids = _scaled_ids(path, encoded_file(path, "label"), encoding, scale, enlarge)
        return ids._replace(pixels=encoding.ids.apply(ids.pixels))


@dataclass(frozen=True)
class CachedFiles:
    """The same, from what is kept in a folder; what is not there yet is made and kept. Its pixels are read-only."""

    folder: Path

    def __post_init__(self) -> None:
        """Raises OSError where nothing can be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()  # has no name that two could meet at
        except OSError as error:
            raise OSError(f"--cache {self.folder}: cannot be written to ({error.strerror})") from error

    def image(self, path: Path, scale: Size, *, enlarge: bool) -> Scaled:
        """See `ScaledFiles.image`. Raises OSError too, where the folder is full."""
        how = f"image {scale} {enlarge}"
        return self._kept(path, "image", how, lambda encoded: _scaled_image(path, encoded, scale, enlarge))

    def label(self, path: Path, encoding: Encoding, scale: Size, *, enlarge: bool) -> Scaled:
        """See `ScaledFiles.label`. Raw ids are kept, so that class sets may differ between runs."""
        how = f"ids {scale} {enlarge} {encoding.red_of_16_bit} {encoding.colours} {encoding.by_colour_alone}"
        ids = self._kept(path, "label", how, lambda encoded: _scaled_ids(path, encoded, encoding, scale, enlarge))
        return ids._replace(pixels=encoding.ids.apply(ids.pixels))

    def _kept(self, path: Path, kind: str, how: str, make: Callable[[bytes], Scaled]) -> Scaled:
        try:
            size, version = stamp(path)
        except (OSError, ValueError) as error:
            raise ImageFileError(f"{path}: not a readable {kind} ({error})") from error
        link = self._place("names", f"{path.absolute()}\0{size}\0{version}\0{how}".encode())
        if (found := _mapped(link)) is not None:
            return found
        encoded = encoded_file(path, kind)
        place = self._place("kept", encoded, how.encode())
        if (found := _mapped(place)) is None:
            found = make(encoded)
            _write(place, found)
        _point(link, place)
        return found

    def _place(self, kind: str, *parts: bytes) -> Path:
        digest = hashlib.sha256(_MARK)
        for part in parts:
            digest.update(part)
        name = digest.hexdigest()[:40]
        return self.folder / kind / name[:2] / name[2:]


def _scaled_image(path: Path, encoded: bytes, scale: Size, enlarge: bool) -> Scaled:
    image = decode_image(path, encoded)
    return Scaled(scaled_image(image, scale, enlarge=enlarge), image.shape[:2])


def _scaled_ids(path: Path, encoded: bytes, encoding: Encoding, scale: Size, enlarge: bool) -> Scaled:
    """Raw ids: with nearest neighbours it is all one whether they are mapped before or after."""
    ids = decode_ids(path, encoded, encoding)
    return Scaled(scaled_label(ids, scale, enlarge=enlarge), ids.shape)


# ---- what is kept: a head, then the pixels -------------------------------------------------------------------------

_MARK = b"DIDA 001"  # count up when what is kept, or how it is made, changes
_HEAD = struct.Struct("<8s6q")  # mark; height and width of the file; height, width, channels (0: none), bytes a number


def _mapped(path: Path) -> Scaled | None:
    """What a file holds, in memory only where it is looked at; None if there is none, or none that is whole."""
    try:
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mark, *native, height, width, channels, item = _HEAD.unpack_from(memory)
        shape = (height, width, channels) if channels else (height, width)
        pixels = np.frombuffer(memory, dtype=f"u{item}", offset=_HEAD.size).reshape(shape)
        if mark != _MARK:
            raise ValueError(f"it begins with {mark!r}")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, struct.error) as error:
        _log.warning("%s is damaged (%s): made anew", path, error)
        return None
    return Scaled(pixels, (native[0], native[1]))


def _write(path: Path, scaled: Scaled) -> None:
    pixels = np.ascontiguousarray(scaled.pixels)
    height, width, *channels = pixels.shape
    head = _HEAD.pack(_MARK, *scaled.native, height, width, channels[0] if channels else 0, pixels.itemsize)
    with whole_file(path) as file:
        file.write(head)
        file.write(pixels.data)


def _point(link: Path, place: Path) -> None:
    """Make `link` lead to `place`, at once; relative, so that the folder may be moved."""
    link.parent.mkdir(parents=True, exist_ok=True)
    made = link.with_name(f".{link.name}.{os.getpid()}.partial")
    made.unlink(missing_ok=True)
    made.symlink_to(os.path.relpath(place, link.parent))
    made.replace(link)

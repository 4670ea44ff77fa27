"""Image and label files: decoding, errors that name the file, and PNGs that are whole or not there.

The one place that decodes. Pillow does it for everything but SYNTHIA's labels: it keeps the index of a palette PNG
(OpenCV turns it into colours) and refuses a truncated JPEG (OpenCV fills the rest with grey). SYNTHIA's 16-bit RGB
labels need OpenCV. Files are turned as their EXIF orientation says before anybody sees them; labels rarely have one.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from dida.data.classes import IdMap
from dida.files import whole_file

# What Pillow raises for damaged files: its PNG reader uses SyntaxError, cut-off headers end in struct.error.
_DAMAGE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


_LOSSY = {"MPO": "JPEG"} | {name: name for name in ("JPEG", "JPEG2000", "WEBP", "AVIF")}  # Pillow's names


class ImageFileError(ValueError):
    """A file cannot be used as the image or label it should be. The message names the file and the reason."""


NO_COLOUR = 0xFFFF  # the raw id that stands for every colour which is none of an encoding's


class Encoding(NamedTuple):
    """How the pixels of a label file spell classes."""

    ids: IdMap
    red_of_16_bit: bool = False  # SYNTHIA: the raw id is the red channel of a 16-bit RGB PNG
    colours: tuple[tuple[int, int], ...] = ()  # (0xRRGGBB, raw id): a label in colours is read by them

    def spell(self, raw: int) -> str:
        """A raw id as messages name it."""
        return "colours that classes.json does not have" if self.colours and raw == NO_COLOUR else f"raw id {raw}"


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) as `read_image` gives it, from the header alone. Raises ImageFileError."""
    with _opened(path, "image") as image:
        width, height = image.size
        return (height, width) if _orientation(image) in _ON_THEIR_SIDE else (width, height)


def read_image(path: Path) -> np.ndarray:
    """The image as [H, W, 3] uint8 RGB, upright. Raises ImageFileError."""
    with _opened(path, "image") as image:
        if image.mode.startswith(("I", "F")):
            raise ImageFileError(f"{path}: more than 8 bits per channel (mode {image.mode})")
        turn = _TURNS.get(_orientation(image))
        image = image if image.mode == "RGB" else image.convert("RGB")
        return np.asarray(image if turn is None else image.transpose(turn))


def read_ids(path: Path, encoding: Encoding) -> np.ndarray:
    """The raw ids of a label file as [H, W], uint8 if they all fit, else uint16. Raises ImageFileError."""
    ids = _red_of_16_bit(path) if encoding.red_of_16_bit else _indices(path, encoding)
    if ids.dtype == np.uint8:
        return ids
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high > 0xFFFF:
        raise ImageFileError(f"{path}: label ids from {low} to {high}; 0 to 65535 can be mapped")
    return ids.astype(np.uint8 if high <= 0xFF else np.uint16)


def read_label(path: Path, encoding: Encoding) -> np.ndarray:
    """The label as [H, W] uint8 train ids, native resolution; raw ids that are no class become 255."""
    return encoding.ids.apply(read_ids(path, encoding))


def save_png(path: Path, pixels: np.ndarray) -> None:
    """[H, W] or [H, W, 3] RGB uint8, with the folders above it. Raises OSError."""
    with whole_file(path) as file:
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG")


def require_same_size(image: Path, image_hw: tuple[int, ...], label: Path, label_hw: tuple[int, ...]) -> None:
    """Raise ImageFileError naming both files if the image and its label differ in height or width."""
    if image_hw[:2] != label_hw[:2]:
        sizes = [f"{hw[1]}x{hw[0]}" for hw in (image_hw, label_hw)]
        raise ImageFileError(f"image {image} is {sizes[0]}, but its label {label} is {sizes[1]}")


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[Image.Image]:
    """A picture whose header was read. What is wrong with it, then or while it is used, becomes an ImageFileError."""
    try:
        if not path.is_file() and path.exists():
            raise ImageFileError(f"{path}: no file, but a folder, a pipe or a device")  # a pipe would be waited for
        with Image.open(path) as image:
            yield image
    except ImageFileError:
        raise
    except _DAMAGE as error:
        raise ImageFileError(f"{path}: not a readable {kind} ({error})") from error


# EXIF orientation -> what makes the picture upright (EXIF 2.32, tag 274).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_THEIR_SIDE = (5, 6, 7, 8)
_ORIENTATION = 0x0112


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, from the header; 1, upright, where there is none or it cannot be read."""
    # Pillow turns TIFF itself, and would decode a whole PNG in search of EXIF behind its pixels.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except (*_DAMAGE, KeyError, TypeError):  # the pixels of a picture with damaged EXIF are as good as any
        return 1


def _indices(path: Path, encoding: Encoding) -> np.ndarray:
    with _opened(path, "label") as label:
        lossy = "JPEG" if label.info.get("compression") == "jpeg" else _LOSSY.get(label.format or "")
        if lossy:
            raise ImageFileError(
                f"{path}: {lossy} data, which changes the numbers that it stores, so its ids are not reliable; "
                "save labels as PNG"
            )
        turn = _TURNS.get(_orientation(label))
        return _numbers(path, label if turn is None else label.transpose(turn), encoding)


def _numbers(path: Path, label: Image.Image, encoding: Encoding) -> np.ndarray:
    """The raw ids of a label that was opened, as its format stores them."""
    if label.mode in ("RGB", "RGBA") and encoding.colours:
        return _ids_of_colours(np.asarray(label.convert("RGB")), encoding.colours)
    if label.mode == "1":
        return np.asarray(label).astype(np.uint8)
    if label.mode in ("L", "P") or label.mode.startswith("I"):
        return np.asarray(label)
    if label.mode == "F":
        raise ImageFileError(f"{path}: holds numbers with fractions (mode F) where class ids are needed")
    pixels = np.asarray(label)
    colours = pixels[:, :, : 1 if label.mode == "LA" else 3]  # without alpha
    if (colours == colours[:, :, :1]).all():  # grey: one number, saved three times
        return pixels[:, :, 0]
    raise ImageFileError(
        f"{path}: holds colours (mode {label.mode}) where one class id per pixel is needed; "
        'is it a colour rendering of the labels? classes.json can give each class its "color"'
    )


def _ids_of_colours(rgb: np.ndarray, colours: tuple[tuple[int, int], ...]) -> np.ndarray:
    """[H, W, 3] uint8 -> [H, W] raw ids, uint16; colours that are none of these become NO_COLOUR."""
    code = rgb[:, :, 0].astype(np.int32) << 16
    code |= rgb[:, :, 1].astype(np.int32) << 8
    code |= rgb[:, :, 2]
    return _colour_table(colours)[code]


@lru_cache(maxsize=2)
def _colour_table(colours: tuple[tuple[int, int], ...]) -> np.ndarray:
    """[2^24] uint16 raw id of every colour: 32 MB, made once a process, ten times faster than searching."""
    table = np.full(1 << 24, NO_COLOUR, dtype=np.uint16)
    for code, raw in colours:
        table[code] = raw
    return table


def _red_of_16_bit(path: Path) -> np.ndarray:
    _refuse_huge_png(path)
    try:
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageFileError(f"{path}: not a readable label ({error.err})") from error
    if pixels is None:
        raise ImageFileError(f"{path}: not a readable label")
    if pixels.ndim != 3 or pixels.dtype != np.uint16:
        raise ImageFileError(f"{path}: a 16-bit RGB label was expected, this is {pixels.dtype} of shape {pixels.shape}")
    return pixels[:, :, 2]  # OpenCV orders channels B, G, R


def _refuse_huge_png(path: Path) -> None:
    """Raise ImageFileError for a header that claims more than Pillow would read: OpenCV would make room for it."""
    if not path.is_file():
        raise ImageFileError(f"{path}: not a readable label (no such file)")
    with path.open("rb") as file:
        header = file.read(24)  # signature, length and name of the first chunk, width, height
    width, height = struct.unpack(">II", header[16:24]) if len(header) == 24 else (0, 0)
    if width * height > 2 * (Image.MAX_IMAGE_PIXELS or 0):
        raise ImageFileError(f"{path}: not a readable label (its header says {width}x{height} pixels)")

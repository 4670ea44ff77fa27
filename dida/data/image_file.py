"""Image and label files: decoding, errors that name the file, and PNGs that are whole or not there.

The one place that decodes. Pillow decides what a file is and whether it is whole: it keeps the index of a palette PNG
(OpenCV turns it into colours) and refuses a truncated JPEG (OpenCV fills the rest with grey). PNGs without any
peculiarity, which published data sets are made of, never get there: libspng decodes their colours and libdeflate their
indices, to the same pixels in less time. SYNTHIA's 16-bit RGB labels are beyond Pillow. Files are turned as their
EXIF orientation says before anybody sees them; labels rarely have one.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import imagecodecs
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from dida.data.archive import content, is_packed, opened
from dida.data.classes import IdMap
from dida.machine.files import whole_file

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
    by_colour_alone: bool = False  # files hold no ids: grey ones and those with a palette are colours as well

    def spell(self, raw: int) -> str:
        """A raw id as messages name it."""
        return "colours that classes.json does not have" if self.colours and raw == NO_COLOUR else f"raw id {raw}"


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) as `read_image` gives it, from the header alone. Raises ImageFileError."""
    with _named(path, "image"), opened(_regular(path)) as file, Image.open(file) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in _ON_THEIR_SIDE else (width, height)


def read_image(path: Path) -> np.ndarray:
    """The image as [H, W, 3] uint8 RGB, upright. Raises ImageFileError."""
    return decode_image(path, encoded_file(path, "image"))


def decode_image(path: Path, encoded: bytes) -> np.ndarray:
    """`read_image` of a file's content; the path is for messages."""
    if (plain := _plain_colours(encoded)) is not None:
        return plain
    with _named(path, "image"), Image.open(io.BytesIO(encoded)) as image:
        require_8_bits(image.mode, str(path))
        turn = _TURNS.get(_orientation(image))
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        return np.asarray(rgb if turn is None else rgb.transpose(turn))


def require_8_bits(mode: str, what: str) -> None:
    """Raise ImageFileError for a mode of Pillow whose numbers `convert("RGB")` would cut off at 255."""
    if mode.startswith(("I", "F")):
        raise ImageFileError(f"{what}: more than 8 bits per channel (mode {mode})")


def read_ids(path: Path, encoding: Encoding) -> np.ndarray:
    """The raw ids of a label file as [H, W], uint8 if they all fit, else uint16. Raises ImageFileError."""
    return decode_ids(path, encoded_file(path, "label"), encoding)


def decode_ids(path: Path, encoded: bytes, encoding: Encoding) -> np.ndarray:
    """`read_ids` of a file's content; the path is for messages."""
    ids = _red_of_16_bit(path, encoded) if encoding.red_of_16_bit else _indices(path, encoded, encoding)
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


def encoded_file(path: Path, kind: str) -> bytes:
    """The content of a picture's file. `kind`: "image" or "label", for messages. Raises ImageFileError."""
    with _named(path, kind):
        return content(_regular(path))


def _regular(path: Path) -> Path:
    if not is_packed(path) and not path.is_file() and path.exists():
        raise ImageFileError(f"{path}: no file, but a folder, a pipe or a device")  # a pipe would be waited for
    return path


@contextmanager
def _named(path: Path, kind: str) -> Iterator[None]:
    """What is wrong with a file becomes an ImageFileError that names it."""
    try:
        yield
    except ImageFileError:
        raise
    except _DAMAGE as error:
        # Pillow's own words for a file of no format name an object in memory.
        why = "of no format that is known" if isinstance(error, UnidentifiedImageError) else error
        raise ImageFileError(f"{path}: not a readable {kind} ({why})") from error


# ---- PNGs without any peculiarity ----------------------------------------------------------------------------------

_GREY, _RGB, _PALETTE = 0, 2, 3  # colour types of PNG
_PECULIAR = {b"tRNS", b"eXIf", b"acTL"}  # transparency, a turn, an animation


class _Png(NamedTuple):
    """The header of a PNG of 8 bits that is neither interlaced nor peculiar, nor larger than Pillow would read."""

    width: int
    height: int
    colour: int  # type
    data: int  # where the first chunk of pixels begins


def _plain_png(encoded: bytes) -> _Png | None:
    if not encoded.startswith(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR") or len(encoded) < 33:
        return None
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", encoded, 16)
    names, at = set(), 8
    while (name := encoded[at + 4 : at + 8]) != b"IDAT":
        if (end := _chunk_end(encoded, at)) is None:
            return None
        names.add(name)
        at = end
    if depth != 8 or interlaced or names & _PECULIAR or not 0 < width * height <= (Image.MAX_IMAGE_PIXELS or 0):
        return None
    return _Png(width, height, colour, at)


def _chunk_end(encoded: bytes, at: int) -> int | None:
    """Where the chunk at `at` ends; None where it is cut off or its checksum is wrong."""
    length = int.from_bytes(encoded[at : at + 4])
    body = memoryview(encoded)[at + 4 : at + 8 + length]  # name and data
    check = encoded[at + 8 + length : at + 12 + length]
    return at + 12 + length if len(check) == 4 and zlib.crc32(body) == int.from_bytes(check) else None


def _plain_colours(encoded: bytes) -> np.ndarray | None:
    """[H, W, 3] uint8 of a plain RGB PNG; None for anything else, and for one that is damaged."""
    png = _plain_png(encoded)
    if png is None or png.colour != _RGB:
        return None
    try:
        return imagecodecs.spng_decode(encoded)
    except imagecodecs.SpngError:
        return None  # Pillow then says what is wrong with it


def _plain_indices(encoded: bytes) -> np.ndarray | None:
    """[H, W] uint8 of a plain PNG of one channel whose rows are stored as they are; None for anything else."""
    png = _plain_png(encoded)
    if png is None or png.colour not in (_GREY, _PALETTE):
        return None
    stream, at = [], png.data
    while encoded[at + 4 : at + 8] == b"IDAT":
        if (end := _chunk_end(encoded, at)) is None:
            return None
        stream.append(encoded[at + 8 : end - 4])
        at = end
    size = png.height * (1 + png.width)  # each row begins with its filter
    try:
        rows = np.frombuffer(imagecodecs.deflate_decode(b"".join(stream), out=size), dtype=np.uint8)
    except imagecodecs.DeflateError:
        return None
    if len(rows) != size:
        return None
    rows_HW = rows.reshape(png.height, 1 + png.width)
    return None if rows_HW[:, 0].any() else np.ascontiguousarray(rows_HW[:, 1:])


# ---- everything else -----------------------------------------------------------------------------------------------

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


def _indices(path: Path, encoded: bytes, encoding: Encoding) -> np.ndarray:
    if not encoding.by_colour_alone and (plain := _plain_indices(encoded)) is not None:
        return plain
    with _named(path, "label"), Image.open(io.BytesIO(encoded)) as label:
        lossy = "JPEG" if label.info.get("compression") == "jpeg" else _LOSSY.get(label.format or "")
        if lossy:
            raise ImageFileError(
                f"{path}: {lossy} data, which changes the numbers that it stores, so its ids are not reliable; "
                "save labels as PNG"
            )
        stored = _stored(label)
        if ";16" in stored and label.mode[0] not in "IF":
            raise ImageFileError(
                f"{path}: {label.mode} of 16 bits a channel, of which 8 would be read; save labels with one channel"
            )
        turn = _TURNS.get(_orientation(label))
        numbers = _numbers(path, label if turn is None else label.transpose(turn), encoding)
        return numbers // _SPREAD[stored] if stored in _SPREAD and not encoding.by_colour_alone else numbers


# Pillow spreads grey of fewer bits over 0 to 255, which is right for a picture: 3 of 2 bits becomes 255.
_SPREAD = {"L;2": np.uint8(85), "L;4": np.uint8(17)}


def _stored(image: ImageFile.ImageFile) -> str:
    """How a file that was opened, and not yet decoded, stores a pixel, in Pillow's words: "RGB;16B"."""
    how = image.tile[0].args if image.tile else ""
    return str(how[0] if isinstance(how, tuple) else how)


def _numbers(path: Path, label: Image.Image, encoding: Encoding) -> np.ndarray:
    """The raw ids of a label that was opened, as its format stores them."""
    if encoding.by_colour_alone and label.mode.startswith(("I", "F")):
        raise ImageFileError(f"{path}: holds numbers (mode {label.mode}) where classes.json has colours and no ids")
    if encoding.by_colour_alone or (label.mode in ("RGB", "RGBA") and encoding.colours):
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
        return np.ascontiguousarray(pixels[:, :, 0])
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


def _red_of_16_bit(path: Path, encoded: bytes) -> np.ndarray:
    _refuse_huge_png(path, encoded)
    try:
        pixels = imagecodecs.png_decode(encoded)
    except (imagecodecs.PngError, ValueError) as error:
        raise ImageFileError(f"{path}: not a readable label ({error})") from error
    if pixels.ndim != 3 or pixels.dtype != np.uint16:
        raise ImageFileError(f"{path}: a 16-bit RGB label was expected, this is {pixels.dtype} of shape {pixels.shape}")
    return cv2.extractChannel(pixels, 0)  # six times faster than a slice


def _refuse_huge_png(path: Path, encoded: bytes) -> None:
    """Raise ImageFileError for a header that claims more than Pillow would read: libpng would make room for it."""
    width, height = struct.unpack(">II", encoded[16:24]) if len(encoded) >= 24 else (0, 0)
    if width * height > 2 * (Image.MAX_IMAGE_PIXELS or 0):
        raise ImageFileError(f"{path}: not a readable label (its header says {width}x{height} pixels)")

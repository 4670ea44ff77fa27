"""Image and label files: decoding, errors that name the file, and PNGs that are whole or not there.

Pillow decodes everything but SYNTHIA's labels: it keeps the index of a palette PNG (OpenCV turns it into colours)
and refuses a truncated JPEG (OpenCV fills the rest with grey). SYNTHIA's 16-bit RGB labels need OpenCV.
"""

import struct
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from dida.data.classes import IdMap
from dida.files import whole_file

# What Pillow raises for damaged files: its PNG reader uses SyntaxError, cut-off headers end in struct.error.
_DAMAGE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


class ImageFileError(ValueError):
    """A file cannot be used as the image or label it should be. The message names the file and the reason."""


class Encoding(NamedTuple):
    """How the pixels of a label file spell classes."""

    ids: IdMap
    red_of_16_bit: bool = False  # SYNTHIA: the raw id is the red channel of a 16-bit RGB PNG


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header alone. Raises ImageFileError."""
    try:
        with Image.open(path) as image:
            return image.size
    except _DAMAGE as error:
        raise ImageFileError(f"{path}: not a readable image ({error})") from error


def read_image(path: Path) -> np.ndarray:
    """The image as [H, W, 3] uint8 RGB. Raises ImageFileError."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ImageFileError(f"{path}: more than 8 bits per channel (mode {image.mode})")
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # convert always copies
    except ImageFileError:
        raise
    except _DAMAGE as error:
        raise ImageFileError(f"{path}: not a readable image ({error})") from error


def read_ids(path: Path, encoding: Encoding) -> np.ndarray:
    """The raw ids of a label file as [H, W], uint8 if they all fit, else uint16. Raises ImageFileError."""
    ids = _red_of_16_bit(path) if encoding.red_of_16_bit else _indices(path)
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


def _indices(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as label:
            if label.mode not in ("L", "P") and not label.mode.startswith("I"):
                raise ImageFileError(
                    f"{path}: holds colours (mode {label.mode}) where one class id per pixel is needed; "
                    "is it a colour rendering of the labels?"
                )
            return np.asarray(label)
    except ImageFileError:
        raise
    except _DAMAGE as error:
        raise ImageFileError(f"{path}: not a readable label ({error})") from error


def _red_of_16_bit(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ImageFileError(f"{path}: not a readable label")
    if pixels.ndim != 3 or pixels.dtype != np.uint16:
        raise ImageFileError(f"{path}: a 16-bit RGB label was expected, this is {pixels.dtype} of shape {pixels.shape}")
    return pixels[:, :, 2]  # OpenCV orders channels B, G, R

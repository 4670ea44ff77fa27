"""Scale, crop, flip and normalise: the pipeline of DAFormer, which the paper trains with, to the rounding rule.

Sizes are (width, height) in pixels. Arrays are [H, W] labels of train ids and [H, W, 3] RGB images, both uint8.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from dida.batch import IGNORE, MEAN, STD

_MEAN_COLOUR = tuple(round(mean) for mean in MEAN)  # padding: within 0.01 of 0 once normalised
_TRIES = 10  # crops that are tested; the one drawn after the last failed test is taken as it is


class Crop(NamedTuple):
    """The upper left corner of a crop in the scaled image."""

    left: int
    top: int


class Normalise(torch.nn.Module):
    """[..., 3, H, W] uint8 RGB -> float32, less the ImageNet mean and over its deviation, where this module lives."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        # buffers, because a constant made anew on the GPU for each batch would wait for the stream
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return (image.float() - self.mean) / self.std


def keep_ratio_size(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int]:
    """The largest (width, height) of the same aspect ratio that fits into `scale`, whichever way `scale` is turned.

    1914x1052 into 1280x720 is 1280x704. No side becomes less than a pixel.
    """
    factor = min(max(scale) / max(size), min(scale) / min(size))
    return max(int(size[0] * factor + 0.5), 1), max(int(size[1] * factor + 0.5), 1)


def scaled_image(image: np.ndarray, scale: tuple[int, int], *, enlarge: bool = True) -> np.ndarray:
    """The whole image, scaled bilinearly to fit `scale`; without `enlarge` a smaller one stays as it is."""
    return _resized(image, scale, cv2.INTER_LINEAR, enlarge)


def scaled_label(label: np.ndarray, scale: tuple[int, int], *, enlarge: bool = True) -> np.ndarray:
    """The whole label, scaled to fit `scale` with nearest neighbours; without `enlarge` a smaller one stays."""
    return _resized(label, scale, cv2.INTER_NEAREST, enlarge)


def random_crop(rng: np.random.Generator, size: tuple[int, int], crop: tuple[int, int]) -> Crop:
    """Any crop that lies inside an image of `size`, all equally likely. Two draws."""
    top = int(rng.integers(max(size[1] - crop[1], 0) + 1))
    left = int(rng.integers(max(size[0] - crop[0], 0) + 1))
    return Crop(left, top)


def varied_crop(rng: np.random.Generator, label: np.ndarray, crop: tuple[int, int], cat_max_ratio: float) -> Crop:
    """A random crop with two or more classes, none of them more than `cat_max_ratio` of its labelled pixels.

    Tests ten crops; if none will do, the eleventh is taken as it is. A ratio of 1 tests nothing.
    """
    size = label.shape[1], label.shape[0]
    chosen = random_crop(rng, size, crop)
    if cat_max_ratio >= 1:
        return chosen
    for _ in range(_TRIES):
        pixels = _class_pixels(label, chosen, crop)
        if np.count_nonzero(pixels) > 1 and pixels.max() / pixels.sum() < cat_max_ratio:
            break
        chosen = random_crop(rng, size, crop)
    return chosen


def rare_class_crop(
    rng: np.random.Generator,
    label: np.ndarray,
    crop: tuple[int, int],
    cat_max_ratio: float,
    *,
    train_id: int,
    min_pixels: float,
) -> Crop:
    """A varied crop with more than `min_pixels` pixels of class `train_id`: ten tests, the eleventh as it is."""
    chosen = varied_crop(rng, label, crop, cat_max_ratio)
    for _ in range(_TRIES):
        if _class_pixels(label, chosen, crop)[train_id] > min_pixels:
            break
        chosen = varied_crop(rng, label, crop, cat_max_ratio)
    return chosen


def cut_image(image: np.ndarray, at: Crop, crop: tuple[int, int], *, flip: bool) -> np.ndarray:
    """The crop, mirrored if `flip`, as contiguous [3, height, width]; the mean colour fills right and bottom."""
    cut = _cut(image, at, crop, _MEAN_COLOUR, flip)
    return np.ascontiguousarray(cut.transpose(2, 0, 1))


def cut_label(label: np.ndarray, at: Crop, crop: tuple[int, int], *, flip: bool) -> np.ndarray:
    """The crop, mirrored if `flip`, as contiguous [height, width]; 255 fills right and bottom."""
    return np.ascontiguousarray(_cut(label, at, crop, IGNORE, flip))


def shown(image: np.ndarray, at: Crop, crop: tuple[int, int]) -> np.ndarray:
    """[height, width] bool: pixels of the crop that show the image, False where it is filled; the same if mirrored."""
    real = np.zeros((crop[1], crop[0]), dtype=bool)
    real[: image.shape[0] - at.top, : image.shape[1] - at.left] = True
    return real


def _resized(array: np.ndarray, scale: tuple[int, int], interpolation: int, enlarge: bool) -> np.ndarray:
    size = array.shape[1], array.shape[0]
    new = keep_ratio_size(size, scale)
    return array if new == size or (new > size and not enlarge) else cv2.resize(array, new, interpolation=interpolation)


def _class_pixels(label: np.ndarray, at: Crop, crop: tuple[int, int]) -> np.ndarray:
    """[255] pixels of each train id in a crop; 255 itself is not counted."""
    inside = np.ascontiguousarray(label[at.top : at.top + crop[1], at.left : at.left + crop[0]])
    return cv2.calcHist([inside], [0], None, [IGNORE], [0, IGNORE]).ravel()


def _cut(array: np.ndarray, at: Crop, crop: tuple[int, int], fill: int | tuple[int, ...], flip: bool) -> np.ndarray:
    inside = array[at.top : at.top + crop[1], at.left : at.left + crop[0]]
    if flip:
        inside = inside[:, ::-1]
    if inside.shape[:2] == (crop[1], crop[0]):
        return inside
    padded = np.full((crop[1], crop[0], *array.shape[2:]), fill, dtype=array.dtype)
    padded[: inside.shape[0], : inside.shape[1]] = inside
    return padded

"""Rare class sampling of source images (DAFormer; the paper's baseline, and DIDA's, uses it unchanged).

A class c is drawn with P(c) = softmax((1 - f_c) / T), f_c its share of all labelled pixels, then a file uniformly
among those with more than `min_pixels` pixels of c. The crop is then re-drawn until it shows enough of c, see
`transforms.rare_class_crop`.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_log = logging.getLogger(__name__)


class RareClasses(NamedTuple):
    """The sampling distribution over classes and, for each, its files."""

    classes: np.ndarray  # [R] train ids that can be drawn
    chance: np.ndarray  # [R] float64, sums to one
    candidates: tuple[np.ndarray, ...]  # R arrays: indices of the files with enough pixels of the class
    min_crop_pixels: float  # a crop must show more pixels of the drawn class than this
    file_chance: tuple[np.ndarray, ...] | None = None  # of each class's candidates; None: all alike

    def draw(self, rng: np.random.Generator) -> "RareDraw":
        """Draw a class, then one of its files."""
        row = rng.choice(len(self.classes), p=self.chance)
        file = int(rng.choice(self.candidates[row], p=self.file_chance[row] if self.file_chance else None))
        return RareDraw(file, int(self.classes[row]), self.min_crop_pixels)


class RareDraw(NamedTuple):
    """A source file and the class it was drawn for."""

    file: int
    train_id: int
    min_crop_pixels: float  # the crop must show more of its pixels than this


def class_chances(pixels_C: np.ndarray, temperature: float) -> np.ndarray:
    """softmax((1 - share) / temperature) over the classes that occur, [C] float64; 0 for those that do not."""
    share = pixels_C / pixels_C.sum()
    # shifted by the largest exponent, that of the rarest class, so that no exponential overflows
    lowest = share[pixels_C > 0].min()
    weight = np.where(pixels_C > 0, np.exp((lowest - share) / temperature), 0.0)
    return weight / weight.sum()


def rare_classes(
    pixels_FC: np.ndarray,
    names: Sequence[str],
    *,
    temperature: float = 0.01,
    min_pixels: float | np.ndarray = 3000,
    min_crop_ratio: float = 0.5,
    min_crop_pixels: float | None = None,
    weight_F: np.ndarray | None = None,
) -> RareClasses:
    """Build the sampler from pixel counts per file and class (Statistics.pixels, native resolution); `names` of the C.

    `min_pixels` may be a number for each file. `min_crop_pixels`: by default the share `min_crop_ratio` of it.
    `weight_F`: how many copies each file counts as; None: one.

    A class that occurs, but in no file with more than min_pixels pixels, cannot be drawn: it is dropped with a warning
    and the other chances grow in proportion. Raises ValueError for a temperature that is not positive, or if no class
    is left.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}, it must be positive")
    pixels_C = (pixels_FC if weight_F is None else pixels_FC * weight_F[:, None]).sum(axis=0)
    files = [np.flatnonzero(pixels_F > min_pixels) for pixels_F in pixels_FC.T]
    dropped = [c for c, found in enumerate(files) if pixels_C[c] > 0 and len(found) == 0]
    classes = np.array([c for c, found in enumerate(files) if len(found) > 0], dtype=np.int64)
    if len(classes) == 0:
        raise ValueError(
            f"no label file has more than {np.min(min_pixels):.0f} pixels of any class: lower "
            f"{'--rare-class-pixels' if np.ndim(min_pixels) == 0 else '--rare-class-share'} for small pictures, or "
            "leave rare classes alone with --no-rare-class-sampling"
        )
    if dropped:
        _log.warning(
            "rare class sampling leaves out %s: no file has more than %d pixels of it",
            ", ".join(names[c] for c in dropped),
            np.min(min_pixels),
        )
    chance = class_chances(pixels_C, temperature)[classes]
    candidates = tuple(files[c] for c in classes)
    return RareClasses(
        classes,
        chance / chance.sum(),
        candidates,
        float(np.min(min_pixels)) * min_crop_ratio if min_crop_pixels is None else min_crop_pixels,
        None if weight_F is None else tuple(weight_F[some] / weight_F[some].sum() for some in candidates),
    )

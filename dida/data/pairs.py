"""Pairs of a labelled source crop and an unlabelled target crop: samples.

Sample i is a pure function of (seed, i): every random choice comes from a generator keyed with both. So neither the
number of workers nor the step a run resumes at changes any sample, and nothing needs to be saved to resume. Five
streams per sample keep the choices apart: with rare class sampling on or off, the target crops stay the same.
"""

import hashlib
import os
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dida.data.colour_distortion import distorted, draw_distortion
from dida.data.domains import LabelledDomain, UnlabelledDomain
from dida.data.image_file import require_same_size
from dida.data.rare_class import RareClasses
from dida.data.scaled_files import CachedFiles, ScaledFiles
from dida.data.sources import Sources
from dida.data.transforms import (
    cut_image,
    cut_label,
    random_crop,
    rare_class_crop,
    shown,
    varied_crop,
)


class View(NamedTuple):
    """How much of a domain's images a sample shows. Sizes are (width, height).

    The paper's crops are 512x512; its scales are 1280x720 for GTA5, 1280x760 for SYNTHIA and 1024x512 for Cityscapes,
    its cat_max_ratio is 0.75 for both sources.
    """

    scale: tuple[int, int]  # the whole image is scaled to fit into this, keeping its aspect ratio
    crop: tuple[int, int]  # what is then cut out
    cat_max_ratio: float = 1.0  # a class may take at most this share of a crop's labelled pixels; 1: any crop will do
    flip_chance: float = 0.5
    distort_colours: bool = False  # of the source, for methods that do not adapt; see colour_distortion.py
    enlarge: bool = True  # images that are smaller than the scale are blown up to it, or left at their own size


class Sample(NamedTuple):
    """One source crop with its label and one target crop. Batched, each field has a leading B."""

    source_image: Tensor  # [3, H, W] uint8 RGB
    source_label: Tensor  # [H, W] uint8 train ids
    target_image: Tensor  # [3, H, W] uint8 RGB
    target_real: Tensor  # [H, W] bool: False on padding, where the scaled picture is smaller than the crop
    source_index: int  # into source.images
    target_index: int  # into target.images


class _Stream(IntEnum):
    """The independent random streams of a sample. A number, once used, keeps its meaning."""

    SOURCE_FILE = 0
    SOURCE_CROP = 1
    TARGET_FILE = 2
    TARGET_CROP = 3
    SOURCE_COLOUR = 4


class Pairs(Dataset[Sample]):
    """An endless data set: every index from 0 up is a sample.

    Source files come by rare class sampling, or if `rare_classes` is None uniformly, but in proportion to the weights
    of several `Sources`; target files uniformly; both with replacement. Any labelled domain may be the source (the
    oracle's is the labelled target domain).
    """

    def __init__(
        self,
        source: LabelledDomain | Sources,
        target: UnlabelledDomain,
        *,
        seed: int,
        source_view: View,
        target_view: View,
        rare_classes: RareClasses | None = None,
        reader: ScaledFiles | CachedFiles | None = None,
    ) -> None:
        """Raises TypeError if the target knows labels, ValueError for views that do not fit together."""
        if not isinstance(target, UnlabelledDomain):
            raise TypeError(f"the target must be an unlabelled domain, not {type(target).__name__}")
        if source_view.crop != target_view.crop:
            raise ValueError(f"source crop {source_view.crop} and target crop {target_view.crop} differ")
        if target_view.cat_max_ratio < 1:
            raise ValueError("a target crop cannot be chosen by its classes: it has no label")
        if target_view.distort_colours:
            raise ValueError("the target's colours are not distorted by its view: the method's strong view does that")
        if seed < 0:
            raise ValueError(f"seed is {seed}, it must not be negative")
        self.source, self.target = source, target
        self.source_view, self.target_view = source_view, target_view
        self.rare_classes = rare_classes
        self.reader = reader or ScaledFiles()
        self.seed = seed

    def __getitem__(self, index: int) -> Sample:
        """Raises ImageFileError if a file is unreadable or a label's size is not that of its image."""
        source_index, image, label = self._source(index)
        target_index, target_image, target_real = self._target(index)
        return Sample(
            torch.from_numpy(image),
            torch.from_numpy(label),
            torch.from_numpy(target_image),
            torch.from_numpy(target_real),
            source_index,
            target_index,
        )

    def listing(self) -> dict[str, dict[str, Any]]:
        """What the data is: of source and target, the number of pictures and a digest of all file names in order.

        Names are relative to the domain's folder, so that a data set may be moved. A sample draws files by their
        number, so a file more or less changes all samples.
        """
        source, target = self.source, self.target
        return {
            "source": {
                "pictures": len(source.images),
                "digest": _digest((*source.images, *source.labels), _common_folder(source)),
            },
            "target": {"pictures": len(target.images), "digest": _digest(target.images, target.folder)},
        }

    def _rng(self, index: int, stream: _Stream) -> np.random.Generator:
        # The stream is the highest word of Philox's 256-bit counter, the one that drawing never reaches.
        return np.random.Generator(np.random.Philox(key=[self.seed, index], counter=[0, 0, 0, int(stream)]))

    def _source(self, index: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The file index, the image [3, H, W] and the label [H, W]. The crop is chosen on the label alone, so that
        each file is decoded once however many crops are rejected."""
        files = self._rng(index, _Stream.SOURCE_FILE)
        rng = self._rng(index, _Stream.SOURCE_CROP)
        domain, view = self.source, self.source_view
        rare = None if self.rare_classes is None else self.rare_classes.draw(files)
        file = self._uniform(files) if rare is None else rare.file

        label, label_hw = self.reader.label(
            domain.labels[file], domain.encoding(file), view.scale, enlarge=view.enlarge
        )
        if rare is None:
            at = varied_crop(rng, label, view.crop, view.cat_max_ratio)
        else:
            at = rare_class_crop(
                rng,
                label,
                view.crop,
                view.cat_max_ratio,
                train_id=rare.train_id,
                min_pixels=rare.min_crop_pixels,
            )
        flip = bool(rng.random() < view.flip_chance)

        image, image_hw = self.reader.image(domain.images[file], view.scale, enlarge=view.enlarge)
        require_same_size(domain.images[file], image_hw, domain.labels[file], label_hw)
        if view.distort_colours:  # before the cut, whose padding keeps the mean colour
            image = distorted(image, draw_distortion(self._rng(index, _Stream.SOURCE_COLOUR)))
        return file, cut_image(image, at, view.crop, flip=flip), cut_label(label, at, view.crop, flip=flip)

    def _uniform(self, rng: np.random.Generator) -> int:
        n = len(self.source.images)
        weight_F = self.source.weight_F if isinstance(self.source, Sources) else None
        return int(rng.integers(n) if weight_F is None else rng.choice(n, p=weight_F / weight_F.sum()))

    def _target(self, index: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The file index, the image [3, H, W] and which of its pixels are no padding [H, W]."""
        rng = self._rng(index, _Stream.TARGET_CROP)
        view = self.target_view
        file = int(self._rng(index, _Stream.TARGET_FILE).integers(len(self.target.images)))
        image = self.reader.image(self.target.images[file], view.scale, enlarge=view.enlarge).pixels
        at = random_crop(rng, (image.shape[1], image.shape[0]), view.crop)
        flip = bool(rng.random() < view.flip_chance)
        return file, cut_image(image, at, view.crop, flip=flip), shown(image, at, view.crop)


def _common_folder(source: LabelledDomain | Sources) -> Path:
    """Of a domain, its folder; of several, the one that holds them all."""
    if isinstance(source, LabelledDomain):
        return source.folder
    return Path(os.path.commonpath([part.folder.absolute() for part in source.parts]))


def _digest(paths: Iterable[Path], folder: Path) -> str:
    names = "\n".join(os.path.relpath(path, folder) for path in paths)
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:16]

"""Predicted label maps as files: for people, for programs and for benchmark servers."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dida.data.classes import ClassSet
from dida.data.image_file import save_png

FOLDERS = ("train_ids", "label_ids", "colour")


def save_prediction(folder: Path, name: Path, train_ids: np.ndarray, class_set: ClassSet) -> None:
    """Write FOLDER/train_ids/NAME.png (0 .. C-1), FOLDER/label_ids/NAME.png (the raw ids of the class set, those of
    Cityscapes as its server takes them) and FOLDER/colour/NAME.png (RGB). `train_ids` is [H, W] uint8.
    """
    content = (train_ids, class_set.to_label_ids(train_ids), class_set.colourise(train_ids))
    for kind, pixels in zip(FOLDERS, content, strict=True):
        save_png(folder / kind / f"{name}.png", pixels)


def prediction_names(images: Sequence[Path]) -> list[Path]:
    """What the label maps of images are called, without an ending: like the images, as benchmark servers want it; where
    two have one name, with the folders that they lie in. Raises ValueError where that does not tell them apart.
    """
    names = [Path(path.stem) for path in images]
    if len(set(names)) < len(names):
        above = os.path.commonpath([path.parent for path in images])
        names = [path.relative_to(above).with_suffix("") for path in images]
    require_distinct(images, names)
    return names


def require_distinct(paths: Iterable[Path], names: Iterable[Path]) -> None:
    """Raise ValueError for two images whose predictions would have the same name."""
    seen: dict[Path, Path] = {}
    for path, name in zip(paths, names, strict=True):
        other = seen.setdefault(name, path)
        if other != path:
            raise ValueError(f"{other} and {path}: their predictions would have the same name, {name}")

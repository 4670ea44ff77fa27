"""Predicted label maps as files: for people, for programs and for benchmark servers."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dida.data.classes import ClassSet
from dida.data.image_file import save_png

FOLDERS = ("train_ids", "label_ids", "colour")


def save_prediction(folder: Path, stem: str, train_ids: np.ndarray, class_set: ClassSet) -> None:
    """Write FOLDER/train_ids/STEM.png (0 .. C-1), FOLDER/label_ids/STEM.png (the raw ids of the class set, those of
    Cityscapes as its server takes them) and FOLDER/colour/STEM.png (RGB). `train_ids` is [H, W] uint8.
    """
    content = (train_ids, class_set.to_label_ids(train_ids), class_set.colourise(train_ids))
    for name, pixels in zip(FOLDERS, content, strict=True):
        save_png(folder / name / f"{stem}.png", pixels)


def require_distinct_stems(paths: Iterable[Path]) -> None:
    """Raise ValueError for two images whose predictions would have the same name."""
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem, path)
        if other != path:
            raise ValueError(f"{other} and {path}: their predictions would have the same name, {path.stem}.png")

"""Predicted label maps as files: for people, for programs and for benchmark servers."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from dida.data.classes import TRAIN_TO_CITYSCAPES, colourise

FOLDERS = ("train_ids", "label_ids", "colour")


def save_prediction(folder: Path, stem: str, train_ids: np.ndarray) -> None:
    """Write FOLDER/train_ids/STEM.png (0 .. 18), FOLDER/label_ids/STEM.png (Cityscapes ids 0 .. 33, as its server
    takes them) and FOLDER/colour/STEM.png (RGB, the Cityscapes colours). `train_ids` is [H, W] uint8.
    """
    content = (train_ids, TRAIN_TO_CITYSCAPES[train_ids], colourise(train_ids))
    for name, pixels in zip(FOLDERS, content, strict=True):
        save_png(folder / name / f"{stem}.png", pixels)


def save_png(path: Path, pixels: np.ndarray) -> None:
    """[H, W] or [H, W, 3] RGB uint8, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)


def require_distinct_stems(paths: Iterable[Path]) -> None:
    """Raise ValueError for two images whose predictions would have the same name."""
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem, path)
        if other != path:
            raise ValueError(f"{other} and {path}: their predictions would have the same name, {path.stem}.png")

"""Small data sets in the on-disk format of each domain, with scenes that have a long tail of classes.

Sizes are (width, height); the default is 1914x1052 divided by 11. Every function returns the folder it filled.
"""

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dida.data.classes import CITYSCAPES_CLASSES

CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # by train id
SYNTHIA_IDS = (3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11)
NOT_IN_SYNTHIA = (9, 14, 16)
CLASSES = len(CITYSCAPES_CLASSES)
SIZE = (174, 96)
EGO_VEHICLE = 1  # a raw Cityscapes id that is no class


def scene(seed: int, size: tuple[int, int] = SIZE, absent: tuple[int, ...] = ()) -> np.ndarray:
    """[H, W] uint8 train ids: sky, buildings, road and sidewalk, a few small things, a void hood at the bottom."""
    rng = np.random.default_rng(seed)
    width, height = size
    label = np.full((height, width), 10, dtype=np.uint8)
    label[height // 4 :] = 2
    label[height // 2 :] = 1
    label[height // 2 :, width // 4 : 3 * width // 4] = 0
    for thing in rng.permutation([c for c in range(3, CLASSES) if c not in (10, *absent)])[:8]:
        left, top = rng.integers(width), rng.integers(height)
        label[top : top + height // 6 + 1, left : left + width // 12 + 1] = thing
    label[height - max(height // 16, 1) :] = 255
    return label


def picture(label: np.ndarray, seed: int) -> np.ndarray:
    """[H, W, 3] uint8 RGB: the class colours with noise."""
    noise = np.random.default_rng(seed).integers(-20, 21, (*label.shape, 3))
    return np.clip(CITYSCAPES_CLASSES.colourise(label) + noise, 1, 255).astype(np.uint8)


def to_raw(label: np.ndarray, ids: tuple[int, ...], void: int) -> np.ndarray:
    """Train ids -> raw ids of a format."""
    table = np.full(256, void, dtype=np.uint8)
    table[:CLASSES] = ids
    return table[label]


def save_image(path: Path, rgb: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)
    return path


def save_ids(path: Path, ids: np.ndarray, *, palette: bool = False) -> Path:
    """A one-channel PNG, grey or with a colour palette as GTA5's labels have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.save(path)
    return path


def save_synthia_label(path: Path, ids: np.ndarray) -> Path:
    """The 16-bit RGB PNG of SYNTHIA: class in red, instance in green."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bgr = np.zeros((*ids.shape, 3), dtype=np.uint16)
    bgr[:, :, 2] = ids
    bgr[:, :, 1] = 1000 + ids.astype(np.uint16)  # more than 8 bits hold
    assert cv2.imwrite(str(path), bgr)
    return path


def make_gta(
    root: Path, n: int, size: tuple[int, int] = SIZE, *, folder: str = "gta", raw: bool = True, train: bool = False
) -> Path:
    """GTA5: images/00001.png, labels/00001.png (`raw`) and labels/00001_labelTrainIds.png (`train`)."""
    for i in range(n):
        label = scene(i, size)
        stem = f"{i + 1:05d}"
        save_image(root / folder / "images" / f"{stem}.png", picture(label, i))
        if raw:
            ids = to_raw(label, CITYSCAPES_IDS, EGO_VEHICLE)
            save_ids(root / folder / "labels" / f"{stem}.png", ids, palette=True)
        if train:
            save_ids(root / folder / "labels" / f"{stem}_labelTrainIds.png", label)
    return root / folder


def make_synthia(root: Path, n: int, size: tuple[int, int] = (160, 95)) -> Path:
    """SYNTHIA-RAND-CITYSCAPES: RGB/0000000.png, GT/LABELS/0000000.png."""
    for i in range(n):
        label = scene(i, size, absent=NOT_IN_SYNTHIA)
        save_image(root / "synthia" / "RGB" / f"{i:07d}.png", picture(label, i))
        ids = to_raw(label, SYNTHIA_IDS, 22)
        save_synthia_label(root / "synthia" / "GT" / "LABELS" / f"{i:07d}.png", ids)
    return root / "synthia"


def make_cityscapes(
    root: Path,
    size: tuple[int, int] = (128, 64),
    *,
    folder: str = "cityscapes",
    labelled: tuple[str, ...] = ("train", "val"),
    train_ids: bool = False,
    **images: int,
) -> Path:
    """Cityscapes with train=N, val=N, ... images in two cities; gtFine only for the `labelled` splits."""
    base = root / folder
    for split, n in images.items():
        for i in range(n):
            city = ("aachen", "zurich")[i % 2]
            seed = 1000 + i + sum(split.encode())
            label = scene(seed, size)
            stem = f"{city}_{i:06d}_000019"
            image_folder = base / "leftImg8bit" / split / city
            save_image(image_folder / f"{stem}_leftImg8bit.png", picture(label, seed))
            if split not in labelled:
                continue
            label_folder = base / "gtFine" / split / city
            if train_ids:
                save_ids(label_folder / f"{stem}_gtFine_labelTrainIds.png", label)
            else:
                ids = to_raw(label, CITYSCAPES_IDS, EGO_VEHICLE)
                save_ids(label_folder / f"{stem}_gtFine_labelIds.png", ids)
                (label_folder / f"{stem}_gtFine_polygons.json").write_text("{}")
    return base


def make_folder(base: Path, n: int, size: tuple[int, int] = SIZE, *, classes: dict | None = None) -> Path:
    """A user's own data: images/*.jpg, labels/*.png with raw id = 100 + train id, classes.json."""
    for i in range(n):
        label = scene(i, size)
        save_image(base / "images" / f"street {i}.jpg", picture(label, i))
        save_ids(base / "labels" / f"street {i}.png", to_raw(label, tuple(range(100, 100 + CLASSES)), 0))
    if classes is None:
        classes = {"0": "ignore"} | {str(100 + c): c for c in range(CLASSES)}
    (base / "classes.json").write_text(json.dumps(classes))
    return base


def make_val(root: Path) -> Path:
    """A data root with labels for Cityscapes val alone, and a picture of the toy."""
    make_cityscapes(root, (128, 64), val=3, train=2, labelled=("val",))
    make_cityscapes(root, (128, 64), folder="toy/cityscapes", val=1)
    return root

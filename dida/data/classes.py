"""The 19 Cityscapes training classes and the id tables of every label format (train ids; 255 is no class)."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import cv2
import numpy as np

from dida.batch import IGNORE


class _Class(NamedTuple):
    name: str
    colour: tuple[int, int, int]  # RGB
    cityscapes: int  # raw id in Cityscapes and GTA5
    synthia: int  # raw id in SYNTHIA-RAND-CITYSCAPES; terrain, truck and train are named there but never drawn
    thing: bool  # countable, as opposed to stuff


_CLASSES = (
    _Class("road", (128, 64, 128), 7, 3, False),
    _Class("sidewalk", (244, 35, 232), 8, 4, False),
    _Class("building", (70, 70, 70), 11, 2, False),
    _Class("wall", (102, 102, 156), 12, 21, False),
    _Class("fence", (190, 153, 153), 13, 5, False),
    _Class("pole", (153, 153, 153), 17, 7, False),
    _Class("traffic light", (250, 170, 30), 19, 15, True),
    _Class("traffic sign", (220, 220, 0), 20, 9, True),
    _Class("vegetation", (107, 142, 35), 21, 6, False),
    _Class("terrain", (152, 251, 152), 22, 16, False),
    _Class("sky", (70, 130, 180), 23, 1, False),
    _Class("person", (220, 20, 60), 24, 10, True),
    _Class("rider", (255, 0, 0), 25, 17, True),
    _Class("car", (0, 0, 142), 26, 8, True),
    _Class("truck", (0, 0, 70), 27, 18, True),
    _Class("bus", (0, 60, 100), 28, 19, True),
    _Class("train", (0, 80, 100), 31, 20, True),
    _Class("motorcycle", (0, 0, 230), 32, 12, True),
    _Class("bicycle", (119, 11, 32), 33, 11, True),
)

NAMES = tuple(c.name for c in _CLASSES)
CLASSES = len(NAMES)
THINGS = tuple(i for i, c in enumerate(_CLASSES) if c.thing)

_NOT_IN_SYNTHIA = {"terrain", "truck", "train"}
_THIN_OR_FLAT = {"wall", "fence", "pole"}
_SUBSET_16 = tuple(i for i, name in enumerate(NAMES) if name not in _NOT_IN_SYNTHIA)
SUBSETS = {  # class count of a published table -> the train ids that its mean runs over
    19: tuple(range(CLASSES)),
    16: _SUBSET_16,
    13: tuple(i for i in _SUBSET_16 if NAMES[i] not in _THIN_OR_FLAT),
}


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


PALETTE = _frozen(np.array([c.colour for c in _CLASSES], dtype=np.uint8))  # [C, 3] RGB


class IdMap(NamedTuple):
    """From the raw ids of one label format to train ids. Covers 16 bits, so no pixel can index past its end."""

    name: str
    train: np.ndarray  # [65536] uint8 train id of each raw id; 255 where it is no class
    known: np.ndarray  # [65536] bool: the format defines this raw id, as a class or as void

    def apply(self, ids: np.ndarray) -> np.ndarray:
        """[H, W] uint8 or uint16 raw ids -> [H, W] uint8 train ids."""
        if ids.dtype == np.uint8:
            return cv2.LUT(ids, self.train[:256])  # 8 times faster than indexing
        return self.train[ids]


def id_map(name: str, train_of: Mapping[int, int], void: Iterable[int] = ()) -> IdMap:
    """The map of a format with classes `train_of` {raw id: train id} and the raw ids `void` that are no class."""
    train = np.full(1 << 16, IGNORE, dtype=np.uint8)
    known = np.zeros(1 << 16, dtype=bool)
    for raw, train_id in train_of.items():
        train[raw] = train_id
        known[raw] = True
    known[list(void)] = True
    return IdMap(name, _frozen(train), _frozen(known))


_CITYSCAPES_IDS = {c.cityscapes: i for i, c in enumerate(_CLASSES)}
CITYSCAPES_TO_TRAIN = id_map("Cityscapes", _CITYSCAPES_IDS, void=set(range(35)) - set(_CITYSCAPES_IDS))
SYNTHIA_TO_TRAIN = id_map("SYNTHIA", {c.synthia: i for i, c in enumerate(_CLASSES)}, void=(0, 13, 14, 22))
TRAIN_TO_TRAIN = id_map("train", {i: i for i in range(CLASSES)}, void=(IGNORE,))


def _train_to_cityscapes() -> np.ndarray:
    table = np.zeros(256, dtype=np.uint8)  # Cityscapes id 0 is "unlabeled"
    table[:CLASSES] = [c.cityscapes for c in _CLASSES]
    return _frozen(table)


TRAIN_TO_CITYSCAPES = _train_to_cityscapes()  # [256] uint8: train id -> label id, as the benchmark server wants it


def colourise(label: np.ndarray) -> np.ndarray:
    """[..., H, W] train ids -> [..., H, W, 3] uint8 RGB in the Cityscapes colours; 255 is black."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[:CLASSES] = PALETTE
    return colours[label]

"""Class sets as values, and the id tables of the label formats (train ids; 255 is no class).

A domain carries the class set of its labels, a run has that of its source, and head, bank, metrics, pictures and label
files follow from it: nothing below this file names a class or a number of classes.
"""

import colorsys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np

from dida.batch import IGNORE


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


@dataclass(frozen=True)
class ClassSet:
    """The classes that a network tells apart. A train id is the place of a class in these tuples."""

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]  # RGB of each class in pictures
    things: tuple[int, ...]  # train ids of what can be counted, as opposed to stuff
    label_ids: tuple[int, ...]  # raw id of each class in label files that are written; pixels of no class get 0
    means: Mapping[int, tuple[int, ...]] = field(default_factory=dict)  # published means over fewer classes, by count

    def __post_init__(self) -> None:
        """Raises ValueError where the parts do not belong together."""
        C = len(self.names)
        if not C or len(self.colours) != C or len(self.label_ids) != C:
            raise ValueError(
                f"a class set needs a name, a colour and a label id for each class, got {C}, {len(self.colours)} and "
                f"{len(self.label_ids)}"
            )
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ValueError(f"two classes of one set are called {twice[0]!r}; each needs a name of its own")
        if C > IGNORE:
            raise ValueError(f"a label is one byte, in which {IGNORE} is no class: {C} classes do not fit")
        named = {*self.things, *(c for ids in self.means.values() for c in ids)}
        if not named <= set(range(C)):
            raise ValueError(f"things and means are of train ids 0 to {C - 1}, not {sorted(named - set(range(C)))}")
        if not all(0 <= raw <= 0xFFFF for raw in self.label_ids):
            raise ValueError(f"label ids are of 16 bits, 0 to 65535: {self.label_ids}")
        if not all(len(rgb) == 3 and all(0 <= level <= 0xFF for level in rgb) for rgb in self.colours):
            raise ValueError(f"colours are RGB, each level 0 to 255: {self.colours}")
        alike = next((name for i, name in enumerate(self.names) if plain(name) in map(plain, self.names[:i])), None)
        if alike is not None:
            raise ValueError(f"{alike!r} differs from another class of the set by case, blanks or hyphens alone")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def palette(self) -> np.ndarray:
        """[C, 3] uint8 RGB."""
        return _frozen(np.array(self.colours, dtype=np.uint8))

    @property
    def subsets(self) -> dict[int, tuple[int, ...]]:
        """Number of classes -> the train ids that a mean runs over: all of them first, then the published ones."""
        return self.subsets_among(range(len(self)))

    def subsets_among(self, declared: Iterable[int]) -> dict[int, tuple[int, ...]]:
        """The same over the train ids `declared`: all of them, then those published means that lack none of theirs."""
        ids = tuple(sorted(declared))
        published = {n: mean for n, mean in self.means.items() if n < len(ids) and set(mean) <= set(ids)}
        return {len(ids): ids} | published

    def translation(self, other: "ClassSet") -> np.ndarray:
        """[256] uint8: the train id here of each train id of `other`, matched by name (see `plain`); 255: none."""
        mine = {plain(name): c for c, name in enumerate(self.names)}
        table = np.full(256, IGNORE, dtype=np.uint8)
        table[: len(other)] = [mine.get(plain(name), IGNORE) for name in other.names]
        return table

    def to_label_ids(self, train_ids: np.ndarray) -> np.ndarray:
        """[H, W] uint8 train ids -> [H, W] raw ids (uint8, or uint16 where they need it); no class becomes 0."""
        dtype = np.uint8 if max(self.label_ids) < 256 else np.uint16
        table = np.zeros(256, dtype=dtype)
        table[: len(self)] = self.label_ids
        return table[train_ids]

    def colourise(self, train_ids: np.ndarray) -> np.ndarray:
        """[..., H, W] train ids -> [..., H, W, 3] uint8 RGB; no class is black."""
        colours = np.zeros((256, 3), dtype=np.uint8)
        colours[: len(self)] = self.palette
        return colours[train_ids]

    def to_dict(self) -> dict[str, Any]:
        """A form of plain values that `from_dict` reads back, for checkpoints and JSON."""
        return asdict(self) | {"means": {str(n): ids for n, ids in self.means.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ClassSet":
        """The inverse of `to_dict`. Raises ValueError for what is no class set."""
        try:
            return cls(
                names=tuple(str(name) for name in values["names"]),
                colours=tuple((int(r), int(g), int(b)) for r, g, b in values["colours"]),
                things=tuple(int(c) for c in values["things"]),
                label_ids=tuple(int(raw) for raw in values["label_ids"]),
                means={int(n): tuple(int(c) for c in ids) for n, ids in values["means"].items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no class set: {error!r}") from error


def plain(name: str) -> str:
    """What two names of one class share: "Traffic_light" and "traffic light" are one."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def distinct_colours() -> Iterator[tuple[int, int, int]]:
    """RGB without end, for classes that bring no colour: colour i has hue i / golden ratio (mod 1), so that neighbours
    lie far apart, at saturation 0.85, 0.55 and 0.95 and value 0.95, 0.8 and 0.6 in turn."""
    i = 0
    while True:
        saturation, value = ((0.85, 0.95), (0.55, 0.8), (0.95, 0.6))[i % 3]
        r, g, b = colorsys.hsv_to_rgb(i * 0.6180339887498949 % 1, saturation, value)
        yield round(255 * r), round(255 * g), round(255 * b)
        i += 1


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

    def translated(self, table: np.ndarray) -> "IdMap":
        """The map to the train ids that `table` [256] gives for those of this one (see `ClassSet.translation`)."""
        return self._replace(train=_frozen(table[self.train]))


def id_map(name: str, train_of: Mapping[int, int], void: Iterable[int] = ()) -> IdMap:
    """The map of a format with classes `train_of` {raw id: train id} and the raw ids `void` that are no class."""
    train = np.full(1 << 16, IGNORE, dtype=np.uint8)
    known = np.zeros(1 << 16, dtype=bool)
    for raw, train_id in train_of.items():
        train[raw] = train_id
        known[raw] = True
    known[list(void)] = True
    return IdMap(name, _frozen(train), _frozen(known))


def train_id_map(class_set: ClassSet) -> IdMap:
    """Of label files that already hold train ids."""
    return id_map("train", {c: c for c in range(len(class_set))}, void=(IGNORE,))


# ---- the 19 classes that Cityscapes trains, and those of GTA5 and SYNTHIA ------------------------------------------


class _Class(NamedTuple):
    name: str
    colour: tuple[int, int, int]  # RGB
    cityscapes: int  # raw id in Cityscapes and GTA5
    synthia: int  # raw id in SYNTHIA-RAND-CITYSCAPES; terrain, truck and train are named there but never drawn
    thing: bool  # countable, as opposed to stuff


_STREET = (
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
_NOT_IN_SYNTHIA = {"terrain", "truck", "train"}
_THIN_OR_FLAT = {"wall", "fence", "pole"}
_SYNTHIA_16 = tuple(i for i, c in enumerate(_STREET) if c.name not in _NOT_IN_SYNTHIA)

CITYSCAPES_CLASSES = ClassSet(
    names=tuple(c.name for c in _STREET),
    colours=tuple(c.colour for c in _STREET),
    things=tuple(i for i, c in enumerate(_STREET) if c.thing),
    label_ids=tuple(c.cityscapes for c in _STREET),
    means={16: _SYNTHIA_16, 13: tuple(i for i in _SYNTHIA_16 if _STREET[i].name not in _THIN_OR_FLAT)},
)

_CITYSCAPES_IDS = {c.cityscapes: i for i, c in enumerate(_STREET)}
CITYSCAPES_TO_TRAIN = id_map("Cityscapes", _CITYSCAPES_IDS, void=set(range(35)) - set(_CITYSCAPES_IDS))
SYNTHIA_TO_TRAIN = id_map("SYNTHIA", {c.synthia: i for i, c in enumerate(_STREET)}, void=(0, 13, 14, 22))

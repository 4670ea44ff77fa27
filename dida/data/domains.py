"""The domains: where their files lie, and which label belongs to which image.

    name                    folder under the data root    images / labels
    gta5 (or gta)           gta or gta5                   images/00001.png / labels/00001.png
    synthia                 synthia                       RGB/0000000.png / GT/LABELS/0000000.png
    cityscapes              cityscapes                    leftImg8bit/SPLIT/CITY/*_leftImg8bit.png /
                                                          gtFine/SPLIT/CITY/*_gtFine_labelIds.png
    toy-gta5                toy/gta                       as gta5
    toy-gta5-val            toy/gta-val                   as gta5; more source pictures, not trained on
    toy-cityscapes          toy/cityscapes                as cityscapes
    toy-cityscapes-oracle   toy/cityscapes-oracle         as cityscapes, with the training labels it must not have
    folder:PATH             (none: PATH is as given)      images/ANY.* / labels/ANY.png, PATH/classes.json

A label may also lie beside (or instead of) these as NAME_labelTrainIds.png, in train ids of Cityscapes; if both exist,
the raw ids are read. Nothing needs converting beforehand.

`folder:` brings any data set with any classes, without code: `classes.json` names them (see class_file.py). With
images/train, images/val, ... (and labels/train, ...) the split chooses the sub-folder; without them, every split is the
whole folder.
"""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from dida.batch import IGNORE
from dida.data.class_file import Declared, read_class_file
from dida.data.classes import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_TO_TRAIN,
    SYNTHIA_TO_TRAIN,
    ClassSet,
    train_id_map,
)
from dida.data.image_file import Encoding

_log = logging.getLogger(__name__)

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_SPLITS = ("train", "val", "test")
_FOLDER = "folder:"


@dataclass(frozen=True)
class UnlabelledDomain:
    """Images and nothing else: a training target cannot leak labels that it does not know of."""

    name: str
    split: str
    folder: Path  # of the data set
    images: tuple[Path, ...]  # sorted


@dataclass(frozen=True, eq=False)
class LabelledDomain:
    """Images, each with its label file."""

    name: str
    split: str
    folder: Path  # of the data set
    images: tuple[Path, ...]  # sorted
    labels: tuple[Path, ...]  # labels[i] belongs to images[i]
    raw: Encoding  # of the label files that hold raw ids
    train: Encoding  # of those that hold train ids of Cityscapes, *_labelTrainIds.png
    class_set: ClassSet
    declared: tuple[int, ...]  # train ids of the class set that the labels can spell

    def encoding(self, index: int) -> Encoding:
        """How labels[index] spells classes."""
        return self.train if self.labels[index].stem.endswith("_labelTrainIds") else self.raw

    def seen_as(self, class_set: ClassSet) -> "LabelledDomain":
        """The same files, their labels read as train ids of another class set, matched by name; the rest is 255.

        Says in one line what that set does not know. Raises ValueError where the two have no class in common.
        """
        if class_set == self.class_set:
            return self
        table = class_set.translation(self.class_set)
        of_mine = table[list(self.declared)]
        if (of_mine == IGNORE).all():
            raise ValueError(
                f"{self.name} has the classes {', '.join(self.class_set.names)}, of which the network knows none: its "
                f"own are {', '.join(class_set.names)}"
            )
        if unknown := [
            self.class_set.names[c] for c, mine in zip(self.declared, of_mine, strict=True) if mine == IGNORE
        ]:
            _log.info("%s: %s ignored, the network does not know them", self.name, ", ".join(unknown))
        return replace(
            self,
            raw=self.raw._replace(ids=self.raw.ids.translated(table)),
            train=self.train._replace(ids=self.train.ids.translated(table)),
            class_set=class_set,
            declared=tuple(sorted(int(c) for c in of_mine if c != IGNORE)),
        )


class Survey(NamedTuple):
    """A labelled domain with what does not fit in it."""

    domain: LabelledDomain
    images_without_label: tuple[Path, ...]
    labels_without_image: tuple[Path, ...]
    left_out: tuple[Path, ...]  # images that do not match their label as published


class _Layout(NamedTuple):
    folders: tuple[str, ...]  # under the data root; the first that holds images is taken
    splits: tuple[str, ...]
    images: str  # folder of images, may contain {split}
    labels: str  # folder of labels, may contain {split}
    origin: str  # where the data comes from, may contain {root}
    raw: Encoding
    image_ending: str = ""  # what every image's stem ends in
    raw_ending: str = ".png"  # what replaces image ending and suffix in the name of the label
    train_ending: str = "_labelTrainIds.png"
    broken: frozenset[str] = frozenset()  # stems of images that do not match their label as published
    class_set: ClassSet = CITYSCAPES_CLASSES
    published_mean: int | None = None  # number of classes that published means over this source have; None: all


_GTA5 = _Layout(
    folders=("gta", "gta5"),
    splits=("train",),
    images="images",
    labels="labels",
    origin="published at https://download.visinf.tu-darmstadt.de/data/from_games/",
    raw=Encoding(CITYSCAPES_TO_TRAIN),
    broken=frozenset({"15188", "17705"}),
)
_CITYSCAPES = _Layout(
    folders=("cityscapes",),
    splits=_SPLITS,
    images="leftImg8bit/{split}",
    labels="gtFine/{split}",
    origin="published at https://www.cityscapes-dataset.com",
    raw=Encoding(CITYSCAPES_TO_TRAIN),
    image_ending="_leftImg8bit",
    raw_ending="_gtFine_labelIds.png",
    train_ending="_gtFine_labelTrainIds.png",
)
_SYNTHIA = _Layout(
    folders=("synthia",),
    splits=("train",),
    images="RGB",
    labels="GT/LABELS",
    origin="published at https://synthia-dataset.net (SYNTHIA-RAND-CITYSCAPES)",
    raw=Encoding(SYNTHIA_TO_TRAIN, red_of_16_bit=True),
    published_mean=16,  # it lacks three of the classes
)
_TOY = "made by: python -m dida.data.toy --data-root {root}"
_LAYOUTS = {
    "gta5": _GTA5,
    "synthia": _SYNTHIA,
    "cityscapes": _CITYSCAPES,
    "toy-gta5": _GTA5._replace(folders=("toy/gta",), origin=_TOY, broken=frozenset()),
    "toy-gta5-val": _GTA5._replace(folders=("toy/gta-val",), splits=("val",), origin=_TOY, broken=frozenset()),
    "toy-cityscapes": _CITYSCAPES._replace(folders=("toy/cityscapes",), origin=_TOY),
    "toy-cityscapes-oracle": _CITYSCAPES._replace(folders=("toy/cityscapes-oracle",), origin=_TOY),
}
_ALIASES = {"gta": "gta5", "toy-gta": "toy-gta5"}
DOMAINS = (*_LAYOUTS, "folder:PATH")


def unlabelled(name: str, root: Path, split: str) -> UnlabelledDomain:
    """The images of a domain. No label folder is opened, listed or needed.

    Raises ValueError for a name or split that does not exist or for two images of one name, FileNotFoundError if there
    are no images.
    """
    name, layout = _layout(name, split)
    folder = _data_folder(name, layout, Path(root), split)
    images = _images(folder / layout.images.format(split=split), layout)
    if not images:
        raise _missing(name, layout, Path(root), split, (layout.images,))
    return UnlabelledDomain(name, split, folder, tuple(images.values()))


def labelled(name: str, root: Path, split: str) -> LabelledDomain:
    """The images of a domain with their labels; every image has one.

    Raises ValueError for a name or split that does not exist, two images of one name or a malformed classes.json,
    FileNotFoundError if there is nothing, or if some image has no label.
    """
    found = survey(name, root, split)
    lost = found.images_without_label
    if lost:
        some = ", ".join(str(path) for path in lost[:3])
        raise FileNotFoundError(
            f"{found.domain.name} ({split}): {len(lost)} of {len(lost) + len(found.domain.images)} images have no "
            f"label, e.g. {some}"
        )
    if found.left_out:
        names = ", ".join(path.name for path in found.left_out)
        _log.info("%s: %s left out, image and label do not match in the published data", found.domain.name, names)
    return found.domain


def survey(name: str, root: Path, split: str) -> Survey:
    """Pair images with labels and keep account of what is left over. Raises as `labelled`, but for lost labels."""
    name, layout = _layout(name, split)
    root = Path(root)
    folder = _data_folder(name, layout, root, split)
    images = _images(folder / layout.images.format(split=split), layout)
    labels = _labels(folder / layout.labels.format(split=split), layout)
    if not images or not labels:
        raise _missing(name, layout, root, split, (layout.images, layout.labels))
    left_out = tuple(path for path in images.values() if path.stem in layout.broken)
    keys = [key for key, path in images.items() if key in labels and path.stem not in layout.broken]
    paired = tuple(labels[key] for key in keys)
    declared = Declared(layout.class_set, layout.raw)
    if name.startswith(_FOLDER) and not all(path.name.endswith(layout.train_ending) for path in paired):
        declared = read_class_file(folder / "classes.json")
    return Survey(
        _labelled_domain(name, split, folder, tuple(images[key] for key in keys), paired, declared),
        images_without_label=tuple(path for key, path in images.items() if key not in labels),
        labels_without_image=tuple(path for key, path in labels.items() if key not in images),
        left_out=left_out,
    )


def _labelled_domain(
    name: str, split: str, folder: Path, images: tuple[Path, ...], labels: tuple[Path, ...], declared: Declared
) -> LabelledDomain:
    class_set, raw = declared
    train_ids = train_id_map(CITYSCAPES_CLASSES).translated(class_set.translation(CITYSCAPES_CLASSES))
    domain = LabelledDomain(
        name, split, folder, images, labels, raw, Encoding(train_ids), class_set, tuple(range(len(class_set)))
    )
    in_train_ids = next((label for i, label in enumerate(labels) if domain.encoding(i) is domain.train), None)
    if in_train_ids is not None and (train_ids.train == IGNORE).all():
        raise ValueError(
            f"{in_train_ids} holds train ids of Cityscapes by its name, and classes.json has none of its classes"
        )
    return domain


def published_mean(source: str) -> int | None:
    """Number of classes that published means of networks trained on this source have; None: all."""
    layout = _LAYOUTS.get(_ALIASES.get(source, source))
    return layout.published_mean if layout else None


def _layout(name: str, split: str) -> tuple[str, _Layout]:
    """The canonical name and the layout. Raises ValueError."""
    name = _ALIASES.get(name, name)
    if name.startswith(_FOLDER):
        return name, _folder_layout(Path(name.removeprefix(_FOLDER)).expanduser().absolute(), split)
    if name not in _LAYOUTS:
        raise ValueError(f"no domain is called {name!r}; there are {', '.join(DOMAINS)}")
    layout = _LAYOUTS[name]
    if split not in layout.splits:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(layout.splits)}")
    return name, layout


def _folder_layout(folder: Path, split: str) -> _Layout:
    # A split is a sub-folder only if there are any, so that a flat folder serves for every split.
    has_splits = any((folder / "images" / name).is_dir() for name in (*_SPLITS, split))
    below = "/{split}" if has_splits else ""
    return _Layout(
        folders=(str(folder),),
        splits=(split,),
        images="images" + below,
        labels="labels" + below,
        origin="your own: images/, and where labels are needed labels/ and classes.json",
        raw=Encoding(train_id_map(CITYSCAPES_CLASSES)),
    )


def _data_folder(name: str, layout: _Layout, root: Path, split: str) -> Path:
    for candidate in layout.folders:
        if (root / candidate / layout.images.format(split=split)).is_dir():
            return root / candidate
    raise _missing(name, layout, root, split, (layout.images,))


def _files(folder: Path) -> list[Path]:
    """All files below a folder, hidden ones apart (macOS leaves ._NAME.png in archives), sorted by path."""
    found = [
        Path(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if not name.startswith(".")
    ]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _images(folder: Path, layout: _Layout) -> dict[str, Path]:
    """Image files by their name below the folder, less the ending that all images share. Raises ValueError."""
    images: dict[str, Path] = {}
    for path in _files(folder):
        if path.suffix.lower() not in _IMAGE_SUFFIXES or not path.stem.endswith(layout.image_ending):
            continue
        key = path.relative_to(folder).with_suffix("").as_posix().removesuffix(layout.image_ending)
        if key in images:
            raise ValueError(f"{images[key]} and {path}: two images would share one label")
        images[key] = path
    return images


def _labels(folder: Path, layout: _Layout) -> dict[str, Path]:
    """Label files by the name of their image (see `_images`); of two for one image, that with raw ids."""
    raw, train = {}, {}
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if name.endswith(layout.train_ending):  # first: GTA5's raw ending, .png, would match these too
            train[name.removesuffix(layout.train_ending)] = path
        elif name.endswith(layout.raw_ending):
            raw[name.removesuffix(layout.raw_ending)] = path
    return train | raw


def _missing(name: str, layout: _Layout, root: Path, split: str, needed: tuple[str, ...]) -> FileNotFoundError:
    expected = " or ".join(
        " with ".join(str(root / folder / part.format(split=split)) for part in needed) for folder in layout.folders
    )
    places = [root, *(root / folder for folder in layout.folders)]
    found = [f"{place}: {', '.join(sorted(os.listdir(place))) or 'empty'}" for place in places if place.is_dir()]
    return FileNotFoundError(
        f"{name} ({split}) is not there, or holds no files.\n"
        f"  expected: {expected}\n"
        f"  found:    {'; '.join(found) or f'{root} does not exist'}\n"
        f"  the data: {layout.origin.format(root=root)}"
    )

"""The domains: where their files lie, and which label belongs to which image.

    name                    folder under the data root    images / labels
    gta5 (or gta)           gta or gta5                   images/00001.png / labels/00001.png
    synthia                 synthia                       RGB/0000000.png / GT/LABELS or parsed_LABELS/0000000.png
    urbansyn                urbansyn                      rgb/rgb_0001.png / ss/ss_0001.png
    cityscapes              cityscapes                    leftImg8bit/SPLIT/CITY/*_leftImg8bit.png /
                                                          gtFine/SPLIT/CITY/*_gtFine_labelIds.png
    foggy-cityscapes        cityscapes                    leftImg8bit_foggy/..., densest fog / as cityscapes
    acdc                    acdc                          rgb_anon/WEATHER/SPLIT/*/*_rgb_anon.png / gt/...
    dark-zurich             dark_zurich                   rgb_anon/SPLIT/night/*/*_rgb_anon.png / gt/...
    bdd100k                 bdd100k                       images/10k/SPLIT/*.jpg / labels/sem_seg/masks/SPLIT/*.png
    mapillary               mapillary                     training/images/*.jpg / training/v1.2/labels/*.png
    loveda, -urban, -rural  loveda                        Train/Urban/images_png/*.png / Train/Urban/masks_png/*.png
    toy-gta5                toy/gta                       as gta5
    toy-gta5-val            toy/gta-val                   as gta5; more source pictures, not trained on
    toy-cityscapes          toy/cityscapes                as cityscapes
    toy-cityscapes-oracle   toy/cityscapes-oracle         as cityscapes, with the training labels it must not have
    toy-night, toy-fog      toy/night, toy/fog            as cityscapes: its streets again, in other weather
    toy-night-oracle, toy-fog-oracle                      the same, with the training labels they must not have
    folder:PATH             (none: PATH is as given)      images/ANY.* / labels/ANY.png, PATH/classes.json

A label may also lie beside (or instead of) these as NAME_labelTrainIds.png, in train ids of Cityscapes; if both exist,
the raw ids are read. Nothing needs converting beforehand, nor unpacking: where a folder of images or labels is not
there, it is looked for in the zip files right in the data set's folder (archive.py). layouts.py is the table that all
of them come from.

`folder:` brings any data set with any classes, without code: own_folder.py says how it is read.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from dida.batch import IGNORE
from dida.data.archive import archives_in, folders_in, is_packed, packed_below
from dida.data.class_file import Declared, read_class_file
from dida.data.classes import CITYSCAPES_CLASSES, ClassSet, train_id_map
from dida.data.image_file import Encoding
from dida.data.layouts import ALIASES, IMAGE_SUFFIXES, LAYOUTS, Layout
from dida.data.listing import files_below, likely_cause, say_left_out, what_lies_there
from dida.data.own_folder import likely_cause_of_own, own_layout, renamed_by_suffix

_log = logging.getLogger(__name__)

_FOLDER = "folder:"
DOMAINS = (*LAYOUTS, "folder:PATH")


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

    def only(self, indices: Iterable[int]) -> "LabelledDomain":
        """Some of its files."""
        chosen = list(indices)
        return replace(self, images=tuple(self.images[i] for i in chosen), labels=tuple(self.labels[i] for i in chosen))

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
            _log.warning("%s: %s ignored, the network does not know them", self.name, ", ".join(unknown))
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


def unlabelled(name: str, root: Path, split: str) -> UnlabelledDomain:
    """The images of a domain. No label folder is opened, listed or needed.

    Raises ValueError for a name or split that does not exist or for two images of one name, FileNotFoundError if there
    are no images.
    """
    name, layouts = _layouts(name, split, labels=False)
    folder, layout = _data_folder(name, layouts, Path(root), split, labels=False)
    images = _images(folder, layout, split)
    if not images:
        raise _missing(name, layout, Path(root), folder, split, of_labels=False)
    place = _source(folder, layout.images, layout, split)
    _log.info("%s (%s): %d images in %s", name, split, len(images), place)
    if name.startswith(_FOLDER):
        say_left_out(Path(place), images.values(), IMAGE_SUFFIXES)
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
    name, layouts = _layouts(name, split, labels=True)
    root = Path(root)
    folder, layout = _data_folder(name, layouts, root, split, labels=True)
    images, labels = _images(folder, layout, split), _labels(folder, layout, split)
    for what in (images, labels):
        if not what:
            raise _missing(name, layout, root, folder, split, of_labels=what is labels)
    if name.startswith(_FOLDER) and not images.keys() & labels.keys():
        images, labels = renamed_by_suffix(images, labels)
    places = [_source(folder, part, layout, split) for part in (layout.images, layout.labels)]
    _log.info("%s (%s): %d images in %s, labels in %s", name, split, len(images), *places)
    if name.startswith(_FOLDER):
        say_left_out(Path(places[0]), images.values(), IMAGE_SUFFIXES)
    left_out = tuple(path for path in images.values() if path.stem in layout.broken)
    keys = [key for key, path in images.items() if key in labels and path.stem not in layout.broken]
    paired = tuple(labels[key] for key in keys)
    declared = Declared(layout.class_set, layout.raw)
    if name.startswith(_FOLDER) and not (paired and all(path.name.endswith(layout.train_ending) for path in paired)):
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
    train, ids = Encoding(train_ids), tuple(range(len(class_set)))
    domain = LabelledDomain(name, split, folder, images, labels, raw, train, class_set, ids)
    in_train_ids = next((label for i, label in enumerate(labels) if domain.encoding(i) is train), None)
    if in_train_ids is not None and (train_ids.train == IGNORE).all():
        raise ValueError(
            f"{in_train_ids} holds train ids of Cityscapes by its name, and classes.json has none of its classes"
        )
    return domain


def published_mean(source: str) -> int | None:
    """Number of classes that published means of networks trained on this source have; None: all."""
    layouts = LAYOUTS.get(ALIASES.get(source, source))
    return layouts[0].published_mean if layouts else None


def has_labels(name: str, root: Path, split: str) -> bool:
    """Whether the folders of images and labels of a domain's split are there, or in zip files; no label is opened.

    Raises ValueError for a name that does not exist, ArchiveError.
    """
    name = ALIASES.get(name, name)
    if name in LAYOUTS and split not in LAYOUTS[name][0].splits:
        return False
    return any(
        all(_roots(Path(root) / folder, part, layout, split) for part in (layout.images, layout.labels))
        for layout in _layouts(name, split, labels=True)[1]
        for folder in layout.folders
    )


def _layouts(name: str, split: str, *, labels: bool) -> tuple[str, tuple[Layout, ...]]:
    """The canonical name and the layouts it may have. Raises ValueError."""
    name = ALIASES.get(name, name)
    if name.startswith(_FOLDER):
        folder = Path(name.removeprefix(_FOLDER)).expanduser().absolute()
        return name, (own_layout(folder, split, labels=labels),)
    if name not in LAYOUTS:
        own = f" A folder of your own is named folder:{name}" if Path(name).expanduser().is_dir() else ""
        raise ValueError(f"no domain is called {name!r}; there are {', '.join(DOMAINS)}.{own}")
    splits = LAYOUTS[name][0].splits
    if split not in splits:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    return name, LAYOUTS[name]


def _data_folder(
    name: str, layouts: tuple[Layout, ...], root: Path, split: str, *, labels: bool
) -> tuple[Path, Layout]:
    """The data set's folder and its layout: the first whose folders of images, and of labels if needed, are there."""
    present = [
        (root / folder, layout)
        for layout in layouts
        for folder in layout.folders
        if _roots(root / folder, layout.images, layout, split)
    ]
    # Label folders are looked into only where labels are asked for.
    whole = [(folder, layout) for folder, layout in present if labels and _roots(folder, layout.labels, layout, split)]
    found = whole or present
    if not found:
        raise _missing(name, layouts[0], root, root / layouts[0].folders[0], split, of_labels=False)
    return found[0]


def _roots(folder: Path, part: str, layout: Layout, split: str) -> list[tuple[str, Path]]:
    """The folders of `part` of a layout that are there, or else those in zip files; each with what its * stands for.

    That is "" where it has none.
    """
    part = part.format(split=layout.splits[split])
    return _unpacked(folder, part) or [found for archive in archives_in(folder) for found in folders_in(archive, part)]


def _files(place: Path) -> list[Path]:
    return packed_below(place) if is_packed(place) else files_below(place)


def _unpacked(folder: Path, part: str) -> list[tuple[str, Path]]:
    head, star, tail = part.partition("/*/")
    if not star:
        return [("", folder / head)] if (folder / head).is_dir() else []
    if not (folder / head).is_dir():
        return []
    found = [(f"{middle.name}/", middle / tail) for middle in sorted((folder / head).iterdir())]
    return [(name, path) for name, path in found if path.is_dir() and not name.startswith(".")]


def _place(folder: Path, part: str, layout: Layout, split: str) -> str:
    return str(folder / part.format(split=layout.splits[split]))


def _source(folder: Path, part: str, layout: Layout, split: str) -> str:
    """Where files were found, for messages."""
    roots = _roots(folder, part, layout, split)
    return f"the zip files of {folder}" if roots and is_packed(roots[0][1]) else _place(folder, part, layout, split)


def _images(folder: Path, layout: Layout, split: str) -> dict[str, Path]:
    """Image files by their name below the folder, less what all images begin and end with. Raises ValueError."""
    images: dict[str, Path] = {}
    for prefix, place in _roots(folder, layout.images, layout, split):
        for path in _files(place):
            if path.suffix.lower() not in IMAGE_SUFFIXES or not path.stem.endswith(layout.image_ending):
                continue
            if not path.name.startswith(layout.image_start):
                continue
            key = _key(prefix, place, path, layout.image_start, layout.image_ending + path.suffix)
            if key in images:
                raise ValueError(f"{images[key]} and {path}: two images would share one label")
            images[key] = path
    return images


def _labels(folder: Path, layout: Layout, split: str) -> dict[str, Path]:
    """Label files by the name of their image (see `_images`); of two for one image, that with raw ids."""
    raw: dict[str, Path] = {}
    train: dict[str, Path] = {}
    for prefix, place in _roots(folder, layout.labels, layout, split):
        for path in _files(place):
            name = path.name.lower()
            # train ids first: GTA5's raw ending, .png, would match these too
            endings = [e for e in (layout.train_ending, *layout.raw_endings) if name.endswith(e.lower())]
            if not endings or not path.name.startswith(layout.label_start):
                continue
            found = train if endings[0] == layout.train_ending else raw
            key = _key(prefix, place, path, layout.label_start, endings[0])
            if key in found:
                raise ValueError(f"{found[key]} and {path}: two labels of one image")
            found[key] = path
    return train | raw


def _key(prefix: str, place: Path, path: Path, start: str, ending: str) -> str:
    parent = path.relative_to(place).parent.as_posix()
    name = path.name[len(start) : len(path.name) - len(ending)]
    return prefix + (name if parent == "." else f"{parent}/{name}")


def _missing(name: str, layout: Layout, root: Path, folder: Path, split: str, *, of_labels: bool) -> FileNotFoundError:
    """What was looked for, ending included, what lies there instead, and what is likely to be the cause."""
    part = layout.labels if of_labels else layout.images
    if of_labels:
        endings = tuple(layout.label_start + "*" * bool(layout.label_start) + e for e in layout.raw_endings)
        endings = (*endings, layout.train_ending)
    else:
        endings = tuple(layout.image_ending + suffix for suffix in IMAGE_SUFFIXES[:3])
    places = [_place(root / f, part, layout, split) for f in layout.folders]
    looked = what_lies_there(Path(_place(folder, part, layout, split).partition("/*/")[0]), endings)
    lines = [
        f"{name} ({split}): no {'labels' if of_labels else 'images'} found.",
        f"  expected: files that end in {' or '.join(endings)} below {' or '.join(places)}",
        f"  found:    {looked}",
    ]
    cause = likely_cause(files_below(folder / part.format(split=layout.splits[split]))) if of_labels else None
    if cause is None and name.startswith(_FOLDER):
        cause = likely_cause_of_own(folder, of_labels=of_labels)
    if cause is not None:
        lines.append(f"  likely:   {cause}")
    return FileNotFoundError("\n".join([*lines, f"  the data: {layout.origin.format(root=root)}"]))

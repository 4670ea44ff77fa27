"""`folder:PATH`, a data set of one's own:

    PATH/images/**/NAME.png      pictures of any kind, in any folders below
    PATH/labels/**/NAME.png      .png, .tif or .bmp: a label map for each, in the same folders
    PATH/classes.json            what the label maps hold (see class_file.py)

With images/train, images/val, images/test (and labels/train, ...) the split chooses the sub-folder; `training`,
`validation`, `valid` and `testing`, in any case, are taken for these and said. Without them, every split is the whole
folder. Where no label has the name of an image, but one constant suffix explains all of them (x_leftImg8bit.png with
x_gtFine_labelIds.png), they are paired by it, and that is said. A target needs no labels, and no images/ either: a
plain folder of pictures is one.
"""

import logging
import re
from pathlib import Path
from types import MappingProxyType

from dida.data.classes import CITYSCAPES_CLASSES, train_id_map
from dida.data.image_file import Encoding
from dida.data.layouts import IMAGE_SUFFIXES, Layout
from dida.data.listing import files_below

_log = logging.getLogger(__name__)

_CALLED = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {name: split for split, names in _CALLED.items() for name in names}
_LABEL_MAPS = {"label", "labels", "mask", "masks", "annotation", "annotations", "gt", "groundtruth", "ground_truth"}
_BETWEEN = "_-. "  # what may lie between the name that image and label share and an ending
_NEARLY = re.compile(r"(train|training|val|valid|validation|test|testing)([-_ .]?\d+|[-_ .].*|set)", re.IGNORECASE)


def own_layout(folder: Path, split: str, *, labels: bool) -> Layout:
    """How the files of a folder lie. Raises ValueError, naming both, where sub-folders are nearly splits."""
    images = folder / "images"
    plain = not labels and not images.is_dir() and folder.is_dir() and not (folder / "labels").exists()
    if plain:
        refuse_label_maps(folder)
        _log.warning("%s has no folder images/: every picture below it is taken", folder)
        images = folder
    below_images = _split_folder(images, split)
    below_labels = _split_folder(folder / "labels", split) if labels else ""
    return Layout(
        folders=(str(folder),),
        splits=MappingProxyType({split: split}),
        images="." + below_images if plain else "images" + below_images,
        labels="labels" + below_labels,
        origin="your own: images/, and where labels are needed labels/ and classes.json",
        raw=Encoding(train_id_map(CITYSCAPES_CLASSES)),
        raw_endings=(".png", ".tif", ".tiff", ".bmp"),
    )


def _split_folder(folder: Path, split: str) -> str:
    """ "/NAME" of the sub-folder that is the split, or "" where a folder has no splits. Raises ValueError."""
    if not folder.is_dir():
        return ""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found: dict[str, list[str]] = {}
    for name in names:
        if name.casefold() in _SPLIT_OF:
            found.setdefault(_SPLIT_OF[name.casefold()], []).append(name)
    if (folder / split).is_dir() and split not in _SPLIT_OF:
        found[split] = [split]
    nearly = [name for name in names if _NEARLY.fullmatch(name)]
    _refuse_doubt(folder, found, nearly, [name for name in names if name.casefold() not in _SPLIT_OF])
    if not found:
        return ""
    if split not in found:
        return f"/{split}"  # which is not there, and will be said to be missing
    name = found[split][0]
    if name != split:
        _log.warning("%s is taken as the split %s", folder / name, split)
    return f"/{name}"


def _refuse_doubt(folder: Path, found: dict[str, list[str]], nearly: list[str], others: list[str]) -> None:
    for split, names in found.items():
        if len(names) > 1:
            raise ValueError(f"{folder} holds {' and '.join(names)}: which of them is the split {split}?")
    if nearly:
        beside = [name for names in found.values() for name in names] + [n for n in others if n not in nearly]
        raise ValueError(
            f"{folder} holds {' and '.join([*nearly, *beside][:6])}: {nearly[0]} is nearly the name of a split; "
            "call the splits train, val and test, or give the folder a name that is none"
        )
    odd = [names[0] for split, names in found.items() if names[0] != split]
    if odd and others:
        raise ValueError(
            f"{folder} holds {odd[0]}, which looks like a split, and {others[0]}, which does not: call the splits "
            "train, val and test, or give both folders names that are none"
        )
    loose = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES) if found else []
    if loose:
        raise ValueError(
            f"{folder} holds {next(iter(found.values()))[0]}, which is a split, and beside it {len(loose)} files that "
            f"are in none, e.g. {loose[0]}: which split do they belong to?"
        )
    if found and others:
        _log.warning("%s: %s belongs to no split and is left out", folder, ", ".join(others))


def refuse_label_maps(folder: Path) -> None:
    """Raise ValueError where a folder that is taken for pictures alone holds one that is called like label maps."""
    for path in sorted(folder.rglob("*")):
        if path.name.casefold() in _LABEL_MAPS and path.is_dir():
            beside = next((p for p in sorted(path.parent.iterdir()) if p.is_dir() and p != path), None)
            instead = f"name the folder of pictures alone, folder:{beside}" if beside else "name the folder of pictures"
            raise ValueError(
                f"{folder} has no folder images/, and {path} is called like label maps, which are no pictures: "
                f"{instead}"
            )


def likely_cause_of_own(folder: Path, *, of_labels: bool) -> str | None:
    """Why a folder of one's own has no images or labels where they are looked for; None where nothing comes to mind."""
    below = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    wanted = "labels" if of_labels else "images"
    if (folder / wanted).is_dir():
        return None
    if called := next((path.name for path in below if path.name.casefold() == wanted), None):
        return f"{called}/ is {wanted}/ by another name; rename it"
    masks = next((path.name for path in below if path.name.casefold() in _LABEL_MAPS), None)
    if of_labels and masks:
        return f"{masks}/ is called like label maps, which are looked for in labels/; rename it"
    if inside := next((path for path in below if (path / wanted).is_dir()), None):
        return f"{wanted}/ lies one folder deeper; name that one, folder:{inside}"
    pictures = next((p.name for p in below if p.name.casefold() not in _LABEL_MAPS and _is_plain(p)), None)
    if not of_labels and masks and pictures:
        return f"{masks}/ is called like label maps, and pictures are looked for in images/; rename {pictures}/"
    if not of_labels and _is_plain(folder):
        return (
            "pictures without labels, which are enough for --tgt and to be labelled (dida label); a source, and "
            "scoring, need labels"
        )
    return None


def _is_plain(folder: Path) -> bool:
    """Whether a folder holds pictures and none of the folders of a labelled domain."""
    bare = not any((folder / part).exists() for part in ("images", "labels"))
    return bare and any(path.suffix.lower() in IMAGE_SUFFIXES for path in files_below(folder))


# ---- names that differ by a suffix ---------------------------------------------------------------------------------


def renamed_by_suffix(images: dict[str, Path], labels: dict[str, Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and labels under common keys, if one constant pair of suffixes explains all images; else as they were.

    Raises ValueError where several pairs would.
    """
    first = next(iter(images))
    pairs = {pair for label in labels if (pair := _suffixes(first, label)) is not None}
    explaining = sorted(pair for pair in pairs if _explains(pair, images, labels))
    if not explaining:
        return images, labels
    if len(explaining) > 1:
        names = " and ".join(f"{first.removesuffix(a)}{b}" for a, b in explaining[:2])
        raise ValueError(f"{images[first]}: which label belongs to it, {names}? Keep one kind of file in labels/")
    of_image, of_label = explaining[0]
    _log.warning(
        "images and labels are paired by their endings: %s with %s", of_image or "(nothing)", of_label or "(nothing)"
    )
    return (
        {key.removesuffix(of_image): path for key, path in images.items()},
        {key.removesuffix(of_label): path for key, path in labels.items() if key.endswith(of_label)},
    )


def _suffixes(image: str, label: str) -> tuple[str, str] | None:
    """What remains of two keys after what they share, which ends where a word does and cuts no number in two."""
    shared = next(
        (i for i, (a, b) in enumerate(zip(image, label, strict=False)) if a != b), min(len(image), len(label))
    )
    if not all(rest == "" or rest[0] in _BETWEEN for rest in (image[shared:], label[shared:])):
        shared = 1 + max(image[:shared].rfind(mark) for mark in _BETWEEN)
    rests = image[shared:], label[shared:]
    name = image[:shared].rpartition("/")[2]
    return None if not name or any("/" in rest or rest[:1].isdigit() for rest in rests) else rests


def _explains(pair: tuple[str, str], images: dict[str, Path], labels: dict[str, Path]) -> bool:
    of_image, of_label = pair
    return all(key.endswith(of_image) and key[: len(key) - len(of_image)] + of_label in labels for key in images)

"""Look at every file of a domain before a long run does, and report by name what is wrong."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dida.data.classes import ClassSet
from dida.data.domains import Survey, UnlabelledDomain
from dida.data.image_file import NO_COLOUR, Encoding, ImageFileError, read_image, require_same_size
from dida.data.statistics import MIN_CLASS_SHARE, LabelCount, UnknownId, count_label, tally_unknown
from dida.data.sweep import sweep

_SHOWN = 20  # names per finding in the printed report


@dataclass(frozen=True, eq=False)
class LabelReport:
    """What the label files of a domain hold. Tuples of text name one file, or pair of files, each."""

    files: int
    ids: dict[int, int]  # pixels by raw id
    encoding: Encoding  # of the raw ids
    class_set: ClassSet
    pixels: np.ndarray  # [C] pixels by class
    unknown: dict[int, UnknownId]
    unreadable: tuple[str, ...]
    mismatched: tuple[str, ...]  # label and image differ in size
    images_without_label: tuple[str, ...]
    labels_without_image: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def class_share(self) -> float:
        """The share of pixels that belong to a class; 1 if there are no pixels."""
        total = sum(self.ids.values())
        return float(self.pixels.sum()) / total if total else 1.0


@dataclass(frozen=True, eq=False)
class Report:
    """What `check_unlabelled` and `check_labelled` found; str() is for reading."""

    name: str
    split: str
    folder: Path
    images: int
    sizes: dict[tuple[int, int], int]  # images by (width, height)
    unreadable: tuple[str, ...]
    black: tuple[str, ...]  # frames of nothing but zeros
    labels: LabelReport | None  # None: an unlabelled domain, nothing but images was looked at

    @property
    def problems(self) -> dict[str, tuple[str, ...]]:
        """What must be put right, as {what: names}."""
        found = {"unreadable images": self.unreadable}
        if self.labels is not None:
            found |= {
                "unreadable labels": self.labels.unreadable,
                "labels of another size than their image": self.labels.mismatched,
                "images without label": self.labels.images_without_label,
                "labels without image": self.labels.labels_without_image,
                "what the label format does not define": tuple(
                    f"{self.labels.encoding.spell(raw)}: {u.pixels} pixels in {u.files} files, most in {u.example}"
                    for raw, u in self.labels.unknown.items()
                ),
            }
            if self.labels.class_share < MIN_CLASS_SHARE:
                found["labels mostly void"] = (
                    f"only {self.labels.class_share:.0%} of all pixels belong to a class: wrong ids?",
                )
        return {what: names for what, names in found.items() if names}

    @property
    def notes(self) -> dict[str, tuple[str, ...]]:
        """What is worth knowing but does no harm, as {what: names}. GTA5 as published has black frames."""
        found = {"all-black images": self.black}
        if self.labels is not None:
            found["images left out (they do not match their label as published)"] = self.labels.left_out
            pixels_of = zip(self.labels.class_set.names, self.labels.pixels, strict=True)
            if self.labels.ids:
                found["classes that never occur"] = tuple(name for name, pixels in pixels_of if pixels == 0)
        return {what: names for what, names in found.items() if names}

    @property
    def ok(self) -> bool:
        """Nothing is wrong; there may be notes."""
        return not self.problems

    def __str__(self) -> str:
        lines = [f"{self.name} ({self.split}) in {self.folder}: {'ok' if self.ok else 'PROBLEMS'}"]
        sizes = sorted(self.sizes.items(), key=lambda item: -item[1])
        lines.append(f"  {self.images} images: " + ", ".join(f"{n} of {w}x{h}" for (w, h), n in sizes))
        if self.labels is None:
            lines.append("  unlabelled: no label was looked at")
        else:
            lines += _label_lines(self.labels)
        for mark, findings in (("PROBLEM", self.problems), ("note", self.notes)):
            for what, names in findings.items():
                lines.append(f"  {mark}: {what} ({len(names)})")
                lines += [f"    {name}" for name in names[:_SHOWN]]
                if len(names) > _SHOWN:
                    lines.append(f"    ... and {len(names) - _SHOWN} more")
        return "\n".join(lines)


def check_unlabelled(domain: UnlabelledDomain) -> Report:
    """Decode every image. Label folders are neither opened nor listed."""
    title = f"checking {domain.name} ({domain.split})"
    looks = sweep(_look_at_image, domain.images, title=title)
    return _report(domain.name, domain.split, domain.folder, looks, labels=None)


def check_labelled(survey: Survey) -> Report:
    """Decode every image and every label of `domains.survey(...)`."""
    domain = survey.domain
    C = len(domain.class_set)
    jobs = [_Pair(image, domain.labels[index], domain.encoding(index), C) for index, image in enumerate(domain.images)]
    looks = sweep(_look_at_pair, jobs, title=f"checking {domain.name} ({domain.split})")
    counted = [
        (look.counted, path) for look, path in zip(looks, domain.labels, strict=True) if look.counted is not None
    ]
    counts = [count for count, _ in counted]
    labels = LabelReport(
        files=len(domain.labels),
        ids=dict(sorted(sum((Counter(count.ids) for count in counts), Counter()).items())),
        encoding=domain.raw,
        class_set=domain.class_set,
        pixels=sum((count.pixels for count in counts), np.zeros(C, dtype=np.int64)),
        unknown=tally_unknown([count.unknown for count in counts], [path for _, path in counted]),
        unreadable=_texts(look.unreadable_label for look in looks),
        mismatched=_texts(look.mismatch for look in looks),
        images_without_label=_texts(survey.images_without_label),
        labels_without_image=_texts(survey.labels_without_image),
        left_out=_texts(survey.left_out),
    )
    return _report(domain.name, domain.split, domain.folder, looks, labels)


class _Pair(NamedTuple):
    image: Path
    label: Path
    encoding: Encoding
    classes: int


class _Finding(NamedTuple):
    """What one image, or one pair, turned out to be."""

    size: tuple[int, int] | None = None
    black: str | None = None
    unreadable_image: str | None = None
    unreadable_label: str | None = None
    mismatch: str | None = None
    counted: LabelCount | None = None


def _look_at_image(path: Path) -> _Finding:
    try:
        image = read_image(path)
    except ImageFileError as error:
        return _Finding(unreadable_image=str(error))
    return _Finding(size=(image.shape[1], image.shape[0]), black=None if image.any() else str(path))


def _look_at_pair(pair: _Pair) -> _Finding:
    look = _look_at_image(pair.image)
    try:
        count = count_label(pair.label, pair.encoding, classes=pair.classes)
    except ImageFileError as error:
        return look._replace(unreadable_label=str(error))
    look = look._replace(counted=count)
    if look.size is not None:
        try:
            require_same_size(pair.image, look.size[::-1], pair.label, count.shape)
        except ImageFileError as error:
            return look._replace(mismatch=str(error))
    return look


def _report(name: str, split: str, folder: Path, looks: list[_Finding], labels: LabelReport | None) -> Report:
    return Report(
        name=name,
        split=split,
        folder=folder,
        images=len(looks),
        sizes=dict(Counter(look.size for look in looks if look.size is not None)),
        unreadable=_texts(look.unreadable_image for look in looks),
        black=_texts(look.black for look in looks),
        labels=labels,
    )


def _label_lines(labels: LabelReport) -> list[str]:
    if not labels.ids:
        return [f"  {labels.files} labels, of which none could be read"]
    ids = [raw for raw in labels.ids if not (labels.encoding.colours and raw == NO_COLOUR)]
    held = "colours" if labels.encoding.by_colour_alone or not ids else f"raw ids {min(ids)} to {max(ids)}"
    total = sum(labels.ids.values())
    shares = [
        f"{name} {pixels / total:.2%}" for name, pixels in zip(labels.class_set.names, labels.pixels, strict=True)
    ]
    return [
        f"  {labels.files} labels: {held}; {labels.class_share:.1%} of all pixels belong to a class",
        "  pixels: " + ", ".join(shares),
    ]


def _texts(items: Iterable[Path | str | None]) -> tuple[str, ...]:
    return tuple(str(item) for item in items if item is not None)

"""How many pixels of each class every label file holds, counted once and cached.

The cache is one .npz per split, in the data set's folder or, where that cannot be written, in the user's cache folder
(XDG_CACHE_HOME/dida). It is bound to the class set and to names, sizes and modification times of the label files: any
change, and it is counted anew.
"""

import hashlib
import logging
import os
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dida.batch import IGNORE
from dida.data.archive import stamp
from dida.data.domains import LabelledDomain
from dida.data.image_file import Encoding, image_size, read_ids, require_same_size
from dida.data.sweep import sweep
from dida.machine.files import whole_file

_log = logging.getLogger(__name__)

_FORMAT = 2  # raise when what is counted or how it is stored changes
_EXACT = 1 << 24  # pixels that OpenCV can count: it does so in integers, and hands out float32
MIN_CLASS_SHARE = 0.5  # if fewer pixels belong to a class, the ids are probably read with the wrong table


class Statistics(NamedTuple):
    """Pixel counts of a labelled domain at native resolution; row i is labels[i]."""

    pixels: np.ndarray  # [files, C] int64 pixels of each class
    total: np.ndarray  # [files] int64 pixels, void included
    unknown: dict[int, "UnknownId"]  # by raw id


class UnknownId(NamedTuple):
    """A raw id that the label format does not define; its pixels are read as 255."""

    pixels: int
    files: int
    example: str


class LabelCount(NamedTuple):
    """What one label file holds."""

    pixels: np.ndarray  # [C] int64
    shape: tuple[int, int]  # (height, width)
    ids: dict[int, int]  # pixels by raw id
    unknown: dict[int, int]  # pixels by raw id, those that the format does not define


def class_statistics(domain: LabelledDomain, *, workers: int | None = None) -> Statistics:
    """The statistics of a domain: from the cache if it is current, else counted by `workers` processes and cached.

    Logs a warning if there are raw ids that the format does not define, or if less than half of all pixels belong to
    a class. Raises ImageFileError for an unreadable label, or one whose size is not that of its image.
    """
    digest = _digest(domain)
    places, shape = _cache_files(domain), (len(domain.labels), len(domain.class_set))
    statistics = next(filter(None, (_load(place, digest, *shape) for place in places)), None)
    if statistics is None:
        statistics = _count(domain, workers)
        _store(places, digest, statistics)
    warn_of_ids(domain, statistics.unknown, statistics.pixels.sum() / max(statistics.total.sum(), 1))
    return statistics


def require_pixels(domain: LabelledDomain, statistics: Statistics) -> None:
    """Raise ValueError, with the ids found and the ids mapped, if no pixel of a domain belongs to a class."""
    if statistics.pixels.any():
        return
    ids = domain.raw.ids
    mapped = np.flatnonzero(ids.train != IGNORE)
    found = [domain.raw.spell(raw) for raw in statistics.unknown] or ["only ids that are no class"]
    if domain.raw.by_colour_alone:
        says = 'gives colours and no ids; where label files hold numbers, give each class its "id"'
    else:
        says = f"maps {_some([str(raw) for raw in mapped])}, so the label files hold other ids than it says"
    raise ValueError(f"{domain.name} ({domain.split}): no pixel of any class. Found: {_some(found)}; {ids.name} {says}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def count_label(path: Path, encoding: Encoding, *, classes: int) -> LabelCount:
    """Count one label file, whose train ids are 0 .. classes-1. Raises ImageFileError."""
    ids = read_ids(path, encoding)
    counts = pixels_by_value(ids)
    present = np.flatnonzero(counts)
    train = encoding.ids.train[present]
    pixels = np.bincount(train, weights=counts[present], minlength=256)[:classes].astype(np.int64)
    return LabelCount(pixels, ids.shape, {int(raw): int(counts[raw]) for raw in present}, _unknown(counts, encoding))


def pixels_by_value(ids: np.ndarray) -> np.ndarray:
    """[256] or [65536] int64: how often each value occurs in an array of uint8 or uint16, of any shape."""
    flat = ids.reshape(-1)
    if ids.dtype == np.uint16:
        return _histogram(flat)
    # Two at a time: neighbours are mostly alike, and a counter that was just raised is waited for.
    pairs = _histogram(flat[: flat.size // 2 * 2].view(np.uint16)).reshape(256, 256)
    counts = pairs.sum(0) + pairs.sum(1)
    counts[flat[flat.size // 2 * 2 :]] += 1
    return counts


def _histogram(values: np.ndarray) -> np.ndarray:
    """[65536] int64 from [N] uint16, 9 times faster than bincount."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    for first in range(0, len(values), _EXACT):
        part = values[None, first : first + _EXACT]
        counts += cv2.calcHist([part], [0], None, [1 << 16], [0, 1 << 16]).ravel().astype(np.int64)
    return counts


def unknown_ids(ids: np.ndarray, encoding: Encoding) -> dict[int, int]:
    """Pixels by raw id, of those in a label file that its format does not define."""
    return _unknown(pixels_by_value(ids), encoding)


def _unknown(counts: np.ndarray, encoding: Encoding) -> dict[int, int]:
    return {int(raw): int(counts[raw]) for raw in np.flatnonzero(counts) if not encoding.ids.known[raw]}


def tally_unknown(found: list[dict[int, int]], files: list[Path]) -> dict[int, UnknownId]:
    """Sum up the undefined ids of many files, in pixels by raw id, each with the file that holds most of it."""
    tally: dict[int, UnknownId] = {}
    largest: dict[int, int] = {}
    for unknown, file in zip(found, files, strict=True):
        for raw, n in unknown.items():
            before = tally.get(raw, UnknownId(0, 0, ""))
            example = str(file) if n > largest.get(raw, 0) else before.example
            largest[raw] = max(n, largest.get(raw, 0))
            tally[raw] = UnknownId(before.pixels + n, before.files + 1, example)
    return dict(sorted(tally.items()))


class _Job(NamedTuple):
    image: Path
    label: Path
    encoding: Encoding
    classes: int


def _count_job(job: _Job) -> LabelCount:
    count = count_label(job.label, job.encoding, classes=job.classes)
    require_same_size(job.image, image_size(job.image)[::-1], job.label, count.shape)
    return count


def _count(domain: LabelledDomain, workers: int | None) -> Statistics:
    jobs = [
        _Job(image, label, domain.encoding(index), len(domain.class_set))
        for index, (image, label) in enumerate(zip(domain.images, domain.labels, strict=True))
    ]
    counts = sweep(_count_job, jobs, title=f"{domain.name}: counting class pixels", workers=workers)
    return Statistics(
        np.stack([count.pixels for count in counts]),
        np.array([count.shape[0] * count.shape[1] for count in counts], dtype=np.int64),
        tally_unknown([count.unknown for count in counts], list(domain.labels)),
    )


def warn_of_ids(domain: LabelledDomain, unknown: dict[int, UnknownId], share: float) -> None:
    """Log what label files of a domain hold that their format does not define, and that few pixels are of a class."""
    for raw, found in unknown.items():
        _log.warning(
            "%s (%s): %s: not defined, %d pixels in %d files are read as 255; most are in %s",
            domain.name,
            domain.split,
            domain.raw.spell(raw),
            found.pixels,
            found.files,
            found.example,
        )
    if share < MIN_CLASS_SHARE:
        _log.warning(
            "%s (%s): only %.0f %% of all pixels belong to a class; do the label files hold other ids than expected?",
            domain.name,
            domain.split,
            100 * share,
        )


def _digest(domain: LabelledDomain) -> str:
    digest = hashlib.sha256(f"format {_FORMAT}\n".encode())
    digest.update(repr(domain.class_set.names).encode())
    for encoding in (domain.raw, domain.train):
        digest.update(encoding.ids.train.tobytes())
        digest.update(encoding.ids.known.tobytes())
    digest.update(repr((domain.raw.colours, domain.raw.by_colour_alone)).encode())
    for path in domain.labels:
        size, version = stamp(path)
        relative = os.path.relpath(path, domain.folder)  # so that a data set may be moved with its cache
        digest.update(f"{relative}\t{size}\t{version}\n".encode())
    return digest.hexdigest()


def _cache_files(domain: LabelledDomain) -> tuple[Path, Path]:
    """Beside the data, and in the user's cache folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dida"
    place = hashlib.sha256(str(domain.folder.resolve()).encode()).hexdigest()[:16]
    return (
        domain.folder / f".dida_statistics_{domain.split}.npz",
        user / f"statistics_{domain.split}_{place}.npz",
    )


def _load(path: Path, digest: str, files: int, classes: int) -> Statistics | None:
    """The cached statistics, or None if there are none or they describe other files."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["digest"]) != digest:
                return None
            unknown = {
                int(raw): UnknownId(int(pixels), int(files), str(example))
                for raw, pixels, files, example in zip(
                    stored["unknown_id"],
                    stored["unknown_pixels"],
                    stored["unknown_files"],
                    stored["unknown_example"],
                    strict=True,
                )
            }
            statistics = Statistics(stored["pixels"], stored["total"], unknown)
            _require_shape(statistics, files, classes)
            return statistics
    except Exception as error:  # a damaged byte leads numpy's, zip's and Python's own readers into errors of any kind
        _log.warning("%s cannot be read (%s): counting anew", path, error)
        return None


def _require_shape(statistics: Statistics, files: int, classes: int) -> None:
    """Raise ValueError for what cannot be the counts of so many files and classes."""
    pixels, total = statistics.pixels, statistics.total
    whole = pixels.shape == (files, classes) and total.shape == (files,)
    if not whole or pixels.dtype != np.int64 or total.dtype != np.int64:
        raise ValueError(f"counts of shape {pixels.shape} and {total.shape} for {files} files and {classes} classes")
    if (pixels < 0).any() or (pixels.sum(1) > total).any():
        raise ValueError("counts that are negative, or more than there are pixels")


def _store(places: tuple[Path, ...], digest: str, statistics: Statistics) -> None:
    """Write to the first place that can be written to; say so if there is none."""
    refused = []
    for place in places:
        try:
            _write(place, digest, statistics)
            return
        except OSError as error:
            refused.append(str(error))
    _log.warning("the class statistics cannot be cached: %s", "; ".join(refused))


def _write(path: Path, digest: str, statistics: Statistics) -> None:
    """Raises OSError."""
    with whole_file(path) as file:
        np.savez_compressed(
            file,
            digest=digest,
            pixels=statistics.pixels,
            total=statistics.total,
            unknown_id=np.array(list(statistics.unknown), dtype=np.int64),
            unknown_pixels=np.array([u.pixels for u in statistics.unknown.values()], dtype=np.int64),
            unknown_files=np.array([u.files for u in statistics.unknown.values()], dtype=np.int64),
            unknown_example=np.array([u.example for u in statistics.unknown.values()], dtype=np.str_),
        )

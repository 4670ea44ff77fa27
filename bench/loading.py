"""What reading costs: python -m bench.loading

Samples per second of one core, stage by stage, for GTA5, SYNTHIA and Cityscapes at their real sizes, and how many
workers keep a step of some length supplied. The pictures are made, of the size in bytes that the real ones have; they
are read from memory (the system's page cache), so a slow disk comes on top. Seconds are of the processor, the least of
several passes: a machine that others use too is as good as an idle one, but for its caches.
"""

import io
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from bench import record
from dida.data import domains
from dida.data.image_file import decode_ids, decode_image, encoded_file
from dida.data.pairs import Pairs, View
from dida.data.rare_class import rare_classes
from dida.data.scaled_files import CachedFiles, ScaledFiles
from dida.data.statistics import class_statistics, count_label
from dida.data.transforms import scaled_image
from dida.data.workers import start_worker
from dida.machine.files import require_writable
from dida.options import COUNT, Above, read_command_line

CORES = 2  # that class statistics are extrapolated to
SIDE = 512  # of a crop


class Released(NamedTuple):
    """A data set as it is published."""

    name: str
    files: int  # of its training split
    size: tuple[int, int]  # (width, height)
    scale: tuple[int, int]  # that the paper trains at
    image: str  # where a picture lies, with {i}
    label: str


PUBLISHED = (
    Released("gta5", 24_966, (1914, 1052), (1280, 720), "gta/images/{i:05d}.png", "gta/labels/{i:05d}.png"),
    Released("synthia", 9_400, (1280, 760), (1280, 760), "synthia/RGB/{i:07d}.png", "synthia/GT/LABELS/{i:07d}.png"),
    Released(
        "cityscapes",
        2_975,
        (2048, 1024),
        (1024, 512),
        "cityscapes/leftImg8bit/train/x/x_{i:06d}_leftImg8bit.png",
        "cityscapes/gtFine/train/x/x_{i:06d}_gtFine_labelIds.png",
    ),
)


@dataclass(frozen=True)
class LoadingOptions:
    """Print what reading costs."""

    files: Annotated[int, COUNT] = 4
    """Pictures that are made of each data set."""
    passes: Annotated[int, COUNT] = 5
    """Passes over them, of which the fastest counts."""
    batch_size: Annotated[int, COUNT] = 2
    """Samples of a step."""
    steps: tuple[Annotated[float, Above(0)], ...] = (0.2, 0.1, 0.03)
    """Seconds that a step takes, for which workers are counted."""
    json: Path | None = None
    """A file that keeps the times, with what they were measured on; a table of them goes beside it."""


def made_label(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """[H, W] uint8 raw ids of Cityscapes: regions of all sizes with ragged edges."""
    width, height = size[0] // 2, size[1] // 2
    label = np.full((height, width), 7, dtype=np.uint8)
    for _ in range(250):
        centre, half = rng.integers(0, (width, height)), rng.exponential((width / 20, height / 20)) + 2
        angle, raw = float(rng.uniform(0, 180)), int(rng.integers(7, 34))
        cv2.ellipse(label, (tuple(map(float, centre)), tuple(map(float, 2 * half)), angle), raw, -1)
    return cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)


def made_image(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint8 whose PNG has 1.4 bytes a pixel, as photographs and games do."""
    coarse = rng.integers(0, 256, (size[1] // 24, size[0] // 24, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 1.2, smooth.shape).round(), 0, 255).astype(np.uint8)


def make_files(root: Path, data: Released, files: int) -> None:
    """Pictures and labels where, and as, the data set has them."""
    rng = np.random.default_rng(0)
    for i in range(1, files + 1):
        image, label = (root / path.format(i=i) for path in (data.image, data.label))
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(made_image(rng, data.size)).save(image)
        ids = made_label(rng, data.size)
        if data.name == "synthia":  # 16 bits: the class in red, the instance in green
            bgr = np.stack([np.zeros_like(ids), ids, ids // 2], axis=2).astype(np.uint16)
            cv2.imwrite(str(label), bgr)
            continue
        picture = Image.fromarray(ids)
        if data.name == "gta5":
            picture.putpalette(rng.integers(0, 256, 768).tolist())
        picture.save(label)


def processor_seconds(work: Callable[[int], object], count: int, passes: int) -> float:
    """Of the processor, for one of `count` items; the fastest of several passes."""
    found = []
    for _ in range(passes):
        begin = time.process_time()
        for i in range(count):
            work(i)
        found.append((time.process_time() - begin) / count)
    return min(found)


def stages(root: Path, data: Released, options: LoadingOptions) -> Iterator[tuple[str, float]]:
    """Seconds of one core for one picture, by what is done with it."""
    domain = domains.labelled(data.name, root, "train")
    images, labels, raw = domain.images, domain.labels, domain.raw
    bytes_of = {path: encoded_file(path, "file") for path in (*images, *labels)}
    pixels = [decode_image(path, bytes_of[path]) for path in images]
    cached = CachedFiles(root / "cache")

    def pillow(i: int) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(bytes_of[images[i]])).convert("RGB"))

    def both(reader: ScaledFiles | CachedFiles) -> Callable[[int], object]:
        return lambda i: (
            reader.image(images[i], data.scale, enlarge=True),
            reader.label(labels[i], raw, data.scale, enlarge=True),
        )

    work: dict[str, Callable[[int], object]] = {
        "read the picture's bytes": lambda i: encoded_file(images[i], "image"),
        "decode the picture by Pillow": pillow,
        "decode the picture": lambda i: decode_image(images[i], bytes_of[images[i]]),
        "scale the picture": lambda i: scaled_image(pixels[i], data.scale),
        "decode the label": lambda i: decode_ids(labels[i], bytes_of[labels[i]], raw),
        "count the label": lambda i: count_label(labels[i], raw, classes=len(domain.class_set)),
        "picture and label, scaled": both(ScaledFiles()),
        "picture and label, cached": both(cached),
    }
    for name, do in work.items():
        do(0)
        yield name, processor_seconds(do, len(images), options.passes)


def samples(root: Path, source: str, options: LoadingOptions) -> dict[str, float]:
    """Seconds of one core for one sample of a pair of domains, decoded and cached."""
    labelled = domains.labelled(source, root, "train")
    pairs = Pairs(
        labelled,
        domains.unlabelled("cityscapes", root, "train"),
        seed=0,
        source_view=View(next(d.scale for d in PUBLISHED if d.name == source), (SIDE, SIDE), 0.75),
        target_view=View(PUBLISHED[-1].scale, (SIDE, SIDE)),
        rare_classes=rare_classes(class_statistics(labelled, workers=0).pixels, labelled.class_set.names),
    )
    found = {}
    for name, reader in (("decoded", ScaledFiles()), ("cached", CachedFiles(root / "cache"))):
        pairs.reader = reader
        count = 4 * options.files
        processor_seconds(pairs.__getitem__, count, 1)
        found[name] = processor_seconds(pairs.__getitem__, count, options.passes)
    return found


def time_stages(options: LoadingOptions) -> dict[str, dict[str, float]]:
    """Milliseconds of one core for one picture or sample, by data set and stage."""
    start_worker()  # in a worker's way: one thread
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for data in PUBLISHED:
            make_files(root, data, options.files)
            found[data.name] = {name: 1000 * value for name, value in stages(root, data, options)}
        for source in ("gta5", "synthia"):
            found[f"{source} to cityscapes"] = {
                f"sample, {how}": 1000 * value for how, value in samples(root, source, options).items()
            }
    return found


def loading_lines(found: dict[str, dict[str, float]], options: LoadingOptions) -> Iterator[str]:
    """The table, line by line."""
    for name, by_stage in found.items():
        yield f"\n{name:32}{'ms':>10}{'a second':>10}"
        for stage, ms in by_stage.items():
            workers = ""
            if stage.startswith("sample"):
                need = [f"{math.ceil(options.batch_size * ms / 1000 / step)} for {step} s" for step in options.steps]
                workers = f"   workers for {options.batch_size} samples a step: {', '.join(need)}"
            yield f"  {stage:30}{ms:10.2f}{1000 / ms:10.1f}{workers}"
    for data in PUBLISHED:
        whole = f"{statistics_seconds(data, found):.0f} s (extrapolated)"
        yield f"\nclass statistics of {data.files} labels of {data.name}, {CORES} cores: {whole}"


def statistics_seconds(data: Released, found: dict[str, dict[str, float]]) -> float:
    """What class statistics of the whole data set would take, on CORES cores."""
    return data.files * found[data.name]["count the label"] / 1000 / CORES


def loading_report(result: dict[str, Any]) -> str:
    """The table in markdown; a cell is milliseconds of the processor for one picture, or sample."""
    rows = [[data, stage, f"{ms:.2f}"] for data, stages in result["ms"].items() for stage, ms in stages.items()]
    setting = f"made pictures, {result['files']} of each data set; the fastest of {result['passes']} passes"
    table = record.table(["data", "stage", "ms"], rows)
    whole = record.table(
        ["class statistics of", "labels", f"s on {CORES} cores, extrapolated"],
        [[data.name, data.files, f"{statistics_seconds(data, result['ms']):.0f}"] for data in PUBLISHED],
    )
    return "\n\n".join(["# Reading, by one core", setting, record.render_header(result["header"]), table, whole])


def main(options: LoadingOptions) -> None:
    """Measure, print, and keep if asked. Raises OSError, before anything is measured, where it cannot be kept."""
    if options.json:
        require_writable(options.json, option="--json", folder=False)
    found = time_stages(options)
    print("\n".join(loading_lines(found, options)))
    if options.json:
        result = {"header": record.header("cpu"), "files": options.files, "passes": options.passes, "ms": found}
        record.write(options.json, result)
        record.write(options.json.with_suffix(".md"), loading_report(result) + "\n")


if __name__ == "__main__":
    main(read_command_line(LoadingOptions, sys.argv[1:], "bench.loading"))

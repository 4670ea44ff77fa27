"""How many batches a second the loader makes, and how many pictures a second an evaluation scores.

Pictures have the sizes, the layout and about the bytes of GTA5's and Cityscapes'; on a CPU a quarter of the side.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from bench.gpu.program import Program, begin, stage_parser
from dida.assemble import build_pairs, build_student
from dida.config import Config, changed
from dida.data import domains
from dida.data.classes import CITYSCAPES_CLASSES
from dida.data.labelled_images import LabelledImage, LabelledImages
from dida.data.loader import batches
from dida.options import parse_size
from dida.precision import products_in
from dida.use.evaluate import evaluate

GTA, CITYSCAPES = (1914, 1052), (2048, 1024)
LEAST = 8.0  # seconds without which nothing more is begun


class Amount(NamedTuple):
    """How much is loaded and scored."""

    scale: int  # sides are divided by it
    backbone: str
    workers: tuple[int, ...]
    batches_a_worker: int
    scored: int
    files: int = 8


AMOUNTS = {"cuda": Amount(1, "mit_b5", (4, 8, 12), 16, 32), "cpu": Amount(8, "mit_b0", (1,), 3, 2, files=2)}


class Way(NamedTuple):
    """Who is scored, and in what precision."""

    name: str
    networks: tuple[str, ...]
    tf32: bool
    dtype: torch.dtype = torch.float32


WAYS = (
    Way("student and teacher, float32", ("student", "teacher"), False),
    Way("student and teacher, TF32", ("student", "teacher"), True),
    Way("student, TF32", ("student",), True),
    Way("student, bfloat16", ("student",), True, torch.bfloat16),
)


# ---- pictures ------------------------------------------------------------------------------------------------------


def noise_picture(size: tuple[int, int], seed: int, detail: float) -> np.ndarray:
    """[H, W, 3] uint8: soft patches with as much fine noise as makes a PNG about as long as a photograph's."""
    width, height = size
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    soft = cv2.resize(patches, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    fine = cv2.GaussianBlur(rng.normal(0, 4, soft.shape).astype(np.float32), (0, 0), 0.8)
    return np.clip(soft + detail * fine, 0, 255).astype(np.uint8)


def noise_label(size: tuple[int, int], seed: int) -> np.ndarray:
    """[H, W] uint8: raw ids of all classes and of one that is none, in patches."""
    ids = np.array([*CITYSCAPES_CLASSES.label_ids, 0], np.uint8)
    patches = np.random.default_rng(seed).integers(0, len(ids), (size[1] // 64 + 1, size[0] // 64 + 1), dtype=np.uint8)
    return ids[cv2.resize(patches, size, interpolation=cv2.INTER_NEAREST)]


def write_pictures(root: Path, amount: Amount) -> dict[str, float]:
    """Both data sets below `root`. Returns the mean megabytes of a picture of each."""
    gta, cityscapes = (tuple(side // amount.scale for side in size) for size in (GTA, CITYSCAPES))
    for i in range(amount.files):
        _save(root / f"gta/images/{i + 1:05d}.png", noise_picture(gta, i, 1.0))
        _save(root / f"gta/labels/{i + 1:05d}.png", noise_label(gta, i))
        for split in ("train", "val"):
            name = f"{split}/town/town_{i:06d}_000019"
            _save(root / f"cityscapes/leftImg8bit/{name}_leftImg8bit.png", noise_picture(cityscapes, i, 0.8))
        _save(root / f"cityscapes/gtFine/{name}_gtFine_labelIds.png", noise_label(cityscapes, i))
    kinds = {"GTA5": "gta/images", "Cityscapes": "cityscapes/leftImg8bit"}
    sizes = {kind: [p.stat().st_size for p in (root / folder).rglob("*.png")] for kind, folder in kinds.items()}
    return {kind: round(float(np.mean(found)) / 1e6, 3) for kind, found in sizes.items()}


def _save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, compress_level=3)


# ---- what is measured ----------------------------------------------------------------------------------------------


def loading(program: Program, config: Config, amount: Amount) -> Iterator[dict[str, Any]]:
    """A row per number of loading processes."""
    device, size = torch.device(program.device), config.data.batch_size
    pairs, _ = build_pairs(config)
    start = time.perf_counter()
    for i in range(size):
        pairs[i]
    yield {"workers": 0, "ms_per_batch": round(1e3 * (time.perf_counter() - start), 2)}
    for workers in amount.workers:
        if program.left() < LEAST:
            return
        count = amount.batches_a_worker * workers
        start = time.perf_counter()
        stream = batches(pairs, batch_size=size, start=0, stop=count, workers=workers, device=device)
        next(stream)
        first = time.perf_counter() - start
        warm = min(2 * workers, count - 2)  # what the processes have made ahead
        for _ in range(warm):
            next(stream)
        start = time.perf_counter()
        left = sum(1 for _ in stream)
        if device.type == "cuda":
            torch.cuda.synchronize()
        each = 1e3 * (time.perf_counter() - start) / left
        yield {"workers": workers, "first_batch_s": round(first, 2), "ms_per_batch": round(each, 2)}


class Repeated(Dataset[LabelledImage]):
    """Some decoded pictures over and over: nothing is read while networks are timed."""

    def __init__(self, images: list[LabelledImage], count: int) -> None:
        self.images, self.count = images, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> LabelledImage:
        return self.images[index % len(self.images)]


def scoring(program: Program, config: Config, amount: Amount) -> Iterator[dict[str, Any]]:
    """A row per way to score."""
    domain = domains.labelled("cityscapes", config.data.data_root, "val")
    reader = LabelledImages(domain, parse_size(config.data.tgt_size, option="--tgt-size"))
    images = [reader[i] for i in range(len(reader))]
    networks: dict[str, nn.Module] = {
        name: build_student(config, domain.class_set).to(program.device) for name in ("student", "teacher")
    }
    for way in WAYS:
        if program.left() < LEAST:
            return
        chosen = {name: networks[name] for name in way.networks}
        with products_in("tf32" if way.tf32 else "fp32"), _autocast(way.dtype, program.device):
            evaluate(chosen, Repeated(images, 1), domain.class_set)
            start = time.perf_counter()
            evaluate(chosen, Repeated(images, amount.scored), domain.class_set)
        yield {"way": way.name, "images_per_second": round(amount.scored / (time.perf_counter() - start), 2)}


def _autocast(dtype: torch.dtype, device: str) -> AbstractContextManager:
    return nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)


def main(arguments: Sequence[str] | None = None) -> int:
    program, _ = begin(stage_parser(__doc__), arguments)
    amount = AMOUNTS[program.device]
    with TemporaryDirectory() as folder:
        sizes = {name: f"{w // amount.scale}x{h // amount.scale}" for name, (w, h) in
                 (("src_size", (1280, 720)), ("tgt_size", (1024, 512)))}  # fmt: skip
        small = {"crop": 512 // amount.scale, "rare_class_pixels": 3000 // amount.scale**2, **sizes}
        config = changed(Config(), data_root=Path(folder), backbone=amount.backbone, weights="none", **small)
        program.keep(megabytes=write_pictures(Path(folder), amount), loading=[], scoring=[])
        for part, rows in (("loading", loading), ("scoring", scoring)):
            for row in rows(program, config, amount):
                program.keep(**{part: [*program.found[part], row]})
                print(part, row, flush=True)
    complete = len(program.found["loading"]) == 1 + len(amount.workers) and len(program.found["scoring"]) == len(WAYS)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())

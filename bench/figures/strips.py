"""Fig. 6, 7 and 10: image, truth, and what each of several runs says of it, side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
import tyro

from bench.figures.runs import domain_of, evenly_spaced, images_of, load_runs, names_of, predictions, save_facts
from dida.data.classes import ClassSet
from dida.data.drawing import legend
from dida.use.predictions import save_png

PICTURE_WIDTH = 256  # pixels of one picture in the strip
PAPER = 255
_HEAD, _GAP = 22, 4  # pixels: height of the captions, and between two pictures


@dataclass(frozen=True)
class StripsOptions:
    """Image, truth and the predictions of several runs side by side (Fig. 6, 7, 10)."""

    out: Annotated[Path, tyro.conf.Positional]
    """PNG to write."""
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders or checkpoints, one column each, in this order."""
    names: tuple[str, ...] = ()
    """Captions of the runs; by default their methods."""
    images: int = 4
    """Rows: so many images, evenly spaced over the split, so that none is chosen by eye."""
    tgt: str | None = None
    """Domain of the images; by default the target of the first run."""
    data_root: Path | None = None
    """Folder that holds the data sets; by default that of the first run."""
    split: Literal["val", "test", "train"] = "val"
    """Part of the domain; its labels are needed."""
    network: Literal["student", "teacher"] = "student"
    """Whose predictions are drawn."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def main(options: StripsOptions) -> None:
    """Draw them. Raises FileNotFoundError or ValueError for runs, data or options that do not fit."""
    runs = load_runs(options.runs, options.device)
    names, class_set = names_of(runs, options.names), runs[0].class_set
    domain = domain_of(runs[0], options.tgt, options.data_root, options.split)
    chosen = evenly_spaced(domain, options.images)
    first = [images_of(runs[0], domain)[i] for i in chosen]
    columns = [
        ("image", [image.image.permute(1, 2, 0).numpy() for image in first]),
        ("truth", [class_set.colourise(image.label.numpy()) for image in first]),
    ]
    for name, trained in zip(names, runs, strict=True):
        seen = (images_of(trained, domain)[i] for i in chosen)  # runs may differ in the size they look at
        said = predictions(trained, options.network, seen)
        columns.append((name, [trained.class_set.colourise(train_ids) for train_ids in said]))
    facts = {
        "domain": domain.name,
        "split": options.split,
        "network": options.network,
        "columns": [name for name, _ in columns],
        "rows": [domain.images[i].name for i in chosen],
    }
    save_facts(options.out, runs, facts)  # before the picture, which a commit may hold: it would count as a change
    save_png(options.out, draw_strips(columns, class_set))


def draw_strips(columns: list[tuple[str, list[np.ndarray]]], class_set: ClassSet) -> np.ndarray:
    """Columns of (caption, pictures [H, W, 3] RGB) -> one RGB picture with the legend of classes below."""
    truth = columns[1][1]
    heights = [round(PICTURE_WIDTH * picture.shape[0] / picture.shape[1]) for picture in truth]
    strip = np.concatenate([_column(caption, pictures, heights) for caption, pictures in columns], axis=1)
    key = legend(class_set)
    width = max(strip.shape[1], key.shape[1])
    return np.concatenate([_padded(part, right=width - part.shape[1]) for part in (strip, key)])


def _column(caption: str, pictures: list[np.ndarray], heights: list[int]) -> np.ndarray:
    head = np.full((_HEAD, PICTURE_WIDTH, 3), PAPER, np.uint8)
    cv2.putText(head, caption, (_GAP, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (20, 20, 20), 1, cv2.LINE_AA)
    scaled = [_scaled(picture, height) for picture, height in zip(pictures, heights, strict=True)]
    return np.concatenate([_padded(part, bottom=_GAP, right=_GAP) for part in (head, *scaled)])


def _scaled(picture: np.ndarray, height: int) -> np.ndarray:
    """To the width of a column. Colours of classes are never mixed, so no pixel shows a class that was not said."""
    return cv2.resize(picture, (PICTURE_WIDTH, height), interpolation=cv2.INTER_NEAREST)


def _padded(canvas: np.ndarray, bottom: int = 0, right: int = 0) -> np.ndarray:
    return np.pad(canvas, ((0, bottom), (0, right), (0, 0)), constant_values=PAPER)

"""Qualitative strips like Fig. 6, 7 and 10 of the paper: image, truth, and what each of several runs says of it.

python -m bench.strips OUT.png RUN [RUN ...] [--tgt toy-cityscapes] [--split val] [--images 4]
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import tyro

from dida.config import from_dict, parse_size
from dida.data import domains
from dida.data.classes import CLASSES, colourise
from dida.data.labelled_images import LabelledImages
from dida.data.transforms import Normalise
from dida.evaluate import Look, evaluating, predict
from dida.models.segmentor import Segmentor
from dida.panel import legend
from dida.state import latest, load_checkpoint

WIDTH = 256  # pixels of one picture in the strip
PAPER = 255


@dataclass(frozen=True)
class Options:
    """Draw image, truth and the predictions of several runs side by side."""

    out: Annotated[Path, tyro.conf.Positional]
    """PNG to write."""
    runs: Annotated[list[Path], tyro.conf.Positional] = field(default_factory=list)
    """Run folders or checkpoints, one column each, in this order."""
    tgt: str = "cityscapes"
    """Domain of the images."""
    data_root: Path = Path("data")
    """Folder of all data sets."""
    split: str = "val"
    """Part of the domain."""
    images: int = 4
    """Rows: so many images, evenly spaced over the split, so that none is chosen by eye."""


def main(options: Options) -> None:
    """Raises FileNotFoundError or ValueError for runs or data that are not there."""
    domain = domains.labelled(options.tgt, options.data_root, options.split)
    columns: list[tuple[str, list[np.ndarray]]] = []
    for run in options.runs:
        checkpoint = load_checkpoint(latest(run))
        config = from_dict(checkpoint["config"])
        network = Segmentor(config.model.backbone, CLASSES, config.model.embed_dim, config.model.drop_path)
        network.load_state_dict(checkpoint["student"])
        images = LabelledImages(domain, parse_size(config.data.tgt_size, option="--tgt-size"))
        chosen = [images[int(i)] for i in np.linspace(0, len(images) - 1, options.images)]
        if not columns:
            columns.append(("image", [image.image.permute(1, 2, 0).numpy() for image in chosen]))
            columns.append(("truth", [colourise(image.label.numpy()) for image in chosen]))
        columns.append((config.method, [_prediction(network, image) for image in chosen]))
    cv2.imwrite(str(options.out), draw(columns)[:, :, ::-1])


def _prediction(network: torch.nn.Module, image) -> np.ndarray:
    with evaluating(network):
        size = (image.label.shape[0], image.label.shape[1])
        label = predict(network, Normalise()(image.image[None]), size, Look())
    return colourise(label[0].numpy().astype(np.uint8))


def draw(columns: list[tuple[str, list[np.ndarray]]]) -> np.ndarray:
    """Columns of (caption, pictures [H, W, 3] RGB) -> one RGB picture with the legend of classes below."""
    drawn = []
    for caption, pictures in columns:
        scaled = [
            cv2.resize(p, (WIDTH, round(WIDTH * p.shape[0] / p.shape[1])), interpolation=cv2.INTER_NEAREST)
            for p in pictures
        ]
        head = np.full((22, WIDTH, 3), PAPER, np.uint8)
        cv2.putText(head, caption, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (20, 20, 20), 1, cv2.LINE_AA)
        parts = [np.pad(part, ((0, 4), (0, 4), (0, 0)), constant_values=PAPER) for part in [head, *scaled]]
        drawn.append(np.concatenate(parts))
    strip = np.concatenate(drawn, axis=1)
    key = legend()[:, : strip.shape[1]]
    key = np.pad(key, ((0, 0), (0, strip.shape[1] - key.shape[1]), (0, 0)), constant_values=PAPER)
    return np.concatenate([strip, key])


if __name__ == "__main__":
    main(tyro.cli(Options))

"""One picture of one training step: what went in, what the teacher made of it, what the student was shown.

Drawn outside the step, from the values that it leaves behind.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

import dida_kernels
from dida.batch import MEAN, STD, Adaptation, Batch, Belief, Trace
from dida.config import Config
from dida.data.classes import CLASSES, NAMES, PALETTE, colourise
from dida.method.bank import InstanceBank

COLUMNS = 4
SIDE = 256  # pixels that a tile is at least high or wide; smaller ones are enlarged by a whole factor
CAPTION = 20  # height of the text above a tile
_GAP = 4
_INK, _PAPER = (32, 32, 32), 255
_SHOWN = 4  # classes whose similarity is drawn

Tile = tuple[str, np.ndarray]  # caption, [H, W, 3] uint8 RGB


def save_panel(path: Path, batch: Batch, trace: Trace, bank: InstanceBank, config: Config) -> None:
    """Write the panel of the batch's first images as a PNG, with the folders above it.

    Source-only methods leave no target half: the first row is all there is. Raises OSError if it cannot be written.
    """
    tiles = _inputs(batch, config.bank.boundary_classes)
    if trace.adaptation is not None:
        tiles += _adaptation(trace.adaptation)
        tiles += _similarity(trace.adaptation.belief, bank, config.bank.temperature)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), np.ascontiguousarray(draw(tiles)[:, :, ::-1])):  # OpenCV writes B, G, R
        raise OSError(f"{path}: could not be written")


def draw(tiles: list[Tile]) -> np.ndarray:
    """Tiles of one size in rows of `COLUMNS`, each below its caption, and the legend of classes below all: RGB."""
    height, width = tiles[0][1].shape[:2]
    factor = max(-(-SIDE // max(height, width)), 1)
    cells = [_captioned(caption, cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST))
             for caption, picture in tiles]  # fmt: skip
    cells += [np.full_like(cells[0], _PAPER)] * (-len(cells) % COLUMNS)
    rows = [np.concatenate(cells[i : i + COLUMNS], 1) for i in range(0, len(cells), COLUMNS)]
    grid, key = np.concatenate(rows), legend()
    width = max(grid.shape[1], key.shape[1])
    return np.concatenate([_padded(part, right=width - part.shape[1]) for part in (grid, key)])


def overlay(image: np.ndarray, train_ids: np.ndarray) -> np.ndarray:
    """[H, W, 3] RGB: the image and the colours of its classes, half and half; 255 leaves the image as it is."""
    blend = cv2.addWeighted(image, 0.5, colourise(train_ids), 0.5, 0)
    return np.where((train_ids < CLASSES)[:, :, None], blend, image)


def legend() -> np.ndarray:
    """The colour of every class beside its name, RGB."""
    columns, width, height = 7, 144, 20
    rows = -(-CLASSES // columns)
    canvas = np.full((rows * height, columns * width, 3), _PAPER, dtype=np.uint8)
    for i, (name, colour) in enumerate(zip(NAMES, PALETTE.tolist(), strict=True)):
        left, top = i % columns * width, i // columns * height
        cv2.rectangle(canvas, (left + 4, top + 4), (left + 24, top + 16), colour, cv2.FILLED)
        _write(canvas, name, left + 30, top + 14)
    return canvas


def picture(image: Tensor) -> np.ndarray:
    """A normalised image [3, H, W] -> [H, W, 3] uint8 RGB."""
    mean, std = (torch.tensor(v, device=image.device)[:, None, None] for v in (MEAN, STD))
    pixels = (image.float() * std + mean).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 0).cpu().numpy()


def heat(share: Tensor) -> np.ndarray:
    """Numbers in [0, 1], [H, W] -> [H, W, 3] uint8 RGB, dark to bright."""
    level = (share.float() * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return cv2.applyColorMap(level, cv2.COLORMAP_VIRIDIS)[:, :, ::-1]


def _inputs(batch: Batch, boundary_classes: int) -> list[Tile]:
    label = batch.source.label[:1]
    boundary = dida_kernels.boundary_mask(label, classes=CLASSES, threshold=boundary_classes)
    return [
        ("source", picture(batch.source.image[0])),
        ("its label", _colours(label[0])),
        ("its boundary pixels", heat(boundary[0])),
        ("target", picture(batch.target[0])),
    ]


def _adaptation(adaptation: Adaptation) -> list[Tile]:
    belief, pseudo, mixed = adaptation
    return [
        ("pseudo-label", _colours(pseudo.label[0])),
        (f"its weight (mean {float(pseudo.weight[0].mean()):.2f})", heat(pseudo.weight[0])),
        ("teacher's confidence", heat(belief.prior[0].amax(0))),
        ("pixels pasted by ClassMix", heat(mixed.pasted[0])),
        ("mixed, strong view", picture(mixed.image[0])),
        ("its label", _colours(mixed.label[0])),
        ("its weight", heat(mixed.weight[0])),
        ("pixels open to the instance loss", heat(mixed.valid[0])),
    ]


def _similarity(belief: Belief, bank: InstanceBank, temperature: float) -> list[Tile]:
    """What the bank says of the target: its class, and its mass on the classes that it finds most of."""
    embed = next((term.embed[:1] for term in belief.terms if bool(term.embed[0].any())), None)
    if embed is None:  # no instance level (yet)
        return []
    mass = dida_kernels.class_similarity(
        embed,
        bank.features,
        bank.labels,
        classes=CLASSES,
        temperature=temperature,
        size=tuple(belief.prior.shape[-2:]),
    )[0]
    chosen = mass.mean((1, 2)).topk(_SHOWN - 1).indices.tolist()
    tiles = [("most similar class in the bank", _colours(mass.argmax(0)))]
    return tiles + [(f"bank: {NAMES[c]} (at most {float(mass[c].max()):.2f})", heat(mass[c])) for c in chosen]


def _colours(train_ids: Tensor) -> np.ndarray:
    return colourise(train_ids.to(torch.uint8).cpu().numpy())


def _captioned(caption: str, tile: np.ndarray) -> np.ndarray:
    framed = _padded(tile, CAPTION, _GAP, _GAP, _GAP)
    _write(framed, caption, _GAP, CAPTION - 6)
    return framed


def _padded(canvas: np.ndarray, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> np.ndarray:
    return cv2.copyMakeBorder(canvas, top, bottom, left, right, cv2.BORDER_CONSTANT, value=[_PAPER] * 3)


def _write(canvas: np.ndarray, text: str, left: int, baseline: int) -> None:
    cv2.putText(canvas, text, (left, baseline), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)

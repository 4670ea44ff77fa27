"""One picture of one training step: what went in, what the teacher made of it, what the student was shown.

Drawn outside the step, from the values that it leaves behind.
"""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

import dida_kernels
from dida.batch import MEAN, STD, Batch, Belief, Mixed, PseudoLabel, Trace
from dida.data.classes import ClassSet
from dida.data.drawing import PAPER, legend, put_text
from dida.data.image_file import save_png
from dida.method.bank import InstanceBank

COLUMNS = 4
SIDE = 256  # pixels that a tile is at least high or wide; smaller ones are enlarged by a whole factor
CAPTION = 20  # height of the text above a tile
_GAP = 4
_SHOWN = 4  # classes whose similarity is drawn

Captioned = tuple[str, np.ndarray]  # caption, [H, W, 3] uint8 RGB


class Panel(NamedTuple):
    """What a panel needs to know of the run."""

    class_set: ClassSet
    boundary_classes: int  # distinct classes in the 3x3 window that make a boundary pixel
    temperature: float  # t of the softmax over the bank

    def save(self, path: Path, batch: Batch, trace: Trace, bank: InstanceBank) -> None:
        """Write the panel of the batch's first images as a PNG, with the folders above it.

        Methods that never look at the target leave one row, the inputs. Raises OSError if it cannot be written.
        """
        tiles = self._inputs(batch)
        if trace.target is not None:
            tiles += self._labels(trace.target.belief, trace.target.pseudo)
            tiles += [tile for mixed in trace.mixed for tile in self._mixed(mixed)]
            tiles += self._similarity(trace.target.belief, bank)
        save_png(path, draw_panel(tiles, self.class_set))

    def _inputs(self, batch: Batch) -> list[Captioned]:
        label = batch.source.label[:1]
        boundary = dida_kernels.boundary_mask(label, classes=len(self.class_set), threshold=self.boundary_classes)
        return [
            ("source", picture(batch.source.image[0])),
            ("its label", self._colours(label[0])),
            ("its boundary pixels", heat(boundary[0])),
            ("target", picture(batch.target[0])),
        ]

    def _labels(self, belief: Belief, pseudo: PseudoLabel) -> list[Captioned]:
        return [
            ("pseudo-label", self._colours(pseudo.label[0])),
            (f"its weight (mean {float(pseudo.weight[0].mean()):.2f})", heat(pseudo.weight[0])),
            ("teacher's confidence", heat(belief.z[0].amax(0))),
        ]

    def _mixed(self, mixed: Mixed) -> list[Captioned]:
        return [
            ("pixels pasted by ClassMix", heat(mixed.pasted[0])),
            ("mixed, strong view", picture(mixed.image[0])),
            ("its label", self._colours(mixed.label[0])),
            ("its weight", heat(mixed.weight[0])),
            ("pixels open to the instance loss", heat(mixed.valid[0])),
        ]

    def _similarity(self, belief: Belief, bank: InstanceBank) -> list[Captioned]:
        """What the bank says of the target: its class, and its mass on the classes that it finds most of."""
        embed = next((term.embed[:1] for term in belief.terms if bool(term.embed[0].any())), None)
        if embed is None:  # no instance level (yet)
            return []
        mass = dida_kernels.class_similarity(
            embed,
            bank.features,
            bank.labels,
            classes=len(self.class_set),
            temperature=self.temperature,
            size=tuple(belief.z.shape[-2:]),
        )[0]
        names = self.class_set.names
        chosen = mass.mean((1, 2)).topk(min(_SHOWN - 1, len(names))).indices.tolist()
        tiles = [("most similar class in the bank", self._colours(mass.argmax(0)))]
        return tiles + [(f"bank: {names[c]} (at most {float(mass[c].max()):.2f})", heat(mass[c])) for c in chosen]

    def _colours(self, train_ids: Tensor) -> np.ndarray:
        return self.class_set.colourise(train_ids.to(torch.uint8).cpu().numpy())


def draw_panel(tiles: list[Captioned], class_set: ClassSet) -> np.ndarray:
    """Tiles of one size in rows of `COLUMNS`, each below its caption, and the legend of classes below all: RGB."""
    height, width = tiles[0][1].shape[:2]
    factor = max(-(-SIDE // max(height, width)), 1)
    cells = [_captioned(caption, cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST))
             for caption, picture in tiles]  # fmt: skip
    cells += [np.full_like(cells[0], PAPER)] * (-len(cells) % COLUMNS)
    rows = [np.concatenate(cells[i : i + COLUMNS], 1) for i in range(0, len(cells), COLUMNS)]
    grid, key = np.concatenate(rows), legend(class_set)
    width = max(grid.shape[1], key.shape[1])
    return np.concatenate([_padded(part, right=width - part.shape[1]) for part in (grid, key)])


def picture(image: Tensor) -> np.ndarray:
    """A normalised image [3, H, W] -> [H, W, 3] uint8 RGB."""
    mean, std = (torch.tensor(v, device=image.device)[:, None, None] for v in (MEAN, STD))
    pixels = (image.float() * std + mean).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 0).cpu().numpy()


def heat(share: Tensor) -> np.ndarray:
    """Numbers in [0, 1], [H, W] -> [H, W, 3] uint8 RGB, dark to bright."""
    level = (share.float() * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return cv2.applyColorMap(level, cv2.COLORMAP_VIRIDIS)[:, :, ::-1]


def _captioned(caption: str, tile: np.ndarray) -> np.ndarray:
    framed = _padded(tile, CAPTION, _GAP, _GAP, _GAP)
    put_text(framed, caption, _GAP, CAPTION - 6)
    return framed


def _padded(canvas: np.ndarray, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> np.ndarray:
    return cv2.copyMakeBorder(canvas, top, bottom, left, right, cv2.BORDER_CONSTANT, value=[PAPER] * 3)

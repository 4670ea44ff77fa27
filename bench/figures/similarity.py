"""Fig. 5: what the bank says of some pixels of an image.

One row per pixel: where it is; how similar every pixel of the image is to it (cosine of the embeddings); how much of
the bank's similarity every pixel has on that pixel's class (q^ga, see Eq. 9); and the pixel's own similarity to every
slot of the bank (q, see Eq. 4 and 5), slots sorted by class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from bench.figures.runs import domain_of, images_of, load_bank, load_runs, save_facts
from dida.batch import IGNORE
from dida.data.classes import ClassSet
from dida.data.labelled_images import LabelledImage
from dida.data.transforms import Normalise
from dida.method.bank import InstanceBank
from dida.use.evaluate import evaluating
from dida_kernels import bank_similarity, class_similarity, gather

PIXELS = 4  # rows, unless pixels are named
_NAMED = 3  # classes whose mass is written above the slots


@dataclass(frozen=True)
class SimilarityOptions:
    """What the bank says of some pixels of an image (Fig. 5)."""

    out: Annotated[Path, tyro.conf.Positional]
    """PNG to write."""
    run: Annotated[Path, tyro.conf.Positional]
    """Run folder or checkpoint of a method with a bank."""
    image: int = 0
    """Which image of the split, from 0."""
    pixels: tuple[str, ...] = ()
    """Pixels as X,Y at the image's own size, from 0 at the upper left; by default the innermost pixel of each of four
    of its classes, evenly spaced from the largest to the smallest."""
    tgt: str | None = None
    """Domain of the image; by default the target of the run."""
    data_root: Path | None = None
    """Folder that holds the data sets; by default that of the run."""
    split: Literal["val", "test", "train"] = "val"
    """Part of the domain; its labels are needed."""
    network: Literal["student", "teacher"] = "teacher"
    """Whose embeddings are compared; in training the teacher's make the pseudo-labels."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


class Pixel(NamedTuple):
    """A place in an image, counted from its upper left."""

    x: int
    y: int


class Similarity(NamedTuple):
    """What `look` found, on the host; P pixels, an image of [H, W] as the network sees it, a feature grid of [h, w]."""

    slots_PK: Tensor  # q of every pixel over the slots, rows sum to one
    classes_PC: Tensor  # the same per class (q^ga)
    mass_CHW: Tensor  # q^ga of every pixel of the image
    cosine_Phw: Tensor  # of every node's embedding with the pixel's
    predicted_P: Tensor  # class that the network itself gives


def main(options: SimilarityOptions) -> None:
    """Draw it. Raises FileNotFoundError or ValueError for a run, image or pixel that cannot be used."""
    (trained,) = load_runs([options.run], options.device)
    bank, class_set = load_bank(trained), trained.class_set
    domain = domain_of(trained, options.tgt, options.data_root, options.split)
    if not 0 <= options.image < len(domain.images):
        last = len(domain.images) - 1
        raise ValueError(f"--image {options.image}: the images of {domain.name} {options.split} are 0 to {last}")
    image = images_of(trained, domain)[options.image]
    label = image.label.numpy()
    pixels = [parse_pixel(text, label.shape) for text in options.pixels] or innermost_pixels(label, PIXELS)
    temperature = trained.config.instance.temperature
    found = look(trained.networks[options.network], bank, image, pixels, temperature)
    title = (
        f"{domain.name} {options.split}, {domain.images[options.image].name}; {options.network} of "
        f"{trained.config.method}, step {trained.step}; K = {len(bank.labels)}, t = {temperature}"
    )
    facts = {
        "domain": domain.name,
        "split": options.split,
        "image": domain.images[options.image].name,
        "network": options.network,
        "slots": len(bank.labels),
        "temperature": temperature,
        "pixels": [
            {
                "x": pixel.x,
                "y": pixel.y,
                "truth": name_of(label[pixel.y, pixel.x], class_set),
                "predicted": name_of(predicted, class_set),
                "q_ga": {name: round(mass, 4) for name, mass in zip(class_set.names, masses, strict=True)},
            }
            for pixel, predicted, masses in zip(
                pixels, found.predicted_P.tolist(), found.classes_PC.tolist(), strict=True
            )
        ],
    }
    save_facts(options.out, [trained], facts)  # before the picture, which a commit may hold: it would count as a change
    draw_similarity(options.out, title, image, pixels, bank.labels.cpu().numpy(), found, class_set)


def parse_pixel(text: str, shape: Sequence[int]) -> Pixel:
    """ "12,5" -> column 12 of row 5. Raises ValueError if it is no pixel of an image of `shape` = (H, W)."""
    x, comma, y = text.partition(",")
    if not (comma and x.isdigit() and y.isdigit()):
        raise ValueError(f"--pixels {text}: expected X,Y such as 12,5")
    height, width = shape
    if not (int(x) < width and int(y) < height):
        raise ValueError(f"--pixels {text}: outside of the image, which is {width} x {height} pixels")
    return Pixel(int(x), int(y))


def innermost_pixels(label: np.ndarray, count: int) -> list[Pixel]:
    """The pixel farthest from the edge of its class, for up to `count` of the classes of a label [H, W] uint8.

    They are evenly spaced over the classes sorted by area. Raises ValueError if no pixel belongs to a class.
    """
    area = np.bincount(label.ravel(), minlength=IGNORE + 1)[:IGNORE]
    present = np.argsort(-area, kind="stable")[: np.count_nonzero(area)]
    if not len(present):
        raise ValueError("no pixel of the image belongs to a class; choose another --image or name --pixels")
    chosen = present[np.linspace(0, len(present) - 1, min(count, len(present))).round().astype(int)]
    return [_innermost(label == c) for c in chosen]


def _innermost(mask: np.ndarray) -> Pixel:
    padded = np.pad(mask.astype(np.uint8), 1)  # beyond the image is another class
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return Pixel(int(x), int(y))


def look(
    network: nn.Module, bank: InstanceBank, image: LabelledImage, pixels: Sequence[Pixel], temperature: float
) -> Similarity:
    """Compare pixels, given at the label's size, with the bank and with the rest of the image."""
    device = bank.features.device
    height, width = image.label.shape
    # Centres of the pixels in [-1, 1]: the same at every size of the image, so also on the feature grid.
    at_P2 = torch.tensor([[(2 * x + 1) / width - 1, (2 * y + 1) / height - 1] for x, y in pixels], device=device)
    with evaluating(network):
        seen = network(Normalise().to(device)(image.image.to(device))[None])
        embed_PD = _sampled(seen.embed, at_P2)
        slots_PK = bank_similarity(embed_PD, bank.features, temperature=temperature)
        mass_1CHW = class_similarity(
            seen.embed,
            bank.features,
            bank.labels,
            classes=len(bank.held),
            temperature=temperature,
            size=tuple(image.image.shape[1:]),
        )
        cosine_Phw = torch.einsum("pd,dhw->phw", F.normalize(embed_PD, dim=1), F.normalize(seen.embed[0], dim=0))
        found = Similarity(
            slots_PK,
            gather(slots_PK, bank.labels, classes=len(bank.held)),
            mass_1CHW[0],
            cosine_Phw,
            _sampled(seen.logits, at_P2).argmax(1),
        )
    return Similarity(*(tensor.cpu() for tensor in found))


def _sampled(map_1Xhw: Tensor, at_P2: Tensor) -> Tensor:
    """[P, X]: a map enlarged bilinearly, at some places only."""
    values = F.grid_sample(map_1Xhw, at_P2[None, None], padding_mode="border", align_corners=False)
    return values[0, :, 0].T


def name_of(train_id: int, class_set: ClassSet) -> str:
    return "no class" if train_id == IGNORE else class_set.names[train_id]


def draw_similarity(
    path: Path,
    title: str,
    image: LabelledImage,
    pixels: Sequence[Pixel],
    label_K: np.ndarray,
    found: Similarity,
    class_set: ClassSet,
) -> None:
    """One row per pixel, as a PNG. Needs matplotlib."""
    from matplotlib.figure import Figure  # here, so that the other figures need no dev packages

    height, width = image.label.shape
    names = class_set.names
    figure = Figure(figsize=(14, 0.8 + len(pixels) * (0.4 + 3.2 * height / width)), layout="constrained")
    *rows, below = figure.subplots(
        len(pixels) + 1, 4, width_ratios=(1, 1, 1, 1.25), height_ratios=[1] * len(pixels) + [0.05]
    )
    whole = (-0.5, width - 0.5, height - 0.5, -0.5)  # every map in pixels of the image's own size
    truth = [int(image.label[y, x]) for x, y in pixels]
    # Of a pixel without a class, the class that the bank finds most of.
    shown = [c if c != IGNORE else int(found.classes_PC[i].argmax()) for i, c in enumerate(truth)]
    most = max(float(found.mass_CHW[c].max()) for c in shown)
    low = float(found.cosine_Phw.min())
    for i, ((x, y), axes) in enumerate(zip(pixels, rows, strict=True)):
        axes[0].imshow(image.image.permute(1, 2, 0).numpy(), extent=whole)
        said = names[found.predicted_P[i]]
        axes[0].set_title(f"{x},{y}: {name_of(truth[i], class_set)}; network: {said}", fontsize=9)
        cosine = axes[1].imshow(found.cosine_Phw[i].numpy(), extent=whole, vmin=low, vmax=1, interpolation="bilinear")
        axes[1].set_title("cosine similarity to the pixel", fontsize=9)
        mass = axes[2].imshow(found.mass_CHW[shown[i]].numpy(), extent=whole, vmin=0, vmax=most)
        axes[2].set_title(f"bank's mass on {names[shown[i]]} (q$^{{ga}}$)", fontsize=9)
        for axis in axes[:3]:
            axis.plot(x, y, "o", markersize=9, markerfacecolor="none", markeredgecolor="white", markeredgewidth=3)
            axis.plot(x, y, "o", markersize=9, markerfacecolor="none", markeredgecolor="black", markeredgewidth=1.2)
            axis.set_xticks([])
            axis.set_yticks([])
        _slots(axes[3], label_K, found.slots_PK[i].numpy(), found.classes_PC[i], shown[i], class_set)
    for scale, axis in ((cosine, below[1]), (mass, below[2])):
        figure.colorbar(scale, cax=axis, orientation="horizontal").ax.tick_params(labelsize=7)
    for axis in (below[0], below[3]):
        axis.axis("off")
    figure.suptitle(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _slots(axes, label_K: np.ndarray, q_K: np.ndarray, q_ga_C: Tensor, marked: int, class_set: ClassSet) -> None:
    """The similarity to every slot, a bar each in the colour of its class; the marked class stands on grey."""
    axes.bar(np.arange(len(label_K)), q_K, width=1.0, color=class_set.palette[label_K] / 255)
    top = 1.6 * float(q_K.max())  # leaves room for names above the bars
    for c in np.unique(label_K):
        slots = np.flatnonzero(label_K == c)  # side by side
        if c == marked:
            axes.axvspan(slots[0] - 0.5, slots[-1] + 0.5, color="0.88", zorder=0)
        axes.text(slots.mean(), 0.98 * top, class_set.names[c], rotation=90, ha="center", va="top", fontsize=6.5)
    best = q_ga_C.topk(_NAMED)
    most = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    named = (f"{class_set.names[c]} {mass:.2f}" for mass, c in most)
    axes.set_title(f"q by slot: {', '.join(named)}", fontsize=9)
    axes.set_xlim(-0.5, len(label_K) - 0.5)
    axes.set_ylim(0, top)
    axes.set_xticks([])
    axes.tick_params(axis="y", labelsize=7)

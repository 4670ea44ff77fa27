"""Fig. 9: how frequent each class is in the source, in the target, in what runs say of the target, and in the bank.

Classes are sorted by their share of the source's pixels, so the long tail is to the right.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from bench.figures.runs import domain_of, images_of, load_runs, names_of, predictions, save_facts
from dida.batch import IGNORE
from dida.data.classes import ClassSet
from dida.data.sources import labelled_sources
from dida.method.sampling import balanced_slots, slot_labels, slots_by_frequency, slots_by_inverse_frequency

# By what they are called in the paper; NU has the slots of RS and differs in never being updated.
SAMPLINGS = {"CBS": balanced_slots, "RS, NU": slots_by_frequency, "ILS": slots_by_inverse_frequency}


@dataclass(frozen=True)
class DistributionOptions:
    """Share of every class in source, target, predictions and bank, sorted by the source (Fig. 9)."""

    out: Annotated[Path, tyro.conf.Positional]
    """PNG to write."""
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders or checkpoints of one source, one series each."""
    names: tuple[str, ...] = ()
    """Names of the runs; by default their methods."""
    tgt: str | None = None
    """Domain that is labelled; by default the target of the first run."""
    data_root: Path | None = None
    """Folder that holds the data sets; by default that of the first run."""
    split: Literal["val", "test", "train"] = "val"
    """Part of the domain; its labels are needed."""
    network: Literal["student", "teacher"] = "teacher"
    """Whose predictions are counted; in training the teacher's are the pseudo-labels."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def main(options: DistributionOptions) -> None:
    """Draw it. Raises FileNotFoundError or ValueError for runs, data or options that do not fit."""
    runs = load_runs(options.runs, options.device)
    names = names_of(runs, options.names)
    if len(sources := {trained.config.data.src for trained in runs}) > 1:
        raise ValueError(f"the runs learnt from different sources: {', '.join(sorted(sources))}")
    config = runs[0].config
    source = labelled_sources(config.data.src, options.data_root or config.data.data_root, "train")
    target = domain_of(runs[0], options.tgt, options.data_root, options.split)
    class_set = runs[0].class_set
    source_C = source.statistics().pixels.sum(0)
    labels = [image.label.numpy() for image in images_of(runs[0], target)]
    truth_C = _count(labels, len(class_set))
    found = {f"source: {source.name}": source_C, f"target, truth: {target.name} {options.split}": truth_C}
    for name, trained in zip(names, runs, strict=True):
        seen = predictions(trained, options.network, tqdm(images_of(trained, target), desc=name, disable=None))
        pairs = zip(seen, labels, strict=True)
        # Where the truth has no class nothing is counted, or its share could not be compared.
        counted = (train_ids[label != IGNORE] for train_ids, label in pairs)
        found[f"target, {options.network} of {name}"] = _count(counted, len(class_set))
    shares = {name: pixels_C / pixels_C.sum() for name, pixels_C in found.items()}
    slots = slots_of(config.instance.bank_size, source_C)
    order = np.argsort(-source_C, kind="stable")
    facts = {
        "unit": "percent of pixels",
        "pixels": {name: _by_class((100 * share_C).round(4), order, class_set) for name, share_C in shares.items()},
        "bank_size": config.instance.bank_size,
        "slots": {name: _by_class(slots_C, order, class_set) for name, slots_C in slots.items()},
    }
    save_facts(options.out, runs, facts)  # before the picture, which a commit may hold: it would count as a change
    draw_distribution(options.out, shares, slots, class_set.names, order)


def slots_of(size: int, pixels_C: np.ndarray) -> dict[str, np.ndarray]:
    """Slots per class [C] of a bank of `size` slots, by sampling. Raises ValueError if a class would get none."""
    return {
        name: np.bincount(slot_labels(rule, size, torch.from_numpy(pixels_C)).numpy(), minlength=len(pixels_C))
        for name, rule in SAMPLINGS.items()
    }


def _count(train_ids: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """Pixels per class [C] of some arrays of train ids, 255 left out."""
    return sum(np.bincount(ids.ravel(), minlength=256)[:classes] for ids in train_ids)


def _by_class(values_C: np.ndarray, order: np.ndarray, class_set: ClassSet) -> dict[str, float]:
    return {class_set.names[c]: values_C[c].item() for c in order}


def draw_distribution(
    path: Path,
    shares: Mapping[str, np.ndarray],
    slots: Mapping[str, np.ndarray],
    names: Sequence[str],
    order: np.ndarray,
) -> None:
    """Pixels above, slots below, classes from the most to the least frequent, as a PNG. Needs matplotlib.

    shares: by name, of all pixels of a class [C]; the first two are drawn as bars, the others as marks. slots: by
    sampling, [C]. names: of all classes. order: their train ids, as they are drawn.
    """
    from matplotlib.figure import Figure  # here, so that the other figures need no dev packages

    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.4, 1))
    place = np.arange(len(order))
    bars, marks = list(shares.items())[:2], list(shares.items())[2:]
    # A mark may be anywhere down to 0, which a logarithm cannot show; what lies below the floor stands on it.
    floor = min(share_C[share_C > 0].min() for _, share_C in bars) / 10
    for (name, share_C), left, grey in zip(bars, (-0.4, 0.0), ("0.78", "0.5"), strict=True):
        above.bar(place + left, 100 * share_C[order], width=0.4, align="edge", color=grey, label=name)
    step = 0.8 / (len(marks) + 1)
    for i, ((name, share_C), marker) in enumerate(zip(marks, itertools.cycle("osD^v<>P"), strict=False)):
        height = 100 * np.maximum(share_C[order], floor)
        at = place - 0.4 + (i + 1) * step
        above.plot(at, height, marker, markersize=5, markeredgecolor="white", label=name, clip_on=False, zorder=3)
    above.set_yscale("log")
    above.set_ylim(100 * floor, 100)
    above.yaxis.set_major_formatter("{x:g}")
    above.set_ylabel(f"pixels, %  (marks on the axis: less than {100 * floor:.2g})")
    handles = dict(zip(*reversed(above.get_legend_handles_labels()), strict=True))
    above.legend([handles[name] for name in shares], list(shares), fontsize=8)
    width = 0.8 / len(slots)
    for i, (name, slots_C) in enumerate(slots.items()):
        below.bar(place - 0.4 + i * width, slots_C[order], width=width, align="edge", label=name)
    below.set_ylabel(f"slots of {sum(next(iter(slots.values())))}")
    below.legend(fontsize=8, title="--sampling", title_fontsize=8, loc="upper center", ncols=len(slots))
    below.set_xticks(place, [names[c] for c in order], rotation=45, ha="right", fontsize=8)
    below.set_xlim(-0.6, len(order) - 0.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})

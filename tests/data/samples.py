"""Pairs over small data sets, for tests of samples and of the batches made of them."""

from pathlib import Path

import torch

from dida.data import domains
from dida.data.pairs import Pairs, View
from dida.data.rare_class import rare_classes
from dida.data.statistics import class_statistics

SOURCE_VIEW = View(scale=(120, 68), crop=(48, 40), cat_max_ratio=0.75)
TARGET_VIEW = View(scale=(96, 48), crop=(48, 40))


def make_pairs(root: Path, *, seed: int = 0, rare: bool = True, source: str = "gta5") -> Pairs:
    """Of the domains below `root`, to the target cityscapes."""
    labelled = domains.labelled(source, root, "train")
    sampler = None
    if rare:
        sampler = rare_classes(class_statistics(labelled).pixels, labelled.class_set.names, min_pixels=30)
    return Pairs(
        labelled,
        domains.unlabelled("cityscapes", root, "train"),
        seed=seed,
        source_view=SOURCE_VIEW,
        target_view=TARGET_VIEW,
        rare_classes=sampler,
    )


def same(a: tuple, b: tuple) -> bool:
    """Whether two samples, or two batches, hold equal values."""
    return all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(a, b, strict=True))

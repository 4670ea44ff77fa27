"""Which pictures a report shows: by how they score, never by eye."""

import math
from dataclasses import dataclass

import numpy as np

from dida.report.gather import Story


@dataclass(frozen=True)
class Gallery:
    """Pictures of one kind."""

    title: str
    about: str
    indices: tuple[int, ...]  # of the domain


def choose(story: Story, count: int) -> list[Gallery]:
    """Which pictures are shown: by how they score, never by eye; evenly spaced ones where nothing is labelled."""
    first = story.of(story.subjects[0]).picture_iou
    if np.isnan(first).all():
        spaced = np.unique(np.linspace(0, len(first) - 1, min(count, len(first))).round().astype(int))
        return [Gallery("Pictures", "evenly spaced over the domain", tuple(map(int, spaced)))]
    choices = []
    if len(story.subjects) > 1:
        gain, other = first - story.of(story.subjects[1]).picture_iou, story.subjects[1].name
        above, below = f"where mIoU rises most above that of {other}", "where it falls most below"
        choices.append(Gallery("Largest gains", above, _highest(gain, count)))
        choices.append(Gallery("Largest losses", below, _highest(-gain, count)))
    choices.append(Gallery("Worst pictures", "the lowest mIoU", _highest(-first, count)))
    choices.append(Gallery("Best pictures", "the highest mIoU", _highest(first, count)))
    return choices


def _highest(value: np.ndarray, count: int) -> tuple[int, ...]:
    """Places of the highest values, highest first; what is unknown never."""
    order = np.argsort(np.where(np.isnan(value), math.inf, -value), kind="stable")
    return tuple(int(i) for i in order[:count] if not math.isnan(value[i]))

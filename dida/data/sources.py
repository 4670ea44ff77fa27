"""Several labelled sources as one: `--src gta5+synthia+urbansyn`, or with weights, `--src gta5+urbansyn*3`.

The class set is that of the first; labels of the others are matched with it by name, and what it does not have is
ignored. Not the union: a class that one source labels is there in the pictures of the others too, where its pixels
are something else or void. The first one's classes are what the run was asked for, and every source teaches those
that it has.

A source of weight w counts as w copies of itself, in what is drawn and in how frequent classes are; without weights
every file is as likely as any other. Statistics are counted, and kept, source by source.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from dida.data import domains
from dida.data.classes import ClassSet
from dida.data.domains import LabelledDomain, Survey
from dida.data.image_file import Encoding
from dida.data.layouts import ALIASES, LAYOUTS
from dida.data.statistics import Statistics, class_statistics, require_pixels

_NAME = "|".join(sorted(map(re.escape, (*LAYOUTS, *ALIASES)), key=len, reverse=True))
_WEIGHT = r"\*[0-9]+(?:\.[0-9]+)?"
_BETWEEN = re.compile(rf"\+(?=folder:|(?:{_NAME})(?:{_WEIGHT})?(?:\+|$))")  # a path may hold a + of its own


@dataclass(frozen=True, eq=False)
class Sources:
    """Labelled domains read as one, with the class set of the first; file i is that of the concatenation."""

    parts: tuple[LabelledDomain, ...]  # all of one class set
    weights: tuple[float, ...]  # copies that each counts as

    @property
    def name(self) -> str:
        return "+".join(part.name for part in self.parts)

    @property
    def class_set(self) -> ClassSet:
        return self.parts[0].class_set

    @cached_property
    def images(self) -> tuple[Path, ...]:
        return tuple(path for part in self.parts for path in part.images)

    @cached_property
    def labels(self) -> tuple[Path, ...]:
        return tuple(path for part in self.parts for path in part.labels)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(part.images) for part in self.parts))

    def encoding(self, index: int) -> Encoding:
        """How labels[index] spells classes."""
        part = bisect_right(self._ends, index)
        return self.parts[part].encoding(index - (self._ends[part] - len(self.parts[part].images)))

    @cached_property
    def weight_F(self) -> np.ndarray | None:
        """[files] float64: how much likelier than others each file is; None: all are alike."""
        if len(set(self.weights)) == 1:
            return None
        return np.repeat(self.weights, [len(part.images) for part in self.parts])

    def statistics(self) -> Statistics:
        """Pixels of all files. Raises as `class_statistics`, and ValueError for a part without a pixel of a class."""
        found = []
        for part in self.parts:
            found.append(class_statistics(part))
            require_pixels(part, found[-1])
        unknown = {raw: tally for statistics in found for raw, tally in statistics.unknown.items()}
        return Statistics(np.concatenate([s.pixels for s in found]), np.concatenate([s.total for s in found]), unknown)


def labelled_sources(text: str, root: Path, split: str) -> Sources:
    """What --src names. Raises ValueError or FileNotFoundError as `domains.labelled`."""
    names, weights = _parsed(text)
    first, *others = (domains.labelled(name, root, split) for name in names)
    require_two_classes(first.class_set, text)
    return Sources((first, *(_as_first(other, first.class_set) for other in others)), weights)


def source_surveys(text: str, root: Path, split: str) -> list[Survey]:
    """A survey of each domain that --src names, for checks. Raises as `labelled_sources`."""
    surveys = [domains.survey(name, root, split) for name in _parsed(text)[0]]
    require_two_classes(surveys[0].domain.class_set, text)
    return surveys


def require_two_classes(class_set: ClassSet, text: str) -> None:
    """Raise ValueError for a source, as --src names it, that has one class."""
    if len(class_set) < 2:
        raise ValueError(f"--src {text} declares one class, {class_set.names[0]}: nothing to tell apart")


def published_mean_of_all(text: str) -> int | None:
    """Number of classes that published means of networks trained on these sources have; None: all."""
    found = {domains.published_mean(name) for name in _parsed(text)[0]}
    return found.pop() if len(found) == 1 else None


def _as_first(domain: LabelledDomain, class_set: ClassSet) -> LabelledDomain:
    seen = domain.seen_as(class_set)
    return replace(seen, name=domain.name)


def sources_in(text: str) -> list[str]:
    """What --src joins: names, each with its weight if it has one."""
    return _BETWEEN.split(text)


def _parsed(text: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    names, weights = [], []
    for part in sources_in(text):
        found = re.fullmatch(rf"(.+?)({_WEIGHT})?", part, re.DOTALL)
        if found is None:
            raise ValueError(f"--src {text}: expected NAME, or NAME+NAME*WEIGHT")
        names.append(found[1])
        weights.append(float(found[2][1:]) if found[2] else 1.0)
    if not all(weight > 0 for weight in weights):
        raise ValueError(f"--src {text}: a weight must be above 0")
    return tuple(names), tuple(weights)

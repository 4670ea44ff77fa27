"""All that a report tells, from the folders of runs and from a look at a domain; nothing is drawn here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from dida.config import OF_ONE_COMMAND, flat
from dida.data import domains
from dida.data.classes import ClassSet
from dida.data.domains import LabelledDomain, UnlabelledDomain
from dida.data.labelled_images import LabelledImage, LabelledImages
from dida.machine.files import read_json, read_metrics
from dida.options import parse_size
from dida.report.measure import Measured, Measurement, WithoutLabels, measure_run
from dida.state import FOLDER
from dida.use.evaluate import Scores, score
from dida.use.trained import Trained, load_trained

_UNTOLD = ("out", "data_root", "cache", *OF_ONE_COMMAND)  # say where, or what one command did


@dataclass(frozen=True)
class Subject:
    """One run of a report."""

    name: str  # its own among the runs of the report
    trained: Trained
    measurement: Measurement
    metrics: tuple[dict[str, float], ...]  # lines of metrics.jsonl; none where a checkpoint lies alone
    environments: tuple[dict[str, Any], ...]  # of its start and of every time it was resumed

    @property
    def options(self) -> dict[str, Any]:
        """The options of the run by name, but for places."""
        return {name: value for name, value in flat(self.trained.config).items() if name not in _UNTOLD}


@dataclass(frozen=True)
class Story:
    """What a report is of."""

    subjects: tuple[Subject, ...]  # the first is reported, the others are set beside it
    network: str  # whose scores are broken down
    domain: LabelledDomain | UnlabelledDomain

    @property
    def names(self) -> list[str]:
        """Of the runs, in their order."""
        return [subject.name for subject in self.subjects]

    @property
    def class_set(self) -> ClassSet:
        return self.subjects[0].trained.class_set

    @property
    def declared(self) -> tuple[int, ...]:
        """Train ids that the labels can spell; all of a domain without labels."""
        return getattr(self.domain, "declared", tuple(range(len(self.class_set))))

    @property
    def has_labels(self) -> bool:
        return bool(self.of(self.subjects[0]).pixels_CC.any())

    def of(self, subject: Subject) -> Measured:
        """What the network in question was measured to say."""
        return subject.measurement.networks[self.network]

    def scores(self, measured: Measured, *, band: bool = False) -> Scores:
        """Overlaps, of all pixels or of those near boundaries."""
        subsets = self.class_set.subsets_among(self.declared)
        return score(torch.from_numpy(measured.band_CC if band else measured.pixels_CC), subsets)

    def mean_iou(self, subject: Subject) -> float:
        return self.scores(self.of(subject)).mean_iou[len(self.declared)]


def gather_story(
    paths: Sequence[Path],
    *,
    tgt: str | None,
    data_root: Path | None,
    split: Literal["val", "test", "train"],
    labels: bool,
    network: str,
    device: torch.device,
    workers: int | None,
) -> Story:
    """Load the runs and look at the domain with each.

    Raises FileNotFoundError or ValueError for what is no run, for runs of different classes, or for a domain that is
    not there; ImageFileError for a file that cannot be used.
    """
    runs = [load_trained(path, device) for path in paths]
    first = runs[0]
    data = first.config.data
    name, root = tgt or data.tgt, data_root or data.data_root
    domain: LabelledDomain | UnlabelledDomain
    if labels:
        domain = _labelled(name, root, split).seen_as(first.class_set)
    else:
        domain = domains.unlabelled(name, root, split)
    for trained in runs:
        _require_comparable(trained, first, network)
    names = _names(runs)
    processes = data.workers if workers is None else workers
    subjects = tuple(
        Subject(
            name=name,
            trained=trained,
            measurement=measure_run(
                trained,
                _images(domain, trained),
                inference=trained.inference,
                workers=processes,
                title=name,
            ),
            metrics=tuple(read_metrics(_folder(trained) / "metrics.jsonl")),
            environments=tuple(read_environment(path) for path in sorted(_folder(trained).glob("environment*.json"))),
        )
        for name, trained in zip(names, runs, strict=True)
    )
    return Story(subjects, network, domain)


def _labelled(name: str, root: Path, split: Literal["val", "test", "train"]) -> LabelledDomain:
    try:
        return domains.labelled(name, root, split)
    except (FileNotFoundError, ValueError) as error:
        error.add_note("--no-labels reports what needs none")
        raise


def _require_comparable(trained: Trained, first: Trained, network: str) -> None:
    trained.require(network)
    if trained.class_set.names != first.class_set.names:
        raise ValueError(f"{trained.path}: has other classes than {first.path}, so the two cannot be set side by side")


def size_of(trained: Trained) -> tuple[int, int]:
    """(width, height) that a run's target pictures are scaled into."""
    return parse_size(trained.config.data.tgt_size, option="--tgt-size")


def _images(domain: LabelledDomain | UnlabelledDomain, trained: Trained) -> Dataset[LabelledImage]:
    kind = LabelledImages if isinstance(domain, LabelledDomain) else WithoutLabels
    return kind(domain, size_of(trained), enlarge=trained.config.data.enlarge)  # type: ignore[arg-type]


def _folder(trained: Trained) -> Path:
    """Of the run; the place of the checkpoint where it lies alone, which holds none of a run's other files."""
    parent = trained.path.absolute().parent
    return parent.parent if parent.name == FOLDER else parent


def _names(runs: Sequence[Trained]) -> list[str]:
    """By method, of a published network by family, where these differ; else by folder, and by number if even that is
    equal."""
    for names in ([t.family or t.config.method for t in runs], [_folder(t).name for t in runs]):
        if len(set(names)) == len(names):
            return list(names)
    return [f"{_folder(trained).name} ({i})" for i, trained in enumerate(runs, 1)]


def read_environment(path: Path) -> dict[str, Any]:
    """What a run wrote of its machine. Raises OSError, and ValueError that names the file where it holds no such."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object, found {type(content).__name__}")
    return content

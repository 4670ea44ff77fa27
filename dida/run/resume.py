"""Going on with a run: a fresh state is brought to where the run is, if it still is the same run."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from dida.config import Config, differing, flat, from_dict
from dida.data.classes import ClassSet
from dida.data.pairs import Pairs
from dida.optim import rates_of_now
from dida.state import WHOLE, TrainState, latest, load_checkpoint

_log = logging.getLogger(__name__)


class Begun(NamedTuple):
    """A checkpoint of a run of the same options."""

    path: Path
    content: dict[str, Any]
    classes: ClassSet


def begun_run(config: Config) -> Begun:
    """The newest checkpoint of `config.resume`, or the one that it names.

    Raises OSError or ValueError where there is none, or where it was made with other options.
    """
    assert config.resume is not None  # or there is nothing to go on with
    path = latest(config.resume)
    checkpoint = load_checkpoint(path, needs=WHOLE)
    try:
        before, classes = from_dict(checkpoint["config"]), ClassSet.from_dict(checkpoint["classes"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not 0 <= checkpoint["step"] <= config.optim.steps:
        raise ValueError(f"{path}: holds step {checkpoint['step']} of a run of {config.optim.steps}")
    _require_same_options(before, config, path)
    return Begun(path, checkpoint, classes)


def go_on(state: TrainState, begun: Begun, config: Config, pairs: Pairs) -> None:
    """Continue from it, in place. Raises ValueError where classes or files are others than those that its steps saw."""
    path, checkpoint, classes = begun
    _require_same_classes(classes, pairs.source.class_set, config.data.src, path)
    _require_same_files(checkpoint.get("files"), pairs.listing(), path, may_differ=config.new_data)
    state.load(checkpoint, source=str(path))
    rates_of_now(state.optimizer, state.schedule)


def _require_same_options(before: Config, config: Config, path: Path) -> None:
    if names := differing(before, config):
        values = ", ".join(f"{name} ({flat(config)[name]} and {flat(before)[name]})" for name in names)
        raise ValueError(
            f"config.json and {path.name} differ in {values}; put config.json right, or take the options of the "
            f"checkpoint with --resume {path}"
        )


def _require_same_classes(before: ClassSet, class_set: ClassSet, src: str, path: Path) -> None:
    if before.names != class_set.names:
        raise ValueError(
            f"{path}: the classes of {src} are now {', '.join(class_set.names)}; the run began with "
            f"{', '.join(before.names)}"
        )
    if before.label_ids != class_set.label_ids:
        now_spelt, then_spelt = (", ".join(map(str, ids)) for ids in (class_set.label_ids, before.label_ids))
        raise ValueError(f"{path}: the raw ids of {src}'s classes are now {now_spelt}; the run began with {then_spelt}")


def _require_same_files(before: Any, listing: dict[str, Any], path: Path, *, may_differ: bool) -> None:
    """A file that is gone, or one more, changes all samples, because they draw files by their number."""
    if before is not None and not isinstance(before, dict):
        raise ValueError(f"{path}: expected a dictionary as 'files', found {before!r:.40}")
    if before is None:
        _log.info("%s does not say which files it was trained on: they are taken to be the same", path.name)
        return
    for domain, now in listing.items():
        then = before.get(domain)
        if then != now and not may_differ:
            count = then.get("pictures") if isinstance(then, dict) else "other"
            change = f"has {now['pictures']}" if count != now["pictures"] else "has as many with other names"
            raise ValueError(
                f"{path.name} was trained on {count} pictures of the {domain}, which now {change}, so the samples "
                "would be others; --new-data goes on with them"
            )

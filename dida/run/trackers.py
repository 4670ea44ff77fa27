"""Where the scalars of a run go besides metrics.jsonl: TensorBoard's own file, and a service if one is asked for."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from dida.errors import UserError
from dida.run.events import open_events

PROJECT = "dida"


class Tracker(Protocol):
    """Somewhere that takes scalars."""

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Raises OSError."""

    def close(self) -> None:
        """Nothing is added afterwards."""


# How each library is told which of its runs goes on when one of ours is resumed: wandb by an id, trackio by its name.
_RESUMES: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "wandb": lambda name, folder: {"id": name, "resume": "allow", "dir": str(folder)},
    "trackio": lambda name, folder: {"resume": "allow"},
}


class Service:
    """A run of wandb, or of trackio, whose functions are called the same."""

    def __init__(self, library: str, folder: Path, options: dict[str, Any]) -> None:
        """`folder`: of the run, whose name is the run's there. `options`: as `dida.config.to_dict` gives them."""
        self._library = importlib.import_module(library)
        name = folder.absolute().name
        self._library.init(project=PROJECT, name=name, config=options, **_RESUMES[library](name, folder))

    def add(self, step: int, scalars: dict[str, float]) -> None:
        self._library.log(scalars, step=step)

    def close(self) -> None:
        self._library.finish()


def open_trackers(
    tracker: str, folder: Path, options: dict[str, Any], purge_step: int | None = None
) -> tuple[Tracker, ...]:
    """TensorBoard's file, and the service `tracker` unless it is "none".

    `purge_step`: TensorBoard forgets what earlier files say of this step and later ones.
    """
    events = open_events(folder, purge_step)
    return (events,) if tracker == "none" else (events, Service(tracker, folder, options))


def require_tracker(tracker: str) -> None:
    """Raise UserError where a service is asked for whose library is not installed."""
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise UserError(f"--tracker {tracker}: not installed, pip install {tracker} does it; or leave --tracker out")

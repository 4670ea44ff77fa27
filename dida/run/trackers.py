"""Where the scalars of a run go besides metrics.jsonl: TensorBoard's own file, and a service if one is asked for."""

import importlib
import importlib.util
import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from dida.errors import UserError
from dida.machine.files import read_json, write_json
from dida.run.events import open_events

_log = logging.getLogger(__name__)

PROJECT = "dida"
MARK = "tracker.json"


class Tracker(Protocol):
    """Somewhere that takes scalars."""

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Raises OSError, UserError."""

    def close(self) -> None:
        """Nothing is added afterwards."""


# How each library is told which of its runs this one is: wandb by an id, trackio by a name, which must be unique.
_NAMES: dict[str, Callable[[str, str, Path], dict[str, Any]]] = {
    "wandb": lambda name, mark, folder: {"name": name, "id": mark, "dir": str(folder)},
    "trackio": lambda name, mark, folder: {"name": f"{name}-{mark}"},
}


class Service:
    """A run of wandb, or of trackio, whose functions are called the same."""

    def __init__(self, library: str, folder: Path, options: dict[str, Any]) -> None:
        """`folder`: of the run. `options`: as `dida.config.to_dict` gives them. Raises UserError."""
        self._name, self._library = library, importlib.import_module(library)
        names = _NAMES[library](folder.absolute().name, _mark(folder), folder)
        self._told("init", project=PROJECT, config=options, resume="allow", **names)

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Raises UserError."""
        self._told("log", scalars, step=step)

    def close(self) -> None:
        """Warns where that fails: the run is whole, and may be ending for a reason of its own."""
        try:
            self._told("finish")
        except UserError as error:
            _log.warning("%s", error)

    def _told(self, function: str, *args: Any, **options: Any) -> None:
        try:
            getattr(self._library, function)(*args, **options)
        except Exception as error:  # theirs, of any kind: a connection, a key, a quota
            raise UserError(
                f"--tracker {self._name}: {function} failed, {type(error).__name__}: {error}; "
                "--tracker none does without it, on --resume too"
            ) from error


def _mark(folder: Path) -> str:
    """What tells the run of this folder from others of its name; made once, and kept in the folder."""
    path = folder / MARK
    if not path.exists():
        write_json(path, {"id": secrets.token_hex(4)})
    mark = read_json(path).get("id")
    if not isinstance(mark, str):
        raise UserError(f"{path}: names no id of the run that --tracker goes on with; remove the file to begin another")
    return mark


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

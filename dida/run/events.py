"""Scalars for TensorBoard, in its own format.

Written here and not by `SummaryWriter`, which writes from a thread: its errors end in a traceback that nobody catches,
and a process that forks its loaders is better off without one.
"""

import logging
import os
import socket
import time
from pathlib import Path

from dida.machine.files import Appended

try:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter
except ModuleNotFoundError as error:  # as on a borrowed machine: metrics.jsonl has the same numbers
    MISSING: str | None = f"no curves for TensorBoard: {error}"
else:
    MISSING = None

_log = logging.getLogger(__name__)


def open_events(folder: Path, purge_step: int | None = None) -> "Events | NoEvents":
    """A new file in `folder`, or none, which is said, where TensorBoard is not installed.

    `purge_step`: TensorBoard forgets what earlier files say of this step and later ones.
    """
    if MISSING is None:
        return Events(folder, purge_step)
    _log.warning(MISSING)
    return NoEvents()


class Events:
    """A new file events.out.tfevents.* in a folder."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = Appended(folder / name)
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """On its way to the disk when it returns. Raises OSError."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(step=step, summary=Summary(value=values))

    def close(self) -> None:
        self._file.close()

    def _write(self, **content: object) -> None:
        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())


class NoEvents:
    """No file."""

    def add(self, step: int, scalars: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass

"""Items of a data set, read ahead by other processes. Whatever goes wrong there arrives as an error here, between two
items, and never as silence."""

import errno
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.context import BaseContext
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import cv2
import numpy.random  # noqa: F401  PyTorch's workers would import it, which just after a fork can fail
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from dida.data.image_file import ImageFileError
from dida.errors import UserError
from dida.machine.files import megabytes
from dida.machine.signals import ignore_signals, starting_workers

PATIENCE = 1.0  # seconds until a worker that does not end when it is asked to, stuck in a read perhaps, is killed
_DYING = 5.0  # seconds that the system takes at most to bury a process, a dump of its memory included
_END = signal.SIGUSR2
# A fork copies locks that other threads hold, and not the threads: Python warns of it since 3.12. From then on a server
# is forked that has imported everything and does nothing else. Earlier a fork is what starts at once.
START = "forkserver" if sys.version_info >= (3, 12) else "fork"
_SHARED = "/dev/shm"


def usable_cores() -> int:
    """That this process may run on; a container or a scheduler may leave it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_method() -> BaseContext:
    """How processes that read data are started; what they are handed must be picklable."""
    context = multiprocessing.get_context(START)
    if START == "forkserver":
        context.set_forkserver_preload([__name__])
        ensure_running()  # before signals wait: what it starts later for others would never get one
    return context


class WorkerDied(UserError):
    """A process that reads data was killed, or could not hand over what it read. The message says the likely cause."""


def start_worker(*_: object) -> None:
    """What every process that reads data does first."""
    cv2.setNumThreads(0)  # the workers themselves are the parallelism; more threads would only compete
    ignore_signals()  # on a terminal they get Ctrl-C too, and the process that they work for ends them
    # Python runs this between two calls, never within the one that makes and hides a file of shared memory.
    signal.signal(_END, lambda *_: os._exit(0))
    sys.excepthook = _unless_left


def _unless_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say what went wrong, but not that whoever reads the items left in the middle of one: then the run is at its end.

    A thread of the worker, which hands over the files that tensors are in, reports by the hook that this replaces.
    """
    if not isinstance(error, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


class ReadAhead(Iterator[Any]):
    """The items of `dataset`, or batches of them, made by `workers` processes (0: by this one, when asked).

    Raises what the data set raises for a file that cannot be used (ImageFileError, OSError), and WorkerDied. The
    processes live until `close`, which the end of a `with` block calls.
    """

    def __init__(
        self, dataset: Dataset[Any], order: Sequence[int], *, batch_size: int | None, workers: int, pin_memory: bool
    ) -> None:
        """`order`: indices of items. `batch_size`: None hands out items one by one, as they are."""
        with _without_advice():
            loader: DataLoader[Any] = DataLoader(
                _Told(dataset),
                sampler=order,
                batch_size=batch_size,
                num_workers=workers,
                collate_fn=_one if batch_size is None else _batched,
                pin_memory=pin_memory,
                worker_init_fn=start_worker,
                multiprocessing_context=start_method() if workers else None,
            )
        others = set(multiprocessing.active_children())
        self._main_thread = threading.current_thread() is threading.main_thread()
        self._on_child = signal.getsignal(signal.SIGCHLD)
        self._workers: set[BaseProcess] = set()
        try:
            with starting_workers(), _without_advice():
                self._items = iter(loader)
        except OSError as error:
            _say_no_more(error)
            raise self._explained(error) from error
        if self._main_thread:  # PyTorch would raise where the death of a worker finds the program: within a step
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._workers = set(multiprocessing.active_children()) - others
        self._end = weakref.finalize(self, _end_all, self._workers)  # they would ignore being terminated at exit

    def __next__(self) -> Any:
        try:
            item = next(self._items)
        except (RuntimeError, EOFError, OSError) as error:
            raise self._explained(error) from error
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """End the worker processes."""
        self._end()
        if self._main_thread:
            signal.signal(signal.SIGCHLD, self._on_child or signal.SIG_DFL)

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _explained(self, error: Exception) -> Exception:
        """What became of the workers, if that is why PyTorch raised `error`."""
        if isinstance(error, EOFError | ConnectionError):  # one that is about to be gone, in the middle of a sentence
            gone = connection.wait([worker.sentinel for worker in self._workers], timeout=_DYING)
            for worker in self._workers:
                if worker.sentinel in gone:
                    worker.join(_DYING)
        dead = [worker for worker in self._workers if not worker.is_alive()]
        if dead:
            return WorkerDied(_death(dead[0]))
        number = getattr(error, "errno", None)
        if "Too many open files" in str(error) or "ancdata" in str(error) or number == errno.EMFILE:
            return WorkerDied("too many open files: use fewer --workers, or allow more with `ulimit -n`")
        if number in (errno.ENOSPC, errno.ENOMEM, errno.EAGAIN):  # of starting them
            return WorkerDied(_no_room() if number == errno.ENOSPC else f"{os.strerror(number)}: use fewer --workers")
        return error


@contextmanager
def _without_advice() -> Iterator[None]:
    """PyTorch warns, twice, of more workers than cores; the default is what a training machine has use for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*worker processes in total")
        yield


def _say_no_more(error: OSError) -> None:
    """PyTorch's iterator that could not be made whole would print at its end, after our message, what it lacks."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        made: Any = frame.f_locals.get("self")
        if hasattr(made, "_shutdown_workers") and not hasattr(made, "_workers"):  # there is none to be ended yet
            made._shutdown = True


def _end_all(workers: set[BaseProcess]) -> None:
    alive = [worker for worker in workers if worker.is_alive()]
    for worker in alive:
        os.kill(worker.pid or 0, _END)
    deadline = time.monotonic() + PATIENCE
    for worker in alive:
        worker.join(max(deadline - time.monotonic(), 0))
        worker.kill()
        worker.join()


class _Told(Dataset[Any]):
    """A data set whose errors are items. As values they arrive as they were; PyTorch would send text with a traceback,
    of the same class if that can be made from text."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        try:
            return self._dataset[index]
        except (ImageFileError, OSError) as error:
            return error
        except MemoryError:
            return WorkerDied("a process that reads data found no memory: use fewer --workers")


def _batched(items: list[Any]) -> Any:
    error = next((item for item in items if isinstance(item, Exception)), None)
    return error or _handed_over(default_collate, items)


def _one(item: Any) -> Any:
    return item if isinstance(item, Exception) else _handed_over(lambda item: item, item)


def _handed_over(make: Callable[[Any], Any], read: Any) -> Any:
    """`make(read)`, a tuple; in a worker, its tensors lie in shared memory.

    Lack of room is an error here, which travels. Where PyTorch would share them, in a thread of the worker's queue, it
    is printed, the item is lost, and whoever waits for it waits for ever.
    """
    if get_worker_info() is None:
        return make(read)
    try:
        made = make(read)
        for part in made:
            if isinstance(part, Tensor):
                part.share_memory_()
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        return WorkerDied(_no_room())
    return made


def _no_room() -> str:
    size = megabytes(shutil.disk_usage(_SHARED).total)
    return f"{_SHARED} ({size}) is full: use fewer --workers, or enlarge it (docker run --shm-size)"


def _death(worker: BaseProcess) -> str:
    status = worker.exitcode or 0
    if status >= 0:
        return f"process {worker.pid}, which read data, ended with status {status}"
    causes = {
        signal.SIGKILL: "the system was out of memory, or somebody did it: use fewer --workers",
        signal.SIGBUS: _no_room(),
    }
    kind = signal.Signals(-status)
    return f"process {worker.pid}, which read data, was killed by {kind.name}: {causes.get(kind, 'is a file damaged?')}"

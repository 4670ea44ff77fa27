"""One pass over all files of a data set, in parallel and with a progress bar."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from dida.data.workers import WorkerDied, start_method, start_worker, usable_cores
from dida.machine.progress import Progress
from dida.machine.signals import starting_workers

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_WORTH_PROCESSES = 64  # fewer files are read before a pool has started
_CHUNK = 16  # files per message between processes


def sweep(
    function: Callable[[_Item], _Result], items: Sequence[_Item], *, title: str, workers: int | None = None
) -> list[_Result]:
    """[function(item) for item in items], over `workers` processes (None: one per usable core; 0: in this one).

    `function` must be picklable. An exception in it ends the sweep and is raised here, and WorkerDied where the
    system killed a process.
    """
    if workers is None:
        workers = usable_cores()
    with Progress(len(items), title, "file") as progress:
        if workers == 0 or len(items) < _WORTH_PROCESSES:
            return [_counted(progress, function(item)) for item in items]
        try:
            with ProcessPoolExecutor(workers, mp_context=start_method(), initializer=start_worker) as pool:
                try:
                    with starting_workers():
                        results = pool.map(function, items, chunksize=_CHUNK)
                    return [_counted(progress, result) for result in results]
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)  # or the rest would be read before this is raised
                    raise
        except BrokenProcessPool as error:
            raise WorkerDied(f"{title}: a process was killed; the system may have been out of memory") from error


def _counted(progress: Progress, result: _Result) -> _Result:
    progress.advance()
    return result

"""Whatever goes wrong in a process that reads data arrives where its items are awaited, as one clear error."""

import multiprocessing
import os
import signal
import threading
import time
import warnings
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Iterating

from dida.data import sweep as sweeping
from dida.data.image_file import ImageFileError
from dida.data.pairs import Pairs
from dida.data.sweep import sweep
from dida.data.workers import ReadAhead, WorkerDied
from dida.machine.signals import STOPPING

from .samples import make_pairs, same


class Item(NamedTuple):
    picture: Tensor
    index: int
    name: str


class Numbers(Dataset[Item]):
    """Item i is full of i; what `at` of them do besides can be chosen."""

    def __init__(self, act: Any = None, at: int = 5) -> None:
        self.act, self.at = act, at

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Item:
        if self.act is not None and index == self.at:
            self.act()
        return Item(torch.full((3, 4, 5), index), index, f"{index}.png")


def read_ahead(data: Dataset[Item], *, batch_size: int | None = None, workers: int = 2) -> ReadAhead:
    return ReadAhead(data, range(12), batch_size=batch_size, workers=workers, pin_memory=False)


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch):
    """PyTorch looks after its workers every 5 seconds; and what most of these tests hand them takes a fork."""
    monkeypatch.setattr("dida.data.workers.START", "fork")
    monkeypatch.setattr(Iterating._try_get_data, "__defaults__", (0.1,))


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_items_come_in_order_and_processes_go(batch_size, workers):
    with read_ahead(Numbers(), batch_size=batch_size, workers=workers) as items:
        found = list(items)
    pictures = [item.picture for item in found] if batch_size is None else [p for item in found for p in item.picture]
    assert [int(p.unique()) for p in pictures] == list(range(12))
    assert found[0].name == ("0.png" if batch_size is None else tuple(f"{i}.png" for i in range(batch_size)))
    assert multiprocessing.active_children() == []


class EndingBadly(Dataset[Any]):
    """A few samples, then a file that cannot be read. No closure, which another process could not be sent."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        if index == 3:
            raise ImageFileError("a.png: not a readable image")
        return self.pairs[index]


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_processes_that_inherit_nothing_read_the_same(start, monkeypatch, root):
    """As Python 3.12 and later start them."""
    monkeypatch.setattr("dida.data.workers.START", start)
    data = EndingBadly(make_pairs(root))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        with ReadAhead(data, range(4), batch_size=None, workers=1, pin_memory=False) as items:
            assert all(same(next(items), data[i]) for i in range(3))
            with pytest.raises(ImageFileError, match=r"a\.png"):
                next(items)
    assert multiprocessing.active_children() == []


def test_the_server_of_others_hears_signals(monkeypatch, root):
    """What a program starts from it later inherits which signals wait for ever."""
    waiting = []
    monkeypatch.setattr("dida.data.workers.START", "forkserver")
    monkeypatch.setattr("dida.data.workers.ensure_running", lambda: waiting.append(signal.pthread_sigmask(0, [])))
    with ReadAhead(make_pairs(root), range(1), batch_size=None, workers=1, pin_memory=False):
        assert waiting == [set()]


def raising(error: BaseException):
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize(
    "error",
    [
        ImageFileError("a.png: not a readable image\n  found: text"),
        FileNotFoundError(2, "No such file or directory", "a.png"),
        PermissionError(13, "Permission denied", "a.png"),
        OSError(5, "Input/output error", "a.png"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_a_file_arrives_as_it_was(error, batch_size, workers):
    with read_ahead(Numbers(raising(error)), batch_size=batch_size, workers=workers) as items:
        with pytest.raises(type(error)) as caught:
            list(items)
    assert (type(caught.value), caught.value.args, str(caught.value)) == (type(error), error.args, str(error))
    assert multiprocessing.active_children() == []


def test_an_error_of_the_program_keeps_its_traceback():
    with read_ahead(Numbers(raising(KeyError("x")))) as items, pytest.raises(KeyError, match="Traceback"):
        list(items)


def killing(kind: signal.Signals):
    return lambda: os.kill(os.getpid(), kind) if get_worker_info() else None


@pytest.mark.parametrize(
    "kind, cause",
    [
        (signal.SIGKILL, "out of memory"),
        (signal.SIGBUS, "/dev/shm"),
        (signal.SIGSEGV, "damaged"),
        (signal.SIGABRT, "damaged"),
    ],
)
def test_a_process_that_is_killed_is_named_with_its_signal(kind, cause, capfd):
    with (
        read_ahead(Numbers(killing(kind))) as items,
        pytest.raises(WorkerDied, match=f"killed by {kind.name}: .*{cause}"),
    ):
        list(items)
    assert multiprocessing.active_children() == []


def test_a_process_that_ends_is_noticed():
    with read_ahead(Numbers(lambda: os._exit(3))) as items, pytest.raises(WorkerDied, match="ended with status 3"):
        list(items)


def test_a_death_is_told_between_two_items_and_not_in_the_middle_of_something_else():
    """PyTorch's own handler would raise wherever the main process is: in a step, whose state is then half advanced."""
    with read_ahead(Numbers()) as items:
        next(items)
        os.kill(next(iter(items._workers)).pid, signal.SIGKILL)
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:  # a step
            sum(range(1000))
        with pytest.raises(WorkerDied):
            list(items)


@pytest.mark.parametrize("kind", STOPPING)
def test_processes_do_not_hear_the_signals_that_stop_a_run(kind):
    with read_ahead(Numbers(), batch_size=1) as items:
        next(items)
        for worker in items._workers:
            os.kill(worker.pid, kind)
        assert len(list(items)) == 11


def test_processes_that_are_stuck_are_ended(monkeypatch):
    monkeypatch.setattr("dida.data.workers.PATIENCE", 0.3)
    begin = time.monotonic()
    with read_ahead(Numbers()) as items:
        next(items)
        for worker in items._workers:
            os.kill(worker.pid, signal.SIGSTOP)
    assert time.monotonic() - begin < 60  # it would wait for ever
    assert multiprocessing.active_children() == []


def test_what_is_forgotten_is_ended_too():
    items = read_ahead(Numbers(lambda: time.sleep(60)))
    next(items)
    assert len(multiprocessing.active_children()) == 2
    del items
    assert multiprocessing.active_children() == []


def test_whoever_listened_to_the_end_of_children_listens_again():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        signal.signal(signal.SIGCHLD, heard := lambda *_: None)
        with read_ahead(Numbers()) as items:
            list(items)
        assert signal.getsignal(signal.SIGCHLD) is heard
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def test_other_threads_may_read_too():
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(item.index for item in read_ahead(Numbers(), workers=1)))
    thread.start()
    thread.join()
    assert found == list(range(12))


@pytest.mark.parametrize(
    "error, message",
    [
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
            "is full",
        ),
        (RuntimeError("Too many open files. Communication with the workers"), "ulimit -n"),
        (OSError(24, "Too many open files"), "ulimit -n"),
        (OSError(28, "No space left on device"), "is full"),
        (OSError(11, "Resource temporarily unavailable"), "fewer --workers"),
        (MemoryError(), "no memory"),
    ],
    ids=str,
)
def test_what_the_machine_lacks_is_said(error, message, monkeypatch):
    if isinstance(error, MemoryError):
        items = read_ahead(Numbers(raising(error)))
    elif "shared memory" in str(error):
        monkeypatch.setattr(Tensor, "share_memory_", lambda self: raising(error)())
        items = read_ahead(Numbers())
    else:
        items = read_ahead(Numbers(), workers=0)
        monkeypatch.setattr(items, "_items", (raising(error)() for _ in range(1)))
    with items, pytest.raises(WorkerDied, match=message):
        list(items)


def test_a_sweep_says_that_a_process_was_killed(monkeypatch):
    monkeypatch.setattr(sweeping, "_WORTH_PROCESSES", 1)
    with pytest.raises(WorkerDied, match="counting: a process was killed"):
        sweep(_kill_at_5, list(range(10)), title="counting", workers=2)
    assert sweep(abs, list(range(10)), title="counting", workers=2) == list(range(10))


def _kill_at_5(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number

"""Several processes that are one run, started by torchrun. N processes with b images each do what one does with N b.

A draw is made for the images of all processes, each of which takes its own part; what is summed over images is summed
over processes, in the order of their ranks, so that all come to the same bits. What asks for it holds a `World`. That
of a single process changes nothing and costs nothing.
"""

import logging
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dida.errors import UserError

PATIENCE = timedelta(minutes=30)  # a collective that takes longer ends the run: one process may count 25 000 labels
_SPOKEN = "dida/spoken"  # key of torchrun's store, which outlives any process: has one said why the run ended?

Whole = TypeVar("Whole", Tensor, range)
Value = TypeVar("Value")


class PeerLost(UserError):
    """Another process of the run is gone, or does not answer."""


class OfProcess(Exception):
    """The traceback of an error that another process had."""


def part_of(whole: Whole, number: int, parts: int, dim: int = 0) -> Whole:
    """Part `number` of equal ones along `dim`."""
    count = whole.shape[dim] if isinstance(whole, Tensor) else len(whole)
    assert count % parts == 0, (count, parts)
    share = count // parts
    if isinstance(whole, Tensor):
        return whole.narrow(dim, number * share, share)
    return whole[number * share : (number + 1) * share]


class World:
    """The processes of a run: here, this one alone."""

    rank, size = 0, 1
    ended_together = True  # whether all know of the error that ends the run: it was met in `together`

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def mine(self, whole: Whole, dim: int = 0) -> Whole:
        """The part of this process, of equal ones along `dim` in the order of ranks."""
        return whole

    def gather(self, part: Tensor) -> Tensor:
        """What `mine` takes a part of: the parts of all processes, of one shape, side by side along dimension 0."""
        return part

    def sum(self, x: Tensor) -> Tensor:
        """Over processes, the same bits in each. No gradient."""
        return x

    def mean(self, x: Tensor) -> Tensor:
        """Over processes, the same bits in each. No gradient."""
        return self.sum(x) / self.size

    def pooled(self, mean: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        """From a mean that counts `weight()` in this process (pixels, say) to its part of the mean over all.

        The part of a process is as large as its share of the weight, so that the mean of all parts is the mean over
        all pixels. The gradient is that of `mean`.
        """
        return mean

    def values(self, value: Value) -> list[Value]:
        """The value that each process has, by rank: plain ones, not tensors of a GPU."""
        return [value]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What ends this block in one process ends it in all, each raising the error of the first that has one.

        The first process tells it, see `joined`. Not for blocks with collectives that an error could leave unfinished.
        """
        yield

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The block in the first process, then in all others: what it leaves on disk, they find there."""
        yield

    def require_same(self, named: Iterator[tuple[str, Tensor]], when: str) -> None:
        """Raise UserError for a tensor whose bits are not the same in all processes. Waits for the device."""


ALONE = World()


class Group(World):
    """The processes that torchrun started together, joined by PyTorch's process group.

    Raises PeerLost wherever another one is gone, or does not come within the group's time limit.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.ended_together = False  # by an error that the first process tells

    def mine(self, whole: Whole, dim: int = 0) -> Whole:
        return part_of(whole, self.rank, self.size, dim)

    @torch.no_grad()
    def gather(self, part: Tensor) -> Tensor:
        sent = part.to(torch.uint8) if part.dtype == torch.bool else part  # gloo knows no bool
        whole = sent.new_empty(self.size * len(part), *part.shape[1:])
        with lost_peers_are_named():
            dist.all_gather_into_tensor(whole, sent.contiguous())
        return whole.to(part.dtype)

    def sum(self, x: Tensor) -> Tensor:
        return self.gather(x[None]).sum(0)  # not by all_reduce, whose order is its own

    def pooled(self, mean: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        mine = weight().to(mean.dtype)
        others = self.mean(mine)
        return mean * torch.where(others > 0, mine / others, 0.0)

    def values(self, value: Value) -> list[Value]:
        values: list[Any] = [None] * self.size
        with lost_peers_are_named():
            dist.all_gather_object(values, value)
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        mine: BaseException | None = None
        try:
            yield
        except PeerLost:
            raise
        except (Exception, SystemExit) as error:
            mine = error
        if not self.gather(torch.tensor([mine is not None])).any():
            return
        told = "".join(traceback.format_exception(mine)) if mine else ""
        errors = enumerate(self.values((_portable(mine), told)))
        rank, first, told = next((rank, error, told) for rank, (error, told) in errors if error is not None)
        first.__cause__ = OfProcess(f"in process {rank}:\n{told}")
        self.ended_together = True
        raise mine if mine is not None and rank == self.rank else first

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        for turn in (True, False):
            with self.together():
                if self.leads == turn:
                    yield

    def require_same(self, named: Iterator[tuple[str, Tensor]], when: str) -> None:
        names, tensors = zip(*named, strict=True)
        mine = torch.stack([_bits(tensor) for tensor in tensors])
        all_RT = self.gather(mine[None])
        wrong = (all_RT != all_RT[0]).any(0).tolist()
        if any(wrong):
            first = wrong.index(True)
            ranks = (all_RT[:, first] != all_RT[0, first]).nonzero().flatten().tolist()
            raise UserError(f"{names[first]} of process 0 and of {', '.join(map(str, ranks))} differ {when}")


@contextmanager
def joined() -> Iterator[World]:
    """The processes of this run: this one alone, or all that torchrun started.

    Only the first one prints and logs. Whatever error ends the block, one process tells it; the others end in silence.
    """
    if processes() == 1:
        yield ALONE
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    group, own, nowhere = Group(), (sys.stdout, sys.stderr), open(os.devnull, "w")
    if not group.leads:
        sys.stdout = sys.stderr = nowhere
        logging.disable()
    try:
        yield group
    except BaseException:
        speaks = group.leads if group.ended_together else _first_to_speak()
        sys.stdout, sys.stderr = own if speaks else (nowhere, nowhere)
        raise
    dist.destroy_process_group()


def processes() -> int:
    """How many torchrun started for this run; 1 without it."""
    return _told_by_torchrun("WORLD_SIZE", "1", least=1)


def place() -> int:
    """The number of this process among those of its machine."""
    return _told_by_torchrun("LOCAL_RANK", "0", least=0)


def _told_by_torchrun(name: str, alone: str, *, least: int) -> int:
    text = os.environ.get(name, alone)
    if not (text.isascii() and text.isdecimal() and int(text) >= least):
        raise ValueError(f"{name}={text!r} in the environment: expected what torchrun sets, a number from {least}")
    return int(text)


@contextmanager
def lost_peers_are_named() -> Iterator[None]:
    """For collectives, PyTorch's own included: what they raise where another process is gone becomes PeerLost."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(sign in str(error) for sign in _OF_TRANSPORT):
            raise
        raise PeerLost("another process of this run ended or did not answer, so this one cannot go on") from error


_OF_TRANSPORT = ("gloo", "NCCL", "nccl")  # both raise plain RuntimeErrors, which name their source


def _portable(error: BaseException | None) -> BaseException | None:
    """An error that can be raised in another process, or what it says."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # any: an exception of whatever library, with whatever arguments
        return UserError(f"{type(error).__name__}: {error}")


def _first_to_speak() -> bool:
    """Whether no process of the run has said yet why it ends. The answer is yes once."""
    try:
        return dist.distributed_c10d._get_default_store().add(_SPOKEN, 1) == 1
    except (RuntimeError, ValueError):  # the store is gone with torchrun itself
        return True


def _bits(tensor: Tensor) -> Tensor:
    """[] int64 that changes with any bit of a tensor, with its place too; on the tensor's device."""
    words = tensor.detach().contiguous().view(-1).view(torch.int32).to(torch.int64)
    return (words * (torch.arange(len(words), device=words.device) % 65_521 + 1)).sum()

"""Batches of samples on a device, made ahead by other processes."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor

from dida.batch import Batch, LabelledCrops
from dida.data.pairs import Pairs
from dida.data.transforms import Normalise
from dida.data.workers import ReadAhead
from dida.machine.distributed import ALONE, World


class Ids(NamedTuple):
    """Which files a batch was cut from."""

    source: Tensor  # [B] int64 indices into source.images, on the CPU
    target: Tensor  # [B] int64 indices into target.images, on the CPU


class Batches(Iterator[tuple[Batch, Ids]]):
    """The batches of steps start .. stop-1 on the device, images normalised. Made by `batches`.

    Raises ImageFileError, OSError or WorkerDied, and is then at its end. The end of a `with` block ends the
    processes behind it.
    """

    def __init__(self, samples: ReadAhead, device: torch.device) -> None:
        self._samples = samples
        self._device = device
        self._normalise = Normalise().to(device)
        self.waited = 0.0  # seconds the last batch was waited for; near zero if the workers keep up

    def __next__(self) -> tuple[Batch, Ids]:
        begin = time.perf_counter()
        sample = next(self._samples)  # a Sample, each of whose fields has a leading B
        self.waited = time.perf_counter() - begin
        source_image, source_label, target_image, target_real = (
            # bytes travel, and are widened on the device
            part.to(self._device, non_blocking=True)
            for part in (sample.source_image, sample.source_label, sample.target_image, sample.target_real)
        )
        source = LabelledCrops(self._normalise(source_image), source_label.long())
        batch = Batch(source, self._normalise(target_image), target_real)
        return batch, Ids(sample.source_index, sample.target_index)

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *error: object) -> None:
        self._samples.close()


class Share(Sequence[int]):
    """The samples of one process of a run: its part of every batch."""

    def __init__(self, samples: range, batch_size: int, world: World) -> None:
        """`samples`: of all processes, whole batches."""
        self._samples, self._batch_size, self._world = samples, batch_size, world

    def __len__(self) -> int:
        return len(self._samples) // self._world.size

    @overload
    def __getitem__(self, at: int) -> int: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[int]: ...

    def __getitem__(self, at: int | slice) -> int | Sequence[int]:
        if isinstance(at, slice):
            return [self[i] for i in range(len(self))[at]]
        batch, place = divmod(range(len(self))[at], self._batch_size // self._world.size)
        return self._world.mine(self._samples[batch * self._batch_size :][: self._batch_size])[place]


def batches(
    pairs: Pairs,
    *,
    batch_size: int,
    start: int,
    stop: int,
    workers: int,
    device: torch.device,
    world: World = ALONE,
) -> Batches:
    """The batches of steps start .. stop-1: batch b holds samples b * batch_size .. (b + 1) * batch_size - 1.

    `workers` processes prepare them ahead (0: this process, when asked). Of several processes of a run each has its
    part of every batch.
    """
    order = Share(range(start * batch_size, stop * batch_size), batch_size, world)
    own = batch_size // world.size
    pin = device.type == "cuda"
    return Batches(ReadAhead(pairs, order, batch_size=own, workers=workers, pin_memory=pin), device)

"""Batches of samples on a device, made ahead by other processes."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dida.batch import Batch, LabelledCrops
from dida.data.pairs import Pairs
from dida.data.transforms import Normalise
from dida.data.workers import ReadAhead


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


def batches(pairs: Pairs, *, batch_size: int, start: int, stop: int, workers: int, device: torch.device) -> Batches:
    """The batches of steps start .. stop-1: batch b holds samples b * batch_size .. (b + 1) * batch_size - 1.

    `workers` processes prepare them ahead (0: this process, when asked).
    """
    order = range(start * batch_size, stop * batch_size)
    pin = device.type == "cuda"
    return Batches(ReadAhead(pairs, order, batch_size=batch_size, workers=workers, pin_memory=pin), device)

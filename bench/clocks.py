"""How long a call takes and how much memory it needs, on a CPU and on a GPU."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from bench.meter import TensorMeter

ROUNDS = 5  # runs behind a median on a CPU, after one that warms up


class Timing(NamedTuple):
    """Milliseconds."""

    median: float
    low: float  # the 20th and 80th percentile
    high: float


def time_cpu(calls: dict[str, Callable[[], Any]]) -> dict[str, Timing]:
    """The ways take turns, so that whatever else the machine does meets all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: _timing(found) for name, found in seconds.items()}


def _timing(seconds: list[float]) -> Timing:
    low, *_, high = statistics.quantiles(seconds, n=5)
    return Timing(*(round(1e3 * x, 4) for x in (statistics.median(seconds), low, high)))


def time_cuda(call: Callable[[], Any], *, replayed: bool) -> Timing:
    from triton import testing

    clock = testing.do_bench_cudagraph if replayed else testing.do_bench
    median, low, high = clock(call, quantiles=[0.5, 0.2, 0.8])
    return Timing(round(median, 4), round(low, 4), round(high, 4))


def peak_of_call(call: Callable[[], Any], inputs: Any, device: str) -> int:
    """Bytes on top of the inputs."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with TensorMeter() as meter:
        meter.know(inputs)
        with meter.extra() as peak:
            call()
    return peak()

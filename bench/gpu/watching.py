"""One call, watched: its kernels on the device, and the functions that the host runs."""

import cProfile
import pstats
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

LISTED = 40  # kernels that take longest
CALLS, FUNCTIONS = 20, 30  # in which the host is watched, and how many functions are listed


def profiled(call: Callable[[], None], on: DeviceType) -> dict[str, Any]:
    """Milliseconds on the device, launches, and the kernels that take longest, of one call.

    What the profiler cannot do is said in `profile`; the times stand without it.
    """
    # Of the device alone: the thousands of host operations would take seconds to sort, and slow the launches down.
    activities = [ProfilerActivity.CUDA if on == DeviceType.CUDA else ProfilerActivity.CPU]
    try:
        with profile(activities=activities) as watched:
            call()
            if on == DeviceType.CUDA:
                torch.cuda.synchronize()
        events = [event for event in watched.events() if event.device_type == on]
    except Exception as error:
        return {"profile": said_of(error)}
    milliseconds: Counter[str] = Counter()
    for event in events:
        milliseconds[event.name] += event.time_range.elapsed_us() / 1e3
    launches = Counter(event.name for event in events)
    kernels = [[name[:110], round(ms, 3), launches[name]] for name, ms in milliseconds.most_common(LISTED)]
    return {"device_ms": round(sum(milliseconds.values()), 3), "launches": len(events), "kernels": kernels}


def said_of(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


def host_functions(call: Callable[[], Any]) -> list[list[Any]]:
    """Where the host's time goes in a call: functions, microseconds of their own, and how often each is called.

    From Python 3.12 on other threads, such as that of a backward on a GPU, are watched too, and share its time.
    """
    watch = cProfile.Profile()
    watch.enable()
    for _ in range(CALLS):
        call()
    watch.disable()
    found = sorted(pstats.Stats(watch).stats.items(), key=lambda entry: -entry[1][2])[:FUNCTIONS]
    return [
        [f"{Path(file).name}:{line} {name}", round(1e6 * own / CALLS, 1), count / CALLS]
        for (file, line, name), (_, count, own, _, _) in found
    ]

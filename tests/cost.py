"""What a call costs on the CPU, counted: the same numbers on a busy machine as on an idle one."""

from collections.abc import Callable
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile


class Cost(NamedTuple):
    """Of one call."""

    peak_memory: int  # bytes at the highest point, above what was alive before; what the call returns counts
    allocated: int  # bytes asked for from the beginning to the end: each is written and read about once
    flops: int  # of matrix products


def cost(run: Callable[[], object]) -> Cost:
    """What `run()` costs.

    The profiler sees every request to torch's allocator and every product, also those inside an opaque operator, where
    a dispatch mode is blind; the resident size of the process would depend on what malloc happened to keep.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True, with_flops=True) as seen:
        kept = run()
    del kept
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    allocated = sum(event.nbytes() for event in events if event.nbytes() > 0)
    return Cost(peak, allocated, sum(event.flops or 0 for event in seen.events()))

"""How much memory a call needs: the highest sum of live tensor bytes that it allocates, exact and without noise."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_memory(run: Callable[[], object]) -> int:
    """Bytes at the highest point of `run()` on the CPU, above what was alive before; what `run` returns counts.

    The profiler sees every request to torch's allocator, also those inside an opaque operator, where a dispatch mode is
    blind; the resident size of the process would depend on what malloc happened to keep.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = run()
    del kept
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak

"""Times and memory of one op over a range of K, each number on disk as soon as there is one.

Equal is compared with equal: per dtype ours, eager and torch.compile, each launched and each replayed from a CUDA
graph, in this one process.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType

import dida_kernels
from bench import kernels
from bench.arguments import seconds, whole_number
from bench.gpu.agreement import doubts
from bench.gpu.program import begin, stage_parser
from bench.gpu.watching import host_functions, profiled
from tests.cases import MAIN, Scene, resized

AGREEMENT = "agreement"  # the stage whose tests say which numbers are to be trusted
DTYPES = (torch.bfloat16, torch.float32)  # those with a target first
TINY = resized(MAIN, C=5, D=8, hw=(4, 4), HW=(16, 16))  # on a CPU, to try the command


def rows_of_op(
    op: str, slots: Sequence[int], device: str, doubt: kernels.Doubt, compile_seconds: float
) -> Iterator[dict[str, Any]]:
    """Rows as they are measured."""
    if device == "cuda":
        scenes = [kernels.scene_of(op, k, device) for k in slots]
        yield from kernels.rows_on_gpu(op, scenes, DTYPES, doubt, compile_seconds)
        return
    for scene in (tiny_scene(k) for k in slots):
        for dtype in DTYPES:
            yield from kernels.bench_cpu(op, dtype, scene, doubt, compiled=False)


def parts_of_call(op: str, slots: int, device: str) -> Iterator[dict[str, Any]]:
    """Of one call of ours, per dtype: milliseconds of each kernel, and of the host's functions; nothing on a CPU."""
    if device == "cpu":
        return
    for dtype in DTYPES:
        x = kernels.prepared(op, kernels.scene_of(op, slots, device), dtype, device)
        for backend in kernels.backends(op, x.made):
            call = partial(kernels.run, kernels.forced(op, backend), x)
            for _ in range(2):
                call()
            named = {"op": op, "dtype": str(dtype).removeprefix("torch."), "K": slots, "way": backend}
            yield named | profiled(call, DeviceType.CUDA) | {"host": host_functions(call)}


def tiny_scene(slots: int) -> Scene:
    return resized(TINY, K=max(TINY.C, slots // 10))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = stage_parser(__doc__)
    parser.add_argument("--op", choices=sorted(dida_kernels.OPS), required=True)
    parser.add_argument("--slots", type=whole_number(1), nargs="+", required=True, help="sizes K of the bank")
    parser.add_argument("--compile-seconds", type=seconds, default=0.0, help="in which torch.compile may be begun")
    program, options = begin(parser, arguments)
    report = program.to.with_name(f"{AGREEMENT}.json")  # stages leave what they find side by side
    tested = json.loads(report.read_text()) if report.exists() else {}
    doubt = doubts(tested, tuple(dida_kernels.OPS))
    rows: list[dict[str, Any]] = []
    # First: what comes later may leave a process in which nothing can be watched.
    parts = [part for k in options.slots for part in parts_of_call(options.op, k, program.device)]
    program.keep(parts=parts, rows=rows)
    for row in rows_of_op(options.op, options.slots, program.device, doubt, options.compile_seconds):
        rows.append(row)
        program.keep(rows=rows)
        print(*(row[name] for name in ("op", "dtype", "K", "way", "how", "median", "peak_bytes", "why", "doubt")))
    broken = [row for row in rows if is_broken(row)]
    return 1 if broken or not rows else 0


def is_broken(row: dict[str, Any]) -> bool:
    """Whether one of our kernels has no number for another reason than that the card is too small."""
    return row["way"] in kernels.GPU_BACKENDS and row["why"] not in (None, "does not fit")


if __name__ == "__main__":
    sys.exit(main())

"""Compile the kernels that the next stages launch, side by side: one after another they would take most of their time.

Kernels are compiled as they will be launched (bench/compiled/launches.py) into the cache that all stages share.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from bench import kernels
from bench.compiled.launches import Launch, compiled, record_call
from bench.gpu.program import begin, stage_parser

# bank_update is in the extension, which may still be compiling beside this.
OPS = ("instance_loss", "class_similarity", "boundary_mask", "bank_similarity", "scatter", "gather")
SLOTS = (300, 3000, 30_000, 100_000)  # of the stages that time them; what a larger bank launches is mostly the same
DTYPES = (torch.bfloat16, torch.float32)
TINY = {"ops": ("boundary_mask",), "slots": (300,), "dtypes": (torch.float32,)}  # on a CPU, to try the command
CPU_CAPABILITY = 90


def launches_of(
    ops: Iterable[str], slots: Iterable[int], dtypes: Iterable[torch.dtype], capability: int
) -> Iterator[Launch]:
    """One launch for each machine code that is needed."""
    known = set()
    calls = [(op, k, dtype) for op in ops for k in slots for dtype in dtypes]
    for op, k, dtype in calls:
        for launch in record_call(op, kernels.scene_of(op, k, "cuda"), dtype, capability).launches:
            if launch.key() not in known:
                known.add(launch.key())
                yield launch


def compile_one(launch: Launch, capability: int) -> str:
    compiled(launch, capability)
    return launch.name


def main(arguments: Sequence[str] | None = None) -> int:
    program, _ = begin(stage_parser(__doc__), arguments)
    if program.device == "cuda":
        capability = int("".join(map(str, torch.cuda.get_device_capability())))
        wanted = list(launches_of(OPS, SLOTS, DTYPES, capability))
    else:
        capability = CPU_CAPABILITY
        wanted = list(launches_of(**TINY, capability=capability))
    # Spawned: a process that was forked would inherit what the driver keeps of this one.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        names = list(pool.map(compile_one, wanted, [capability] * len(wanted)))
    program.keep(compiled=len(names))
    print(f"{len(names)} kernels compiled")
    return 0 if names else 1


if __name__ == "__main__":
    sys.exit(main())

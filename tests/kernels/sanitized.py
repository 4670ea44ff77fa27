"""One op on tiny inputs on the GPU, for NVIDIA's compute-sanitizer to watch: python -m tests.kernels.sanitized OP

memcheck sees accesses outside of an allocation only where every tensor has an allocation of its own, so it is run with
PYTORCH_NO_CUDA_MEMORY_CACHING=1. `planted.cu` makes the two mistakes that a sanitizer worth its name must find.
"""

import sys

import torch
from torch import Tensor

import dida_kernels
from tests.cases import GRADIENT, SCENES, call

KERNELS = ("cuda", "triton")
WATCHED = ("ordinary", "one_pixel", "same_grid", "stride_4", "odd_channels", "fewer_slots_than_classes", "coldest")
DTYPES = (torch.float32, torch.bfloat16)


def run(op: str, device: str, names: tuple[str, ...] = KERNELS) -> int:
    """Forward and backward of every watched scene on each of these backends that takes it; how many calls that were."""
    operation, calls = dida_kernels.OPS[op], 0
    for name in names:
        for scene in WATCHED:
            for dtype in DTYPES:
                made = call(op, SCENES[scene], dtype=dtype, device=device)
                if operation.why_not(name, *made.args, **made.options) is not None:
                    continue
                args = [x.requires_grad_() if i == GRADIENT.get(op) else x for i, x in enumerate(made.args)]
                with dida_kernels.backend(name):
                    out: Tensor = operation(*args, **made.options)
                if op in GRADIENT:
                    out.sum().backward()
                calls += 1
    return calls


def main(op: str) -> None:
    calls = run(op, "cuda")
    torch.cuda.synchronize()
    if not calls:
        sys.exit(f"{op}: no kernel of it runs here")
    print(f"{op}: {calls} calls")


if __name__ == "__main__":
    main(*sys.argv[1:])

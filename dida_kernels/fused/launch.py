"""Where a Triton kernel may run, and the options with which every kernel is launched."""

import triton
from torch import Tensor

from dida_kernels.dispatch import asked_for

# Triton binds a kernel to the interpreter when it is decorated, that is when its module is imported.
INTERPRETED = bool(triton.knobs.runtime.interpret)

# Triton 3.10 stops contracting a*b + c into one FMA unless asked; the hot loops would grow by 33 to 50 %.
LAUNCH = {"enable_fp_fusion": True}


def refuses_device(x: Tensor) -> str | None:
    """Why no Triton kernel runs on the device of `x`, or None. Part of every op's `refuses`.

    The interpreter (TRITON_INTERPRET=1) runs kernels on CPU tensors one element at a time: right, and a thousand times
    too slow. It is there for tests, so it is taken only where the backend was forced, never by the free choice.
    """
    if x.device.type == "cuda":
        return None
    if x.device.type != "cpu" or not INTERPRETED:
        return f"Triton kernels need a CUDA device, got {x.device}"
    if asked_for() != "triton":
        return 'Triton\'s interpreter is for tests: force it with dida_kernels.backend("triton")'
    return None

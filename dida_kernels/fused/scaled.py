"""The backward of both instance losses: the gradient that the forward has left, times two numbers, in one pass.

In PyTorch this is two passes where the gradient is kept wider than the embedding (one to multiply, one to round), and a
bfloat16 tensor times a scalar on the device first rounds the scalar.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dida_kernels.fused.launch import LAUNCH

BLOCK = 4096  # elements of a program that only multiplies: 16 bytes of bfloat16 a thread, twice


@triton.jit
def _scaled(p_x, p_a, p_b, p_out, numel, BLOCK: tl.constexpr):
    o_x = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(p_x + o_x, mask=o_x < numel, other=0.0).to(tl.float32) * (tl.load(p_a) * tl.load(p_b))
    tl.store(p_out + o_x, b_x.to(p_out.dtype.element_ty), mask=o_x < numel)


@torch.library.custom_op("dida::scaled", mutates_args=())
def scaled(x_MD: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """x a b, with scalars a and b on the device, rounded once to `dtype`. x [M, D] contiguous; a, b float32."""
    out_MD = torch.empty(x_MD.shape, dtype=dtype, device=x_MD.device)
    with torch.cuda.device_of(x_MD):  # Triton launches on the current device, wherever the tensors are
        _scaled[(triton.cdiv(x_MD.numel(), BLOCK),)](x_MD, a, b, out_MD, x_MD.numel(), BLOCK, num_warps=8, **LAUNCH)
    return out_MD


@scaled.register_fake
def _(x_MD, a, b, dtype):
    return x_MD.new_empty(x_MD.shape, dtype=dtype)

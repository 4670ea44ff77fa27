"""Rows of embeddings that stay on chip while the bank streams past them: what the streaming kernels share."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dida_kernels.fused.launch import refuses_device

# The cosine is bounded, so softmax sums over the bank are shifted by the constant 1/t instead of a running maximum.
# From this temperature on the smallest term, exp(-2/t), is a normal float32; below it kernels keep a maximum (ONLINE).
MIN_SHIFTED = 0.0235
MAX_ROW_BYTES = 1024  # of an embedding padded to a power of two: more and a block of pixels does not fit on chip
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class RowBlock(NamedTuple):
    """How many pixels a program owns and how many slots it takes at a time, in a sweep that multiplies back less."""

    pixels: int
    slots: int
    slots_grad: int = 0
    warps: int = 8
    stages: int = 2


class RowBlocks(NamedTuple):
    """The blocks of one kernel. Each was chosen by offline compilation: no spill inside a loop, and no more shared
    memory than the smallest card it is for has, 99 KB (sm_86) or 227 KB (Hopper)."""

    half: RowBlock  # 16-bit rows of at most 512 bytes
    half_hopper: RowBlock
    wide: RowBlock  # rows of up to MAX_ROW_BYTES, and float32, whose exact products leave the matrix unit idle


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """acc + a b. The interpreter multiplies the bit patterns of bfloat16; widened first, the products are exact."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def load_rows(p_x, o_row, rows, stride_row, stride_d, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows `o_row` of a [rows, D] matrix of any strides; zeros beyond its edges."""
    o_d = tl.arange(0, BLOCK_D)
    p_rows = p_x + o_row.to(tl.int64)[:, None] * stride_row + o_d[None, :].to(tl.int64) * stride_d
    return tl.load(p_rows, mask=(o_row < rows)[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit
def store_rows(p_x, b_rows, o_row, rows, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Into a contiguous [rows, D] matrix, rounded to its dtype."""
    o_d = tl.arange(0, BLOCK_D)
    m_rows = (o_row < rows)[:, None] & (o_d < D)[None, :]
    tl.store(p_x + o_row.to(tl.int64)[:, None] * D + o_d[None, :], b_rows.to(p_x.dtype.element_ty), mask=m_rows)


@triton.jit
def inverse_row_norm(b_embed):
    """1 / |e|; 0 where |e| is no more than 1e-12, in float16 its smallest normal number: see `equations.unit`."""
    SHORTEST_SQUARED: tl.constexpr = 2.0**-28 if b_embed.dtype == tl.float16 else 1e-24
    b_wide = b_embed.to(tl.float32)
    b_square = tl.sum(b_wide * b_wide, 1)
    return tl.where(b_square <= SHORTEST_SQUARED, 0.0, tl.rsqrt(b_square))


def precision(dtype: torch.dtype) -> str:
    """Of the products: exact in float32, unless the user gave TF32 leave for matrix products as PyTorch spells it."""
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


def block_for(blocks: RowBlocks, embed_ND: Tensor, dtype: torch.dtype) -> RowBlock:
    """The block for these embeddings where they are multiplied in `dtype`."""
    if dtype == torch.float32 or block_of_channels(embed_ND.shape[1]) * dtype.itemsize > 512:
        return blocks.wide
    device = embed_ND.device
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    return blocks.half_hopper if hopper else blocks.half


def block_of_channels(D: int) -> int:
    return max(16, triton.next_power_of_2(D))  # a matrix unit takes at least 16


def refuses_rows(embed_ND: Tensor) -> str | None:
    """Why the streaming kernels do not take these embeddings, or None."""
    if embed_ND.dtype not in DTYPES:
        return f"{embed_ND.dtype} embeddings; the kernels take {', '.join(map(str, DTYPES))}"
    if block_of_channels(embed_ND.shape[1]) * embed_ND.element_size() > MAX_ROW_BYTES:
        return f"D = {embed_ND.shape[1]} in {embed_ND.dtype} takes more than {MAX_ROW_BYTES} bytes a pixel"
    return refuses_device(embed_ND)

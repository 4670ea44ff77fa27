"""The bank as the loss over rows reads it: unit rows sorted by class, every class padded to whole segments of 16 rows.

    class 0: 18 slots, class 1: none, class 2: 16 slots        segments  0 0 2,  used = 48
    rows    b_3 b_7 ... (18)  0 ... 0 (14)  b_1 b_4 ... (16)
    bias    0   0   ...       -inf    -inf  0   0   ...        an exponent's last summand: padding weighs exp(-inf) = 0
    prior   p_0 p_0 ...       0       0     p_2 p_2 ...        what the class adds to the student's exponent

A segment is one class, so whatever is known of a (pixel, class) is read once for 16 slots and broadcast. The two ways
without padding cost more: a read for every (pixel, slot) takes as long as the products with the bank, and a product
with a one-hot [K, C] rounds what it copies. A balanced bank of 300 slots and 19 classes grows by 1 %.

How many segments there are depends on the labels, which are on the device. Memory is allocated for the worst case,
everything behind the last segment is padding too, and kernels stop at `used`: no synchronisation. Slots whose label is
outside 0 .. C-1 are in no segment.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dida_kernels.fused.banks import SortedBank
from dida_kernels.fused.launch import LAUNCH
from dida_kernels.fused.rows.blocks import block_of_channels, inverse_row_norm, load_rows, store_rows

SEGMENT = 16  # the rows of one matrix instruction, about the slots of a class at K = 300


class PackedBank(NamedTuple):
    """P rows, a multiple of the kernels' blocks; G = P / SEGMENT segments."""

    rows_PD: Tensor  # [P, BLOCK_D] unit rows, channels padded with zeros
    bias_P: Tensor  # float32: 0 for slots, -inf for padding
    class_G: Tensor  # int32
    used: Tensor  # [1] int32, rows up to the end of the last segment
    prior_P: Tensor  # float32: log2 of the slot's class prior, 0 for padding


@triton.jit
def _pack_bank(
    p_bank,
    p_order,
    p_start,
    p_log2_prior,
    p_rows,
    p_bias,
    p_class,
    p_used,
    p_prior,
    K,
    C,
    stride_k,
    stride_d,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    i_g = tl.program_id(0)
    o_c = tl.arange(0, BLOCK_C)
    b_start = tl.load(p_start + o_c, mask=o_c < C, other=0)
    b_stop = tl.load(p_start + o_c + 1, mask=o_c < C, other=0)
    b_segments = (b_stop - b_start + SEGMENT - 1) // SEGMENT
    b_until = tl.cumsum(b_segments, 0)
    # The class of this segment; C for the segments behind the last class, whose start and stop then sum to 0.
    i_c = tl.sum(((b_until <= i_g) & (o_c < C)).to(tl.int32), 0)
    b_first = b_start + (i_g - (b_until - b_segments)) * SEGMENT
    first = tl.sum(tl.where(o_c == i_c, b_first, 0), 0)
    stop = tl.sum(tl.where(o_c == i_c, b_stop, 0), 0)

    o_k = first + tl.arange(0, SEGMENT)
    b_slot = tl.load(p_order + o_k, mask=o_k < stop, other=K)  # row K is beyond the bank and loads as zeros
    b_row = load_rows(p_bank, b_slot, K, stride_k, stride_d, D, BLOCK_D).to(tl.float32)
    o_p = i_g * SEGMENT + tl.arange(0, SEGMENT)
    store_rows(p_rows, b_row * inverse_row_norm(b_row)[:, None], o_p, o_p + 1, BLOCK_D, BLOCK_D)
    tl.store(p_bias + o_p, tl.where(o_k < stop, 0.0, float("-inf")))
    i_c = tl.minimum(i_c, C - 1)
    tl.store(p_class + i_g, i_c)
    tl.store(p_prior + o_p, tl.where(o_k < stop, tl.load(p_log2_prior + i_c), 0.0))
    if i_g == 0:
        tl.store(p_used, tl.sum(b_segments, 0) * SEGMENT)


@triton.jit
def load_packed(
    p_rows, p_bias, p_class, p_z, i_k, o_n, N, stride_n, stride_c, b_weight,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """A block of slots: unit rows [BLOCK_K, BLOCK_D], bias [BLOCK_K], weighted z of pixels [BLOCK_N, BLOCK_K]."""
    SEGMENTS: tl.constexpr = BLOCK_K // SEGMENT
    o_k = i_k + tl.arange(0, BLOCK_K)
    b_b = tl.load(p_rows + o_k[:, None].to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :])
    b_bias = tl.load(p_bias + o_k)
    b_class = tl.load(p_class + i_k // SEGMENT + tl.arange(0, SEGMENTS)).to(tl.int64)
    p_here = p_z + o_n[:, None] * stride_n + b_class[None, :] * stride_c
    b_z = tl.load(p_here, mask=(o_n < N)[:, None], other=0.0).to(tl.float32) * b_weight[:, None]
    b_z = tl.broadcast_to(b_z[:, :, None], (BLOCK_N, SEGMENTS, SEGMENT))
    return b_b, b_bias, tl.reshape(b_z, (BLOCK_N, BLOCK_K))


def pack_bank(bank: SortedBank, log2_prior_C: Tensor, dtype: torch.dtype, *, multiple: int) -> PackedBank:
    """Pad and normalise (in float32, then rounded to `dtype`); `multiple` of rows so that blocks are whole."""
    bank_KD, classes = bank.bank_KD, len(log2_prior_C)
    (K, D), device = bank_KD.shape, bank_KD.device
    P = triton.cdiv(K + (SEGMENT - 1) * min(classes, K), multiple) * multiple
    BLOCK_D = block_of_channels(D)
    packed = PackedBank(
        torch.empty((P, BLOCK_D), dtype=dtype, device=device),
        torch.empty(P, dtype=torch.float32, device=device),
        torch.empty(P // SEGMENT, dtype=torch.int32, device=device),
        torch.empty(1, dtype=torch.int32, device=device),
        torch.empty(P, dtype=torch.float32, device=device),
    )
    with torch.cuda.device_of(bank_KD):  # Triton launches on the current device, wherever the tensors are
        _pack_bank[(P // SEGMENT,)](
            bank_KD,
            bank.order_K,
            bank.start_C1,
            log2_prior_C,
            *packed,
            K,
            classes,
            *bank_KD.stride(),
            D=D,
            BLOCK_D=BLOCK_D,
            BLOCK_C=triton.next_power_of_2(classes),
            SEGMENT=SEGMENT,
            **LAUNCH,
        )
    return packed

"""The bank in class order, as the kernels of both families read it.

Sorted by class, gather and scatter cost nothing: a kernel walks the slots and closes a running sum where the class
changes. Where it changes is known on the device only: there is no host synchronisation.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dida_kernels import equations
from dida_kernels.fused.launch import LAUNCH

# exp((cos - 1) / t) of any cosine is at least e^-40 from this temperature on, so that a sum of them, a sum that z
# leaves MASS of, and what is divided by it are normal float32. Below, exponents are shifted by their maximum.
CONSTANT_SHIFT_TEMPERATURE = 2 / 40
MASS = tl.constexpr(equations.MASS)
SHORTEST = tl.constexpr(1e-12)  # of `equations.unit`, in float32

# Up to so many slots they are sorted by one launch of K^2 comparisons. On an H100 it takes 4 us at K = 300 and 20 at
# 3 000, where PyTorch takes five launches and 28 us for the sort alone. Above, the square is what counts.
COUNTED = 4096
SORTED = 32, 64  # slots that a program places, and those that it compares them with at a time
LAST = tl.constexpr(2**62)  # behind every class
UNIT_ROWS, UNIT_CHANNELS = 4, 256  # rows and channels at a time


class SortedBank(NamedTuple):
    """A view of the bank in class order; no row is copied before it is needed."""

    bank_KD: Tensor
    order_K: Tensor  # int64, the slot that stands at each sorted position
    label_K: Tensor  # int64, sorted
    start_C1: Tensor  # int32, where each class starts; start[C] is one past the last

    def unit_rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows [start, stop) of the sorted bank, normalised in float32 and then rounded once; see `equations.unit`."""
        count, D = stop - start, self.bank_KD.shape[1]
        unit_KD = torch.empty(count, D, device=self.bank_KD.device)
        with torch.cuda.device_of(self.bank_KD):  # Triton launches on the current device, wherever the tensors are
            _unit_rows[(triton.cdiv(count, UNIT_ROWS),)](
                *(self.bank_KD, self.order_K, unit_KD, start, count, D, *self.bank_KD.stride()),
                *(UNIT_ROWS, UNIT_CHANNELS),
                num_warps=4,
                **LAUNCH,
            )
        return unit_KD.to(dtype)


@triton.jit
def _unit_rows(p_bank, p_order, p_out, start, count, D, stride_k, stride_d, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m_row = o_row < count
    o_slot = tl.load(p_order + start + o_row, mask=m_row, other=0)
    p_row = p_bank + o_slot * tl.cast(stride_k, tl.int64)
    p_unit = p_out + o_row.to(tl.int64) * D
    b_square = tl.zeros((ROWS, CHANNELS), tl.float32)
    for i_d in range(0, D, CHANNELS):
        o_d = i_d + tl.arange(0, CHANNELS)
        m = m_row[:, None] & (o_d < D)[None, :]
        b_x = tl.load(p_row[:, None] + (o_d * stride_d)[None, :], mask=m, other=0.0).to(tl.float32)
        b_square += b_x * b_x
    b_length = tl.sqrt_rn(tl.sum(b_square, 1))
    m_short = b_length <= SHORTEST  # NaN is not short and stays NaN
    b_length = tl.where(m_short, 1.0, b_length)
    for i_d in range(0, D, CHANNELS):
        o_d = i_d + tl.arange(0, CHANNELS)
        m = m_row[:, None] & (o_d < D)[None, :]
        b_x = tl.load(p_row[:, None] + (o_d * stride_d)[None, :], mask=m, other=0.0).to(tl.float32)
        b_unit = tl.where(m_short[:, None], 0.0, tl.div_rn(b_x, b_length[:, None]))
        tl.store(p_unit[:, None] + o_d[None, :], b_unit, mask=m)


def log2_prior(log_prior_C: Tensor | None, label_K: Tensor, classes: int) -> Tensor:
    """The class prior as the kernels take it, [C] float32: added to exponents of 2; 0 where there is none.

    At most 0 on the classes that have slots, and 0 on one of them, so that it moves no sum of exponentials out of the
    range that they have without it.
    """
    if log_prior_C is None:
        return torch.zeros(classes, device=label_K.device)
    log2_C = log_prior_C.float() * math.log2(math.e)
    return log2_C - log2_C.index_select(0, label_K).amax()


@triton.jit
def classes_to_ask(p_start, n_class):
    """How many classes `mass_on_slots` has to read: all, or none where all have slots."""
    slotless = 0
    for c in range(0, n_class):
        slotless += (tl.load(p_start + c + 1) == tl.load(p_start + c)).to(tl.int32)
    return tl.where(slotless > 0, n_class, 0)


@triton.jit
def mass_on_slots(p_z, stride_c, m, p_start, n_asked):
    """`equations.on_slots` of a block of pixels, whose z of class 0 is at `p_z`, but for what the caller's sum over the
    slots says itself: is there any?"""
    b_on = tl.zeros(m.shape, tl.float32)
    b_all = tl.zeros(m.shape, tl.float32)
    for c in range(0, n_asked):
        b_z = tl.load(p_z + c * tl.cast(stride_c, tl.int64), mask=m, other=0.0).to(tl.float32)
        b_all += b_z
        b_on += tl.where(tl.load(p_start + c + 1) > tl.load(p_start + c), b_z, 0.0)
    return (b_on >= MASS * b_all) | (b_on != b_on)


@triton.jit
def _sort_labels(p_label, p_order, p_sorted, p_start, n_slot, n_start, OWN: tl.constexpr, OTHERS: tl.constexpr):
    """A slot stands behind all of lower classes and those of its own in front of it: a count, exact and stable."""
    i_own = tl.program_id(0) * OWN
    o_own = i_own + tl.arange(0, OWN)
    m_own = o_own < n_slot
    b_own = tl.load(p_label + o_own, mask=m_own, other=0)
    b_place = tl.zeros((OWN, OTHERS), tl.int32)
    for i in range(0, n_slot, OTHERS):
        o_other = i + tl.arange(0, OTHERS)
        b_other = tl.load(p_label + o_other, mask=o_other < n_slot, other=LAST)
        # A slot in front of mine comes first if it is of my class, too: own + 1 is then the bound, classes are whole.
        b_bound = b_own[:, None] + (o_other[None, :] < o_own[:, None]).to(tl.int64)
        b_place += (b_other[None, :] < b_bound).to(tl.int32)
    b_place = tl.sum(b_place, 1)
    tl.store(p_order + b_place, o_own.to(tl.int64), mask=m_own)
    tl.store(p_sorted + b_place, b_own, mask=m_own)
    if i_own < n_start:  # where a class starts: how many slots are of lower ones
        b_lower = tl.zeros((OWN, OTHERS), tl.int32)
        for i in range(0, n_slot, OTHERS):
            o_other = i + tl.arange(0, OTHERS)
            b_other = tl.load(p_label + o_other, mask=o_other < n_slot, other=LAST)
            b_lower += (b_other[None, :] < o_own[:, None]).to(tl.int32)
        tl.store(p_start + o_own, tl.sum(b_lower, 1), mask=o_own < n_start)


def sort_bank(bank_KD: Tensor, label_K: Tensor, classes: int) -> SortedBank:
    """Stable, so that runs are reproducible. Labels [K] int64 are trusted to be in 0 .. classes-1."""
    K = len(label_K)
    if K > COUNTED:
        sorted_K, order_K = label_K.sort(stable=True)
        classes_C1 = torch.arange(classes + 1, device=label_K.device)
        return SortedBank(bank_KD, order_K, sorted_K, torch.searchsorted(sorted_K, classes_C1).int())
    order_K, sorted_K = torch.empty_like(label_K), torch.empty_like(label_K)
    start_C1 = torch.empty(classes + 1, dtype=torch.int32, device=label_K.device)
    with torch.cuda.device_of(label_K):  # Triton launches on the current device, wherever the tensors are
        _sort_labels[(triton.cdiv(max(K, classes + 1), SORTED[0]),)](
            *(label_K.contiguous(), order_K, sorted_K, start_C1, K, classes + 1, *SORTED), num_warps=4, **LAUNCH
        )
    return SortedBank(bank_KD, order_K, sorted_K, start_C1)

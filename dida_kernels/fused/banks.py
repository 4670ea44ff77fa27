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
from dida_kernels.equations import unit

# exp((cos - 1) / t) of any cosine is at least e^-40 from this temperature on, so that a sum of them, a sum that the
# prior leaves MASS of, and what is divided by it are normal float32. Below, exponents are shifted by their maximum.
CONSTANT_SHIFT_TEMPERATURE = 2 / 40
MASS = tl.constexpr(equations.MASS)


class SortedBank(NamedTuple):
    """A view of the bank in class order; no row is copied before it is needed."""

    bank_KD: Tensor
    order_K: Tensor  # int64, the slot that stands at each sorted position
    label_K: Tensor  # int64, sorted
    start_C1: Tensor  # int32, where each class starts; start[C] is one past the last

    def unit_rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows [start, stop) of the sorted bank, normalised in float32 and then rounded once."""
        rows = self.bank_KD.index_select(0, self.order_K[start:stop]).float()
        return unit(rows).to(dtype)


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


def sort_bank(bank_KD: Tensor, label_K: Tensor, classes: int) -> SortedBank:
    """Stable, so that runs are reproducible. Labels are trusted to be in 0 .. classes-1."""
    sorted_K, order_K = label_K.sort(stable=True)
    classes_C1 = torch.arange(classes + 1, device=label_K.device)
    return SortedBank(bank_KD, order_K, sorted_K, torch.searchsorted(sorted_K, classes_C1).int())

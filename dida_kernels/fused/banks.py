"""The bank in class order, as the kernels of both families read it.

Sorted by class, gather and scatter cost nothing: a kernel walks the slots and closes a running sum where the class
changes. Where it changes is known on the device only: there is no host synchronisation.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dida_kernels.equations import unit


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


def sort_bank(bank_KD: Tensor, label_K: Tensor, classes: int) -> SortedBank:
    """Stable, so that runs are reproducible. Labels are trusted to be in 0 .. classes-1."""
    sorted_K, order_K = label_K.sort(stable=True)
    classes_C1 = torch.arange(classes + 1, device=label_K.device)
    return SortedBank(bank_KD, order_K, sorted_K, torch.searchsorted(sorted_K, classes_C1).int())

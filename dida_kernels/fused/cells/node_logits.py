"""The products of the bank with the nodes, a range of slots at a time: unit rows, one GEMM.

The host cuts the sorted bank into ranges of a fixed length, because it does not know where a class ends; kernels clamp
the class boundaries to their range, and the sums of a class that a cut splits simply add.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from dida_kernels.fused.banks import SortedBank
from dida_kernels.fused.cells.geometry import scratch

# A chunk of node logits of two streams takes 8 M LOGIT_SLOTS bytes: 101 MB for two crops of 512 x 512 at stride 4.
LOGIT_SLOTS = 384


def ranges(start: int, stop: int, rows: int) -> Iterator[tuple[int, int]]:
    """Cut [start, stop) into the fewest ranges of at most `rows` rows, as equal as can be, the longest first."""
    step = -(-(stop - start) // -(-(stop - start) // rows))
    return ((k, min(k + step, stop)) for k in range(start, stop, step))


class NodeLogits:
    """unit slots . rows, the dot products at the nodes, as (first slot, last slot + 1, [slots, M, streams] float32).

    Iterated over as often as there are passes; one buffer holds one chunk, so a bank of one chunk is multiplied once.
    """

    def __init__(self, bank: SortedBank, rows_MSD: Tensor):
        self.bank, self.rows = bank, rows_MSD
        self.buffer = scratch(min(len(bank.order_K), LOGIT_SLOTS), *rows_MSD.shape[:2], like=rows_MSD)
        self.held: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[tuple[int, int, Tensor]]:
        for start, stop in ranges(0, len(self.bank.order_K), LOGIT_SLOTS):
            chunk = self.buffer[: stop - start]
            if self.held != (start, stop):
                slots = self.bank.unit_rows(start, stop, self.rows.dtype)
                matmul(slots, self.rows.flatten(0, 1).T, out=chunk.flatten(1))
                self.held = (start, stop)
            yield start, stop, chunk


def matmul(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """out = a @ b, accumulated and stored in float32.

    Logits rounded to bfloat16 would be ten times as wrong as the rest of the op. float32 inputs are multiplied in
    float32, or in TF32 where the user has allowed it for all of PyTorch.
    """
    if a.dtype == torch.float32:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)


def add_matmul(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out += a @ b. cuBLAS adds in place in float32; of half-precision products it has no float32 sum to add to."""
    if a.dtype == torch.float32:
        out.addmm_(a, b)
    else:
        out += matmul(a, b, out=scratch(*out.shape, like=out))


@triton.jit
def classes_of(p_label, i_lo, i_hi, n_class):
    """First and last class of the sorted slots i_lo .. i_hi - 1; some class where there are none."""
    c_first = tl.maximum(tl.load(p_label + tl.minimum(i_lo, i_hi - 1)).to(tl.int32), 0)
    return c_first, tl.minimum(tl.load(p_label + i_hi - 1).to(tl.int32), n_class - 1)

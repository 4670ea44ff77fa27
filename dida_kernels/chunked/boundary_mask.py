"""Algorithm 1, `equations.boundary_mask`: the classes of a window as the bits of one integer.

8 bytes a pixel where the equation pools C maps. The union over a window is a bitwise or, along one axis after the
other, and "at least n distinct classes" is what is left after clearing the lowest bit n - 1 times.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dida_kernels.equations import IGNORE, boundary_mask

_WORD = 63  # classes that fit into the bits of a positive int64


def _more_classes_than_bits(label_BHW: Tensor, *, classes: int, threshold: int = 2) -> str | None:
    return None if classes <= _WORD else f"a set of classes is one int64, {classes} do not fit into {_WORD} bits"


@boundary_mask.implement("chunked", refuses=_more_classes_than_bits)
def _boundary_mask(label_BHW: Tensor, *, classes: int, threshold: int = 2) -> Tensor:
    valid_BHW = label_BHW != IGNORE
    bits_BHW = torch.where(valid_BHW, torch.bitwise_left_shift(1, label_BHW.long().clamp(0, _WORD - 1)), 0)
    bits_BHW = F.pad(bits_BHW, (1, 1, 1, 1))
    bits_BHW = bits_BHW[:, :-2] | bits_BHW[:, 1:-1] | bits_BHW[:, 2:]
    bits_BHW = bits_BHW[..., :-2] | bits_BHW[..., 1:-1] | bits_BHW[..., 2:]
    for _ in range(threshold - 1):
        bits_BHW = bits_BHW & (bits_BHW - 1)  # without the lowest set bit; 0 stays 0
    return (bits_BHW != 0) & valid_BHW

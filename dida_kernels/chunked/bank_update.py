"""The sums of Eq. (11), `equations.bank_update`, without the enlarged embeddings [N, D].

A sum of interpolated values is a weighted sum of nodes, and the weights are the adjoint of the set's mask: one small
product per tile, [sets, nodes] x [nodes, D]. At ratios that are powers of two the weights are exact in float32.
"""

import torch
from torch import Tensor

from dida_kernels.chunked.tiles import Plan
from dida_kernels.equations import IGNORE, bank_update, blend, statistics_dtype


@bank_update.implement("chunked")
def _bank_update(
    bank_KD: Tensor,
    label_K: Tensor,
    embed_BDhw: Tensor,
    label_BHW: Tensor,
    boundary_BHW: Tensor,
    *,
    classes: int,
    momentum: float,
) -> Tensor:
    sum_SD, count_S = set_sums_chunked(embed_BDhw, label_BHW, boundary_BHW, classes)
    return blend(bank_KD, label_K, sum_SD, count_S, momentum=momentum)


@torch.library.custom_op("dida::set_sums_chunked", mutates_args=())
def set_sums_chunked(
    embed_BDhw: Tensor, label_BHW: Tensor, boundary_BHW: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Sums and counts of the enlarged embeddings of 2C sets of pixels: C interiors, then C boundaries."""
    dtype, size = statistics_dtype(embed_BDhw), label_BHW.shape[1:]
    set_S = torch.arange(2 * classes, device=embed_BDhw.device)
    sum_SD = embed_BDhw.new_zeros(2 * classes, embed_BDhw.shape[1], dtype=dtype)
    count_S = torch.zeros_like(set_S)
    with torch.autocast(embed_BDhw.device.type, enabled=False):
        for b, tile in Plan.of(size, sum_SD, dtype).tiles(size, embed_BDhw, dtype):
            label_P = label_BHW[b][tile.pixels].flatten().long()
            set_P = torch.where(label_P == IGNORE, -1, label_P + classes * boundary_BHW[b][tile.pixels].flatten())
            member_PS = set_P[:, None] == set_S
            weight_SN = tile.adjoint(member_PS.to(dtype)).flatten(0, 1).T
            node_ND = tile.nodes_of(embed_BDhw[b], dtype).flatten(0, 1)
            finite_ND = node_ND.isfinite()
            sum_SD.addmm_(weight_SN, node_ND.where(finite_ND, 0.0))
            if not finite_ND.all():  # these reach the sets of their pixels; as products, 0 x NaN, they would reach all
                sum_SD[weight_SN @ (~finite_ND).to(dtype) > 0] = torch.nan
            count_S += member_PS.sum(0)
    return sum_SD, count_S


@set_sums_chunked.register_fake
def _(embed_BDhw: Tensor, label_BHW: Tensor, boundary_BHW: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    sum_SD = embed_BDhw.new_empty(2 * classes, embed_BDhw.shape[1], dtype=statistics_dtype(embed_BDhw))
    return sum_SD, label_BHW.new_empty(2 * classes, dtype=torch.int64)

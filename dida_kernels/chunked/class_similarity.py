"""Eq. (5) and (9), `equations.class_similarity`: sums per class over chunks of slots, no [N, K] tensor.

A chunk's softmax needs the maximum over the whole bank, which is not known yet. The sums are therefore relative to the
largest logit so far, and whenever a chunk raises it they are scaled down to the new one.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dida_kernels.chunked.banks import Bank, inverse_norm
from dida_kernels.chunked.tiles import Plan
from dida_kernels.equations import class_similarity, statistics_dtype


@class_similarity.implement("chunked")
def _class_similarity(
    embed_BDhw: Tensor,
    bank_KD: Tensor,
    label_K: Tensor,
    *,
    classes: int,
    temperature: float,
    size: tuple[int, int],
    log_prior_C: Tensor | None = None,
) -> Tensor:
    return class_similarity_chunked(embed_BDhw, bank_KD, label_K, log_prior_C, classes, float(temperature), list(size))


@torch.library.custom_op("dida::class_similarity_chunked", mutates_args=())
def class_similarity_chunked(
    embed_BDhw: Tensor,
    bank_KD: Tensor,
    label_K: Tensor,
    log_prior_C: Tensor | None,
    classes: int,
    temperature: float,
    size: list[int],
) -> Tensor:
    dtype = statistics_dtype(embed_BDhw)
    plan = Plan.of(size, bank_KD, dtype)
    bank = Bank.of(bank_KD, label_K, plan.chunks, dtype)
    belongs_KC = F.one_hot(label_K, classes).to(dtype)
    q_ga_BCHW = embed_BDhw.new_empty(len(embed_BDhw), classes, *size, dtype=dtype)
    with torch.autocast(embed_BDhw.device.type, enabled=False):
        for b, tile in plan.tiles(size, embed_BDhw, dtype):
            embed_rcD = tile.nodes_of(embed_BDhw[b], dtype)
            # Enlarging is a product, in which 0 x NaN would reach the whole tile and not the node's own pixels.
            lost_rc1 = ~embed_rcD.isfinite().all(2, keepdim=True)
            embed_rcD = embed_rcD.masked_fill(lost_rc1, 0.0)
            scale_P1 = inverse_norm(tile.enlarge(embed_rcD)) / temperature
            peak_P1 = torch.full_like(scale_P1, -math.inf)
            sum_PC = scale_P1.new_zeros(len(scale_P1), classes)
            for chunk in bank.chunks:
                w_PK = bank.logits(chunk, tile, embed_rcD, scale_P1)
                higher_P1 = torch.maximum(peak_P1, w_PK.amax(1, keepdim=True))
                sum_PC.mul_((peak_P1 - higher_P1).exp_()).addmm_(w_PK.sub_(higher_P1).exp_(), belongs_KC[chunk])
                peak_P1 = higher_P1
            if log_prior_C is not None:
                sum_PC *= log_prior_C.to(dtype).softmax(0)
            sum_PC /= sum_PC.sum(1, keepdim=True)
            sum_PC.masked_fill_(tile.enlarge(lost_rc1.to(dtype)) > 0, math.nan)
            q_ga_BCHW[(b, slice(None), *tile.pixels)] = sum_PC.T.unflatten(1, (len(tile.Y_Rr), -1))
    return q_ga_BCHW


@class_similarity_chunked.register_fake
def _(
    embed_BDhw: Tensor,
    bank_KD: Tensor,
    label_K: Tensor,
    log_prior_C: Tensor | None,
    classes: int,
    temperature: float,
    size: list[int],
) -> Tensor:
    return embed_BDhw.new_empty(len(embed_BDhw), classes, *size, dtype=statistics_dtype(embed_BDhw))

"""Eq. (4) and Eq. (5), `equations.bank_similarity`: cosine, temperature and softmax over the bank in one kernel.

    s_k = (e . b_k) / (|e| t)            b_k the unit rows of the bank
    q_k = exp(s_k) / sum_j exp(s_j)

A program owns BLOCK_N pixels, keeps their embeddings on chip and sweeps the bank twice: first it sums exp(s), then it
computes the same products again and writes q. The second product is the cheap side of a trade: keeping exp(s) until
the sum is known would move an [N, K] tensor twice more (write and read back), while the bank comes from the L2 cache.
The norm of e is a factor of the finished product, so it costs one multiplication a slot and no normalised copy.

With the gradient dq coming in, delta = sum_k q_k dq_k and P the projection that removes the direction of e:

    de = P sum_k g_k b_k / (|e| t),      g_k = q_k (dq_k - delta),      P x = x - e (e . x) / |e|^2

which needs q (the output, so it exists anyhow), one product with the bank and no logits: a first sweep over q and dq
finds delta, a second one feeds g straight into the product.

    symbol     name        shape
    e          embed_ND    [N, D] float32, bfloat16 or float16, any strides; the only input with a gradient
    b          bank_KD     [K, D] floating; normalised in float32, rounded to the dtype of e
    q, dq      q_NK        [N, K] float32
    t          temperature

Not materialised: normalised embeddings (N D), logits (N K) and g (N K): what moves is e, q and, back, dq, q, e and de.

Numerics: sums, exponents and norms are float32, products accumulate in float32; float32 inputs use exact products
unless TF32 was allowed for matrix products. Exponents are in base 2, the exponential unit's own. They are bounded by
1/t, so the sum is shifted by that constant and no running maximum is needed; below t = 0.0235, where exp(-2/t) would
leave float32's range, a second variant (ONLINE) keeps a maximum for every column of the block and merges them once.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dida_kernels.equations import bank_similarity, unit
from dida_kernels.fused.launch import INTERPRETED, LAUNCH
from dida_kernels.fused.rows.blocks import (
    MIN_SHIFTED,
    RowBlock,
    RowBlocks,
    block_for,
    block_of_channels,
    dot,
    inverse_row_norm,
    load_rows,
    precision,
    refuses_rows,
    store_rows,
)

FORWARD_BLOCKS = RowBlocks(
    half=RowBlock(64, 32),
    half_hopper=RowBlock(128, 64),  # 64 slots: narrower blocks starve Hopper's matrix unit
    wide=RowBlock(32, 32),
)
BACKWARD_BLOCKS = RowBlocks(
    half=RowBlock(64, 32),
    half_hopper=RowBlock(64, 64),  # with 128 pixels the accumulator spills
    wide=RowBlock(32, 16),
)


@triton.jit
def _bank_similarity_fwd(
    p_embed,
    p_bank,
    p_q,
    N,
    K,
    stride_n,
    stride_d,
    log2e_over_t,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ONLINE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    o_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    b_e = load_rows(p_embed, o_n, N, stride_n, stride_d, D, BLOCK_D)
    b_scale = (inverse_row_norm(b_e) * log2e_over_t)[:, None]

    zero = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    b_sum = zero
    b_max = zero - 2 * log2e_over_t  # below every exponent, and finite: -inf - -inf would be NaN
    for i_k in range(0, K, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        b_b = load_rows(p_bank, o_k, K, D, 1, D, BLOCK_D)
        b_s = dot(b_e, tl.trans(b_b), zero, PRECISION, UPCAST) * b_scale
        b_s = tl.where((o_k < K)[None, :], b_s, float("-inf"))
        if ONLINE:
            b_higher = tl.maximum(b_max, b_s)
            b_sum = b_sum * tl.exp2(b_max - b_higher) + tl.exp2(b_s - b_higher)
            b_max = b_higher
        else:
            b_sum += tl.exp2(b_s - log2e_over_t)
    if ONLINE:
        b_shift = tl.max(b_max, 1)
        b_sum *= tl.exp2(b_max - b_shift[:, None])
    else:
        b_shift = tl.zeros((BLOCK_N,), tl.float32) + log2e_over_t
    b_per_sum = 1 / tl.sum(b_sum, 1)

    for i_k in range(0, K, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        b_b = load_rows(p_bank, o_k, K, D, 1, D, BLOCK_D)
        b_s = dot(b_e, tl.trans(b_b), zero, PRECISION, UPCAST) * b_scale
        tl.store(
            p_q + o_n[:, None] * K + o_k[None, :],
            tl.exp2(b_s - b_shift[:, None]) * b_per_sum[:, None],
            mask=(o_n < N)[:, None] & (o_k < K)[None, :],
        )


@triton.jit
def _bank_similarity_bwd(
    p_grad,
    p_q,
    p_embed,
    p_bank,
    p_out,
    N,
    K,
    stride_grad_n,
    stride_grad_k,
    stride_n,
    stride_d,
    inverse_t,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    o_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)

    b_delta = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    b_peak = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for i_k in range(0, K, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_nk = (o_n < N)[:, None] & (o_k < K)[None, :]
        p_g = p_grad + o_n[:, None] * stride_grad_n + o_k[None, :].to(tl.int64) * stride_grad_k
        b_dq = tl.load(p_g, mask=m_nk, other=0.0)
        b_delta += tl.load(p_q + o_n[:, None] * K + o_k[None, :], mask=m_nk, other=0.0) * b_dq
        b_peak = tl.maximum(b_peak, tl.abs(b_dq))
    # A mean over pixels makes dq tiny; relative to the row's largest, g survives the product's rounding to float16.
    b_row_peak = tl.max(b_peak, 1)
    b_row_peak = tl.where(b_row_peak > 0, b_row_peak, 1.0)
    b_per_peak = 1 / b_row_peak
    b_row_delta = tl.sum(b_delta, 1) * b_per_peak

    b_de = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for i_k in range(0, K, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_nk = (o_n < N)[:, None] & (o_k < K)[None, :]
        p_g = p_grad + o_n[:, None] * stride_grad_n + o_k[None, :].to(tl.int64) * stride_grad_k
        b_dq = tl.load(p_g, mask=m_nk, other=0.0)
        b_q = tl.load(p_q + o_n[:, None] * K + o_k[None, :], mask=m_nk, other=0.0)
        b_g = b_q * (b_dq * b_per_peak[:, None] - b_row_delta[:, None])
        b_b = load_rows(p_bank, o_k, K, D, 1, D, BLOCK_D)
        b_de = dot(b_g.to(b_b.dtype), b_b, b_de, PRECISION, UPCAST)

    b_e = load_rows(p_embed, o_n, N, stride_n, stride_d, D, BLOCK_D)
    b_r = inverse_row_norm(b_e)
    b_e = b_e.to(tl.float32)
    b_along = tl.sum(b_de * b_e, 1) * b_r * b_r
    b_de = (b_de - b_along[:, None] * b_e) * (b_r * b_row_peak * inverse_t)[:, None]
    store_rows(p_out, b_de, o_n, N, D, BLOCK_D)


def _launch(embed_ND: Tensor, bank_KD: Tensor, blocks: RowBlocks) -> tuple[tuple[int], Tensor, dict]:
    """Grid, the bank as unit rows in the embedding's dtype, and the options both kernels share."""
    N, D = embed_ND.shape
    block = block_for(blocks, embed_ND, embed_ND.dtype)
    unit_KD = unit(bank_KD.float()).to(embed_ND.dtype).contiguous()
    options = {
        "D": D,
        "BLOCK_D": block_of_channels(D),
        "BLOCK_N": block.pixels,
        "BLOCK_K": block.slots,
        "PRECISION": precision(embed_ND.dtype),
        "UPCAST": INTERPRETED,
        "num_warps": block.warps,
        "num_stages": block.stages,
        **LAUNCH,
    }
    return (triton.cdiv(N, block.pixels),), unit_KD, options


@torch.library.custom_op("dida::bank_similarity_rows", mutates_args=())
def bank_similarity_rows(embed_ND: Tensor, bank_KD: Tensor, temperature: float) -> Tensor:
    N, K = len(embed_ND), len(bank_KD)
    q_NK = torch.empty((N, K), dtype=torch.float32, device=embed_ND.device)
    if N == 0:
        return q_NK
    grid, unit_KD, options = _launch(embed_ND, bank_KD, FORWARD_BLOCKS)
    with torch.cuda.device_of(embed_ND):  # Triton launches on the current device, wherever the tensors are
        _bank_similarity_fwd[grid](
            embed_ND,
            unit_KD,
            q_NK,
            N,
            K,
            *embed_ND.stride(),
            math.log2(math.e) / temperature,
            ONLINE=temperature < MIN_SHIFTED,
            **options,
        )
    return q_NK


@torch.library.custom_op("dida::bank_similarity_rows_backward", mutates_args=())
def bank_similarity_rows_backward(
    grad_NK: Tensor, q_NK: Tensor, embed_ND: Tensor, bank_KD: Tensor, temperature: float
) -> Tensor:
    N, K = q_NK.shape
    grad_ND = torch.empty(embed_ND.shape, dtype=embed_ND.dtype, device=embed_ND.device)
    if N == 0:
        return grad_ND
    grid, unit_KD, options = _launch(embed_ND, bank_KD, BACKWARD_BLOCKS)
    with torch.cuda.device_of(embed_ND):
        _bank_similarity_bwd[grid](
            grad_NK,
            q_NK,
            embed_ND,
            unit_KD,
            grad_ND,
            N,
            K,
            *grad_NK.stride(),
            *embed_ND.stride(),
            1 / temperature,
            **options,
        )
    return grad_ND


@bank_similarity_rows.register_fake
def _(embed_ND: Tensor, bank_KD: Tensor, temperature: float) -> Tensor:
    return embed_ND.new_empty((embed_ND.shape[0], bank_KD.shape[0]), dtype=torch.float32)


@bank_similarity_rows_backward.register_fake
def _(grad_NK: Tensor, q_NK: Tensor, embed_ND: Tensor, bank_KD: Tensor, temperature: float) -> Tensor:
    return embed_ND.new_empty(embed_ND.shape)


def _setup(ctx, inputs, output):
    embed_ND, bank_KD, ctx.temperature = inputs
    ctx.save_for_backward(embed_ND, bank_KD, output)


def _backward(ctx, grad_NK):
    embed_ND, bank_KD, q_NK = ctx.saved_tensors
    return bank_similarity_rows_backward(grad_NK, q_NK, embed_ND, bank_KD, ctx.temperature), None, None


bank_similarity_rows.register_autograd(_backward, setup_context=_setup)


def _refuses(embed_ND: Tensor, bank_KD: Tensor, *, temperature: float) -> str | None:
    return refuses_rows(embed_ND)


@bank_similarity.implement("triton", refuses=_refuses)
def _run(embed_ND: Tensor, bank_KD: Tensor, *, temperature: float) -> Tensor:
    return bank_similarity_rows(embed_ND, bank_KD, temperature)

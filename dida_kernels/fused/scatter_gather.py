"""Eq. (7) and Eq. (9): the class level unfolded onto the slots, and the slots summed back, each the other's adjoint.

    scatter(z)[n, k] = z[n, label k]                      gather(q)[n, c] = sum of q[n, k] over k with label k = c

Both are one linear map, the [K, C] indicator of the labels, applied from its two sides. The gradient of either is
therefore the other one, and as both are ops with a gradient, derivatives of any order exist.

    symbol          name          shape
    z               semantic_NC   [N, C] floating, any strides
    q, z_sc         q_NK          [N, K] floating, any strides
    l               label_K       [K] int64

`gather` could scatter-add with atomics, in an order that changes from run to run. Instead the slots are sorted by class
once (stable: [K] integers, no synchronisation) and one program owns one class of a block of pixels: it walks the slots
of its class in order and writes a sum that nobody else touches. No atomics, the same bits every run, any number of
classes, empty ones included. The programs of one block of pixels are neighbours in the grid, so whatever the order of
the slots in memory, q comes from DRAM once and the rest from the caches.

Not materialised: the [K, C] indicator (which a matrix product would need) and the expanded [N, K] index of
`torch.gather`. Sums are kept in float32 (float64 for float64 inputs) and rounded once to the input's dtype.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dida_kernels.equations import gather, scatter
from dida_kernels.fused.launch import LAUNCH, refuses_device

SCATTER_BLOCK_N, SCATTER_BLOCK_K = 16, 128  # whole 512-byte runs of the [N, K] output, which is all the traffic
GATHER_BLOCK_N, GATHER_BLOCK_K = 64, 32  # a class has some 16 slots at K = 300: longer blocks would be mostly masked
WARPS = 4


@triton.jit
def _scatter(
    p_semantic,
    p_label,
    p_out,
    N,
    K,
    C,
    stride_n,
    stride_c,
    stride_label,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # One grid axis: the y axis of a grid ends at 65 535, the blocks of pixels do not.
    blocks_k = tl.cdiv(K, BLOCK_K)
    o_n = (tl.program_id(0) // blocks_k).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    o_k = (tl.program_id(0) % blocks_k) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    m_nk = (o_n < N) & (o_k < K)
    b_label = tl.load(p_label + o_k.to(tl.int64) * stride_label, mask=o_k < K, other=0)
    # On a GPU the range of labels is checked only when debugging: a wrong one reads 0 here and is never visited below.
    m_class = (b_label >= 0) & (b_label < C)
    b_semantic = tl.load(p_semantic + o_n * stride_n + b_label * stride_c, mask=m_nk & m_class, other=0.0)
    tl.store(p_out + o_n * K + o_k, b_semantic, mask=m_nk)


@triton.jit
def _gather(
    p_q,
    p_order,
    p_first,
    p_out,
    N,
    C,
    stride_n,
    stride_k,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    i_c = tl.program_id(0) % C
    o_n = (tl.program_id(0) // C).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < N
    first = tl.load(p_first + i_c).to(tl.int32)
    end = tl.load(p_first + i_c + 1).to(tl.int32)
    SUM: tl.constexpr = tl.float64 if p_q.dtype.element_ty == tl.float64 else tl.float32
    b_sum = tl.zeros((BLOCK_N, BLOCK_K), SUM)
    for i_k in range(first, end, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        b_slot = tl.load(p_order + o_k, mask=o_k < end, other=0)
        p_nk = p_q + o_n[:, None] * stride_n + b_slot[None, :] * stride_k
        b_sum += tl.load(p_nk, mask=m_n[:, None] & (o_k < end)[None, :], other=0.0).to(SUM)
    tl.store(p_out + o_n * C + i_c, tl.sum(b_sum, 1), mask=m_n)


@torch.library.custom_op("dida::scatter", mutates_args=())
def _scatter_op(semantic_NC: Tensor, label_K: Tensor) -> Tensor:
    N, K = len(semantic_NC), len(label_K)
    out_NK = torch.empty((N, K), dtype=semantic_NC.dtype, device=semantic_NC.device)
    if out_NK.numel() == 0:
        return out_NK
    grid = (triton.cdiv(N, SCATTER_BLOCK_N) * triton.cdiv(K, SCATTER_BLOCK_K),)
    with torch.cuda.device_of(semantic_NC):  # Triton launches on the current device, wherever the tensors are
        _scatter[grid](
            semantic_NC,
            label_K,
            out_NK,
            N,
            K,
            semantic_NC.shape[1],
            *semantic_NC.stride(),
            *label_K.stride(),
            BLOCK_N=SCATTER_BLOCK_N,
            BLOCK_K=SCATTER_BLOCK_K,
            num_warps=WARPS,
            **LAUNCH,
        )
    return out_NK


@torch.library.custom_op("dida::gather", mutates_args=())
def _gather_op(q_NK: Tensor, label_K: Tensor, classes: int) -> Tensor:
    N = len(q_NK)
    out_NC = torch.empty((N, classes), dtype=q_NK.dtype, device=q_NK.device)
    if N == 0:
        return out_NC
    sorted_K, order_K = label_K.sort(stable=True)
    first_C1 = torch.searchsorted(sorted_K, torch.arange(classes + 1, device=label_K.device))
    with torch.cuda.device_of(q_NK):
        _gather[(triton.cdiv(N, GATHER_BLOCK_N) * classes,)](
            q_NK,
            order_K,
            first_C1,
            out_NC,
            N,
            classes,
            *q_NK.stride(),
            BLOCK_N=GATHER_BLOCK_N,
            BLOCK_K=GATHER_BLOCK_K,
            num_warps=WARPS,
            **LAUNCH,
        )
    return out_NC


@_scatter_op.register_fake
def _(semantic_NC: Tensor, label_K: Tensor) -> Tensor:
    return semantic_NC.new_empty((semantic_NC.shape[0], label_K.shape[0]))


@_gather_op.register_fake
def _(q_NK: Tensor, label_K: Tensor, classes: int) -> Tensor:
    return q_NK.new_empty((q_NK.shape[0], classes))


def _scatter_setup(ctx, inputs, output):
    semantic_NC, label_K = inputs
    ctx.save_for_backward(label_K)
    ctx.classes = semantic_NC.shape[1]


def _scatter_backward(ctx, grad_NK):
    (label_K,) = ctx.saved_tensors
    return _gather_op(grad_NK, label_K, ctx.classes), None


def _gather_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _gather_backward(ctx, grad_NC):
    (label_K,) = ctx.saved_tensors
    return _scatter_op(grad_NC, label_K), None, None


_scatter_op.register_autograd(_scatter_backward, setup_context=_scatter_setup)
_gather_op.register_autograd(_gather_backward, setup_context=_gather_setup)


@scatter.implement("triton", refuses=lambda semantic_NC, label_K: refuses_device(semantic_NC))
def _run_scatter(semantic_NC: Tensor, label_K: Tensor) -> Tensor:
    return _scatter_op(semantic_NC, label_K)


@gather.implement("triton", refuses=lambda q_NK, label_K, *, classes: refuses_device(q_NK))
def _run_gather(q_NK: Tensor, label_K: Tensor, *, classes: int) -> Tensor:
    return _gather_op(q_NK, label_K, classes)

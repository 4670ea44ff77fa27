"""Interpolated logits: what must be known of the pixels so that no [N, D] or [N, K] tensor is ever built.

Enlarging is linear, so with nodes e_m, weights w_m(x) and unit slots b_k

    e(x) = sum_m w_m(x) e_m        e(x).b_k = sum_m w_m(x) (e_m.b_k)        r(x) = 1 / |e(x)|

the dot products are needed at the nodes only (S*S fewer), and the cosine is r(x) times the enlarged dot product. Of the
pixels themselves one number is needed, r(x). `rows_and_norms` computes it from the enlarged vector, in registers, while
it lays the nodes out as the rows that the product with the bank wants.
"""

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dida_kernels.fused.banks import CONSTANT_SHIFT_TEMPERATURE
from dida_kernels.fused.cells.geometry import (
    Cells,
    cell_nodes,
    cell_position,
    enlarge_row,
    full_pixels,
    image_pixels,
    inside_image,
    scratch,
)
from dida_kernels.fused.cells.node_logits import NodeLogits, classes_of
from dida_kernels.fused.launch import LAUNCH

# A tile of [D, cells] keeps one accumulator per element and pixel of the cell. These tiles have 4 elements a thread (2
# for the 64 pixels of S = 8), a warp reads 32 neighbouring nodes, and a row is written a sector (32 bytes) at a time.
NORM_CELLS = 32
NORM_D = {2: 16, 4: 16, 8: 8}

MAX_CELLS = 128  # `shifts`: one cell and one of its pixel rows a thread
LOWEST = tl.constexpr(-1e30)  # below every exponent, and finite: -inf - -inf would be NaN where all of z is 0


@triton.jit
def _rows_and_norms(
    p_x, p_rows, p_r,
    D, h, w, n_cell,
    stride_b, stride_d, stride_y, stride_x, stride_m,
    S: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # [D, cells] and not [cells, D]: lanes then run along the image, as memory does (along D where that is contiguous).
    o_cell = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_cell = o_cell < n_cell
    o_b, o_cy, o_cx = cell_position(o_cell, h, w)
    p_image = p_x + o_b.to(tl.int64) * stride_b
    p_top = p_image + tl.maximum(o_cy - 1, 0).to(tl.int64) * stride_y
    p_bottom = p_image + tl.minimum(o_cy, h - 1).to(tl.int64) * stride_y
    o_left = tl.maximum(o_cx - 1, 0).to(tl.int64) * stride_x
    o_right = tl.minimum(o_cx, w - 1).to(tl.int64) * stride_x
    # A node is the bottom right one of a single cell, which writes its row.
    m_own = m_cell & (o_cy < h) & (o_cx < w)
    p_own = p_rows + ((o_b * h + o_cy) * w + o_cx).to(tl.int64) * stride_m
    b_square = ()
    for _ in tl.static_range(S * S):
        b_square += (tl.zeros((BLOCK_D, BLOCK_C), tl.float32),)
    b_nodes = tl.zeros((BLOCK_D, BLOCK_C), tl.float32)
    for i_d in range(0, D, BLOCK_D):
        o_d = i_d + tl.arange(0, BLOCK_D)
        m_d = (o_d < D)[:, None]
        m = m_d & m_cell[None, :]
        o_channel = o_d.to(tl.int64)[:, None] * stride_d
        b_00 = tl.load((p_top + o_left)[None, :] + o_channel, mask=m, other=0.0).to(tl.float32)
        b_01 = tl.load((p_top + o_right)[None, :] + o_channel, mask=m, other=0.0).to(tl.float32)
        b_10 = tl.load((p_bottom + o_left)[None, :] + o_channel, mask=m, other=0.0).to(tl.float32)
        b_11 = tl.load((p_bottom + o_right)[None, :] + o_channel, mask=m, other=0.0).to(tl.float32)
        tl.store(p_own[None, :] + o_d[:, None], b_11.to(p_rows.dtype.element_ty), mask=m_d & m_own[None, :])
        b_nodes += b_00 * b_00 + b_01 * b_01 + b_10 * b_10 + b_11 * b_11
        b_next = ()
        for j in tl.static_range(S):
            b_left, b_step = enlarge_row(b_00, b_01, b_10, b_11, (j + 0.5) / S)
            for i in tl.static_range(S):
                b_e = b_left + ((i + 0.5) / S) * b_step
                b_next += (b_square[j * S + i] + b_e * b_e,)
        b_square = b_next
    # Squares are summed of the enlarged vector: sums of node products lose all digits where neighbours nearly cancel.
    # Where they cancel to 2^-12 of the nodes, the enlarged *logits* have no digits left either; the norm is then held
    # there, so that a cosine made of rounding errors stays small instead of overflowing the exponential.
    b_floor = tl.sum(b_nodes, 0) * 2.0**-26
    stride = tl.cast(n_cell, tl.int64)
    for n in tl.static_range(S * S):
        b_total = tl.sum(b_square[n], 0)
        # no direction: see `equations.unit`
        b_r = tl.where(b_total <= 1e-24, 0.0, 1.0 / tl.sqrt(tl.maximum(b_total, b_floor)))
        tl.store(p_r + n * stride + o_cell, b_r, mask=m_cell)


def rows_and_norms(*embeds_BDhw: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
    """[B, D, h, w] of any strides, one or two of them -> rows [M, streams, D], M = B h w, and r [streams, S*S, cells].

    r is 1 / |e(x)| of every pixel, 0 where there is no direction. Two streams are interleaved because then one GEMM
    gives logits whose corner is a single 8-byte load. Embeddings of two dtypes meet in the one that holds both. One
    pass does both: it has to look at all channels of all nodes anyhow.
    """
    D, streams = embeds_BDhw[0].shape[1], len(embeds_BDhw)
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in embeds_BDhw))
    rows = scratch(cells.nodes, streams, D, like=embeds_BDhw[0], dtype=dtype)
    r = scratch(streams, cells.S**2, cells.count, like=rows)
    for stream, x in enumerate(embeds_BDhw):
        _rows_and_norms[(triton.cdiv(cells.count, NORM_CELLS),)](
            *(x, rows[:, stream], r[stream], D, cells.h, cells.w, cells.count, *x.stride(), streams * D),
            *(cells.S, NORM_D[cells.S], NORM_CELLS),
            num_warps=4,
            **LAUNCH,
        )
    return rows, r


@triton.jit
def _largest_logits(
    p_a, p_r, p_z_map, p_log2_prior, p_label, p_start, p_max,
    n_class, h, w, n_node, n_cell, i_first, i_stop,
    stride_b, stride_c, stride_y, stride_x, to_log2,
    S: tl.constexpr, STREAMS: tl.constexpr, CX: tl.constexpr, RESUME: tl.constexpr,
):  # fmt: skip
    o_cell = tl.program_id(0) * CX + tl.arange(0, CX)
    i_j = tl.program_id(1)
    i_s = tl.program_id(2)
    m_cell = o_cell < n_cell
    o_b, o_cy, o_cx = cell_position(o_cell, h, w)
    o_00, o_01, o_10, o_11 = cell_nodes(o_b, o_cy, o_cx, h, w)
    m_pixel = inside_image(m_cell, o_cy, o_cx, i_j, h, w, S, S)
    p_z = image_pixels(p_z_map, o_b, o_cy, o_cx, i_j, stride_b, stride_y, stride_x, S)
    m_teacher = tl.broadcast_to(i_s, (CX,)) == 0
    b_fy = (i_j + 0.5) / S
    stride = tl.cast(n_cell, tl.int64)
    o_first = (i_s * S + i_j) * S * stride + o_cell
    b_r = ()
    b_max = ()
    for i in tl.static_range(S):
        o_pixel = o_first + i * stride
        b_r += (tl.load(p_r + o_pixel, mask=m_cell, other=0.0) * to_log2,)
        if RESUME:
            b_max += (tl.load(p_max + o_pixel, mask=m_cell, other=0.0),)
        else:
            b_max += (tl.full((CX,), LOWEST, tl.float32),)
    p_row = p_a + i_s
    c_first, c_last = classes_of(p_label, i_first, i_stop, n_class)
    for c in range(c_first, c_last + 1):
        b_top = full_pixels(LOWEST, CX, S)
        for _ in range(tl.maximum(tl.load(p_start + c), i_first), tl.minimum(tl.load(p_start + c + 1), i_stop)):
            b_00 = tl.load(p_row + o_00 * STREAMS, mask=m_cell, other=0.0)
            b_01 = tl.load(p_row + o_01 * STREAMS, mask=m_cell, other=0.0)
            b_10 = tl.load(p_row + o_10 * STREAMS, mask=m_cell, other=0.0)
            b_11 = tl.load(p_row + o_11 * STREAMS, mask=m_cell, other=0.0)
            b_left = b_00 + b_fy * (b_10 - b_00)
            b_step = b_01 + b_fy * (b_11 - b_01) - b_left
            b_next = ()
            for i in tl.static_range(S):
                b_next += (tl.maximum(b_top[i], (b_left + ((i + 0.5) / S) * b_step) * b_r[i]),)
            b_top = b_next
            p_row += tl.cast(n_node, tl.int64) * STREAMS
        b_next = ()
        for i in tl.static_range(S):
            b_class = b_top[i]
            if STREAMS == 2:  # teacher, then student
                p_zi = p_z + c * tl.cast(stride_c, tl.int64) + i * stride_x
                b_z = tl.load(p_zi, mask=m_pixel[i] & m_teacher, other=0.0).to(tl.float32)
                b_class += tl.where(m_teacher, tl.log2(b_z), tl.load(p_log2_prior + c))
            b_next += (tl.maximum(b_max[i], b_class),)
        b_max = b_next
    for i in tl.static_range(S):
        tl.store(p_max + o_first + i * stride, b_max[i], mask=m_cell)


def shifts(
    logits: NodeLogits, r: Tensor, cells: Cells, temperature: float, factors: tuple[Tensor, Tensor] | None = None
) -> Tensor | None:
    """None where 1/t shifts all exponentials; else max over the slots of cos / t, in units of log2, as `r` is laid out.

    `factors`, of two streams: z [B, C, H, W], whose logarithm is part of what the teacher's slots are compared by, and
    log2 pi [C] of the student's. Knowing the maximum *before* the sums are taken, rather than rescaling them while they
    are, leaves the sums of chunks and programs free to be added in any grouping. The pass over the bank that it costs
    has no exponential.
    """
    if temperature >= CONSTANT_SHIFT_TEMPERATURE:
        return None
    largest, bank = scratch(*r.shape, like=r), logits.bank
    z, log2_prior_C = factors or (r, r)  # of one stream they are not read
    strides = z.stride() if factors else (0, 0, 0, 0)
    for start, stop, a in logits:
        streams = a.shape[2]
        _largest_logits[(triton.cdiv(cells.count, MAX_CELLS), cells.S, streams)](
            *(a, r, z, log2_prior_C, bank.label_K, bank.start_C1, largest),
            *(len(bank.start_C1) - 1, cells.h, cells.w, cells.nodes, cells.count),
            *(start, stop, *strides, math.log2(math.e) / temperature),
            *(cells.S, streams, MAX_CELLS, start > 0),
            num_warps=4,
            **LAUNCH,
        )
    return largest

"""The gradient of the instance loss: per pixel and slot, summed to the nodes above and below each seam.

G_k = (q_k - q_hat_k) / t needs what the forward has left of a pixel, 1/L and 1/Dn, and the two exponentials again.
`_loss_bwd` walks the slots as the forward does and adds up, per slot, w_m(x) r(x) G_k(x) over the pixels x of a cell,
for each of its four nodes m; s(x) = sum_k G_k cos_k stays in registers. `adjoint.py` takes both back to the nodes. The
weight of a pixel in the loss is part of its G.

The four sums come from four running sums: of G, of G times the share of the right node, of the lower one, and of both.
In border cells the clamped nodes coincide; the shares are set to 0 or 1 there, which costs nothing in the loop.

    cell o | cell o+1     A *seam* is the line between a cell and the next one. The nodes at its two ends get the right
           |              sums of cell o and the left sums of cell o+1: the neighbouring lane hands them over in two
    -------o-------       shuffles, and two numbers a cell are written instead of four. They are most of what the
           |              gradient moves. Lanes of two warps do not meet, so a program is one warp, and what its first
                          cell has for the seam before it is stored apart ("edges"), for `adjoint.fold` to add.

The logits are recomputed by a GEMM unless the whole bank is one chunk, and the seam sums are in memory for at most
SEAM_SLOTS slots, so memory does not grow with the bank.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dida_kernels.fused.banks import SortedBank
from dida_kernels.fused.cells import adjoint
from dida_kernels.fused.cells.adjoint import SEAM_CELLS
from dida_kernels.fused.cells.geometry import (
    Cells,
    cell_nodes,
    cell_position,
    enlarge_row,
    full_pixels,
    image_pixels,
    inside_image,
    less_log2,
    less_log2_prior,
    load_image,
    load_nodes,
    load_pixels,
    load_streams,
    node_share,
    scratch,
    store_pixels,
)
from dida_kernels.fused.cells.node_logits import NodeLogits, add_matmul, classes_of, matmul, ranges
from dida_kernels.fused.launch import LAUNCH

# One thread owns one cell of 16 pixels (S = 4): 168 registers, not the 184 it would take, fit 12 warps, not 8.
MAX_REGISTERS = {2: 96, 4: 168, 8: 168}
BACKWARD_ROWS = {2: 2, 4: 4, 8: 2}  # pixel rows of a cell that a thread owns; at S = 8 four threads share a cell
GROUPS = 3  # ranges of slots worked on at once
STAGES = 4  # slots under way, as in the forward: 0.212 ms without, 0.165 with

# Slots whose seam sums are in memory at once.
SEAM_SLOTS = {torch.float32: 192, torch.float16: 384}


@triton.jit
def _seam_units(p_scale, b_unit, o_cell, n_cell, CX: tl.constexpr):
    """Factors that take the sums of a cell, and of the next one, to the unit of their seam: the larger of the two."""
    b_unit_next = tl.load(p_scale + o_cell + 1, mask=o_cell + 1 < n_cell, other=0.0)
    b_per_unit = 1.0 / tl.maximum(tl.maximum(b_unit, b_unit_next), 1e-30)
    return b_unit * b_per_unit, tl.where(tl.arange(0, CX) == CX - 1, 0.0, b_unit_next * b_per_unit)


@triton.jit
def _cell_sums(
    b_d00, b_d01, b_d10, b_d11, b_c00, b_c01, b_c10, b_c11, b_factor_d, b_factor_c, b_shift_d, b_shift_c,
    b_zwd, b_wc, b_share_x, b_share_y, b_s, i_row, S: tl.constexpr, SR: tl.constexpr, CX: tl.constexpr,
):  # fmt: skip
    """r G of one slot summed over a cell's pixels: all of it, times the share of the right nodes, the lower ones, and
    both; and s(x) with this slot added."""
    b_all = tl.zeros((CX,), tl.float32)
    b_right = tl.zeros((CX,), tl.float32)
    b_lower = tl.zeros((CX,), tl.float32)
    b_both = tl.zeros((CX,), tl.float32)
    b_s2 = ()
    for j in tl.static_range(SR):
        b_wy = (i_row + j + 0.5) / S
        b_d, b_dstep = enlarge_row(b_d00, b_d01, b_d10, b_d11, b_wy)
        b_c, b_cstep = enlarge_row(b_c00, b_c01, b_c10, b_c11, b_wy)
        b_row = tl.zeros((CX,), tl.float32)
        b_row_right = tl.zeros((CX,), tl.float32)
        for i in tl.static_range(S):
            b_dot = b_c + ((i + 0.5) / S) * b_cstep
            b_y = (b_d + ((i + 0.5) / S) * b_dstep) * b_factor_d[j * S + i] - b_shift_d[j * S + i]
            b_x = b_dot * b_factor_c[j * S + i] - b_shift_c[j * S + i]
            b_g = tl.exp2(b_x) * b_wc[j * S + i] - tl.exp2(b_y) * b_zwd[j * S + i]
            b_s2 += (b_s[j * S + i] + b_g * b_dot,)
            b_row += b_g
            b_row_right += b_share_x[i] * b_g
        b_all += b_row
        b_right += b_row_right
        b_lower += b_share_y[j] * b_row
        b_both += b_share_y[j] * b_row_right
    return b_all, b_right, b_lower, b_both, b_s2


@triton.jit
def _store_seams(p_out, lower, o_edge, b_all, b_right, b_lower, b_both, b_own, b_other, o_next, m_cell):
    """The sums of one slot at the upper and at the lower end of each seam, and the edges, in the seams' units."""
    DTYPE: tl.constexpr = p_out.dtype.element_ty
    m_edge = tl.arange(0, b_all.shape[0]) == 0
    b_left_lower = b_lower - b_both
    b_left_upper = b_all - b_right - b_left_lower
    b_seam_upper = b_own * (b_right - b_both) + b_other * tl.gather(b_left_upper, o_next, 0)
    b_seam_lower = b_own * b_both + b_other * tl.gather(b_left_lower, o_next, 0)
    tl.store(p_out, b_seam_upper.to(DTYPE), mask=m_cell)
    tl.store(p_out + lower, b_seam_lower.to(DTYPE), mask=m_cell)
    tl.store(p_out + o_edge, b_left_upper.to(DTYPE), mask=m_edge)
    tl.store(p_out + lower + o_edge, b_left_lower.to(DTYPE), mask=m_edge)


@triton.jit
def _node_shares(o_cell_axis, nodes_axis, first, S: tl.constexpr, PIXELS: tl.constexpr):
    b_shares = ()
    for i in tl.static_range(PIXELS):
        b_shares += (node_share(o_cell_axis, nodes_axis, (first + i + 0.5) / S),)
    return b_shares


@triton.jit
def _given_class(b_shift_d, b_wd, b_z, PIXELS: tl.constexpr, PIXEL_SHIFT: tl.constexpr):
    """The teacher's shifts, and the factors of its exponentials, with z of a class."""
    b_shift, b_factor = b_shift_d, b_wd
    if PIXEL_SHIFT:
        b_shift = less_log2(b_shift_d, b_z, PIXELS)
    else:
        b_factor = ()
        for n in tl.static_range(PIXELS):
            b_factor += (b_z[n] * b_wd[n],)
    return b_shift, b_factor


@triton.jit
def _loss_bwd(
    p_a, p_r, p_z_map, p_log2_prior, p_label, p_start, p_max, p_factor, p_scale, p_seam, p_s,
    n_class, h, w, n_node, n_cell, i_first, i_stop, group_slots,
    stride_b, stride_c, stride_y, stride_x, to_log2,
    S: tl.constexpr, SR: tl.constexpr, CX: tl.constexpr,
    PIXEL_SHIFT: tl.constexpr, ADJUSTED: tl.constexpr, ADD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    PIXELS: tl.constexpr = SR * S
    o_cell = tl.program_id(0) * CX + tl.arange(0, CX)
    i_part = tl.program_id(1)
    i_row = i_part * SR
    i_g = tl.program_id(2)
    m_cell = o_cell < n_cell
    stride = tl.cast(n_cell, tl.int64)
    b_scale = tl.load(p_scale + i_part * stride + o_cell, mask=m_cell, other=0.0)
    if tl.max(b_scale, 0) == 0:
        return  # `adjoint` reads nothing of a cell without a scale

    o_b, o_cy, o_cx = cell_position(o_cell, h, w)
    o_00, o_01, o_10, o_11 = cell_nodes(o_b, o_cy, o_cx, h, w)
    m_pixel = inside_image(m_cell, o_cy, o_cx, i_row, h, w, S, PIXELS)
    p_z = image_pixels(p_z_map, o_b, o_cy, o_cx, i_row, stride_b, stride_y, stride_x, S)

    i_pixel = i_row * S * stride
    b_factor_d, b_factor_c, b_shift_d, b_shift_c = load_streams(
        p_r, p_max, i_pixel, stride, o_cell, m_cell, to_log2, S, PIXELS, PIXEL_SHIFT
    )
    b_wd = load_pixels(p_factor + i_pixel + o_cell, stride, m_cell, PIXELS)
    b_wc = load_pixels(p_factor + (i_pixel + S * S * stride) + o_cell, stride, m_cell, PIXELS)
    b_own, b_other = _seam_units(p_scale + i_part * stride, b_scale, o_cell, n_cell, CX)
    o_next = tl.minimum(tl.arange(0, CX) + 1, CX - 1)
    # Behind a row of seam sums stand the edges: what the first cell of each program has for the seam before it.
    row = stride + tl.num_programs(0)
    o_edge = n_cell + tl.program_id(0) - o_cell
    b_s = full_pixels(0.0, CX, PIXELS)
    b_share_x, b_share_y = _node_shares(o_cx, w, 0, S, S), _node_shares(o_cy, h, i_row, S, SR)

    i_lo = i_first + i_g * group_slots
    i_hi = tl.minimum(i_lo + group_slots, i_stop)
    c_first, c_last = classes_of(p_label, i_lo, i_hi, n_class)
    lower = (i_stop - i_first) * row
    for c in range(c_first, c_last + 1):
        k_lo = tl.maximum(tl.load(p_start + c), i_lo)
        k_hi = tl.minimum(tl.load(p_start + c + 1), i_hi)
        b_z = load_image(p_z + c * tl.cast(stride_c, tl.int64), m_pixel, stride_y, stride_x, S, PIXELS)
        b_shift_x = less_log2_prior(b_shift_c, p_log2_prior + c, PIXELS, ADJUSTED)
        b_shift_y, b_zwd = _given_class(b_shift_d, b_wd, b_z, PIXELS, PIXEL_SHIFT)
        p_slot = p_a + (k_lo - i_first).to(tl.int64) * 2 * n_node
        p_out = p_seam + (i_part * 2 * lower + (k_lo - i_first) * row) + o_cell
        for _ in tl.range(k_lo, k_hi, num_stages=STAGES):
            b_d00, b_d01, b_d10, b_d11, b_c00, b_c01, b_c10, b_c11 = load_nodes(p_slot, o_00, o_01, o_10, o_11, m_cell)
            b_all, b_right, b_lower, b_both, b_s = _cell_sums(
                b_d00, b_d01, b_d10, b_d11, b_c00, b_c01, b_c10, b_c11, b_factor_d, b_factor_c, b_shift_y, b_shift_x,
                b_zwd, b_wc, b_share_x, b_share_y, b_s, i_row, S, SR, CX,
            )  # fmt: skip
            _store_seams(p_out, lower, o_edge, b_all, b_right, b_lower, b_both, b_own, b_other, o_next, m_cell)
            p_slot += 2 * tl.cast(n_node, tl.int64)
            p_out += row
    p_sum = p_s + (i_g * (S * S) + i_row * S) * stride + o_cell
    store_pixels(p_sum, stride, b_s, m_cell, PIXELS, ADD)


class Forward(NamedTuple):
    """What the forward leaves for the gradient."""

    cells: Cells
    z_BCHW: Tensor
    log2_prior_C: Tensor
    adjusted: bool  # by a class prior
    rows: Tensor  # [M, 2, D], teacher and student
    r: Tensor  # [2, S*S, cells]
    bank: SortedBank
    logits: NodeLogits
    largest: Tensor | None  # [2, S*S, cells], or the shift is 1/t for all
    factor: Tensor  # [2, S*S, cells]: w r/Dn and w r/L of the pixels that count, in units of scale
    scale: Tensor  # [parts, cells]
    to_log2: float


def gradient(forward: Forward) -> Tensor:
    """dloss/de of the student, [M, D] float32, still without the factor 1 / (t sum w)."""
    cells, rows = forward.cells, forward.rows
    # Sums are scaled, so fp16's 11 bits are safe for them, and better than bf16's 8 also where the inputs are bf16.
    dtype = torch.float32 if rows.dtype == torch.float32 else torch.float16
    parts = cells.S // BACKWARD_ROWS[cells.S]
    s = scratch(GROUPS, cells.S**2, cells.count, like=rows)
    grad_MD: Tensor | None = None
    for start, stop, a in forward.logits:
        node_sum = scratch(stop - start, cells.nodes, like=rows, dtype=dtype)
        for first, last in ranges(start, stop, SEAM_SLOTS[dtype]):
            mine = slice(first - start, last - start)
            seam = scratch(parts, 2, last - first, adjoint.seam_row(cells), like=rows, dtype=dtype)
            _launch_bwd(forward, a[mine], first, last, seam, s)
            adjoint.fold(seam, forward.scale, cells, out=node_sum[mine])
            del seam  # before the next range, and the product, take its memory
        slots = forward.bank.unit_rows(start, stop, dtype)
        if grad_MD is None:
            grad_MD = matmul(node_sum.T, slots, out=scratch(cells.nodes, rows.shape[2], like=rows))
        else:
            add_matmul(node_sum.T, slots, out=grad_MD)
        del node_sum
    assert grad_MD is not None  # a bank has a slot
    adjoint.project(grad_MD, rows[:, 1], forward.r[1], s, forward.scale, cells)
    return grad_MD


def _launch_bwd(forward: Forward, a: Tensor, first: int, last: int, seam: Tensor, s: Tensor) -> None:
    cells, bank, z = forward.cells, forward.bank, forward.z_BCHW
    rows = BACKWARD_ROWS[cells.S]
    _loss_bwd[(triton.cdiv(cells.count, SEAM_CELLS), cells.S // rows, GROUPS)](
        *(a, forward.r, z, forward.log2_prior_C, bank.label_K, bank.start_C1),
        *(forward.r if forward.largest is None else forward.largest, forward.factor, forward.scale, seam, s),
        *(z.shape[1], cells.h, cells.w, cells.nodes, cells.count),
        *(first, last, triton.cdiv(last - first, GROUPS), *z.stride(), forward.to_log2),
        *(cells.S, rows, SEAM_CELLS, forward.largest is not None, forward.adjusted, first > 0, STAGES),
        num_warps=1,
        maxnreg=MAX_REGISTERS[cells.S],
        **LAUNCH,
    )

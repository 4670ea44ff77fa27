"""The adjoint of interpolated logits: from a gradient per pixel and slot back to the nodes.

With nodes e_m, weights w_m(x), e(x) = sum_m w_m(x) e_m, r = 1 / |e(x)|, unit slots b_k, cos_k = r e(x).b_k, and for
G_k(x) = dloss / dcos_k and s(x) = sum_k G_k(x) cos_k(x)

    dloss/de_m = sum_k b_k sum_x w_m(x) r(x) G_k(x)  -  sum_x w_m(x) r(x)^2 s(x) sum_j w_j(x) e_j
                           `fold`, then one GEMM                `project`: a stencil over the 3 x 3 nodes around m

Nothing is added by two programs at once: per-pixel kernels write sums per seam (`instance_gradient.py`), and nodes
gather from the seams above and below them, always in the same order. No atomics, and two runs agree bit for bit.

Units: r spans the range of 1/|e|, which half precision does not. Each cell therefore divides by its own `scale`, about
its largest r, each seam by the larger scale of its two cells, each node by the largest of its four, and `project`
multiplies back in float32.
"""

import triton
import triton.language as tl
from torch import Tensor

from dida_kernels.fused.cells.geometry import Cells, cell_position, node_share, scratch
from dida_kernels.fused.launch import LAUNCH

SEAM_CELLS = 32  # the cells of a program that sums to seams: the lanes of a warp
FOLD_NODES, FOLD_K = 256, 8  # the ratios of scales are loaded once for FOLD_K slots
PAIR_CELLS = 128
PROJECT_NODES, PROJECT_D = 16, 128


@triton.jit
def _cells_of_node(o_m, h, w):
    """The cell whose bottom right node is node m; the other three of its cells follow at +1, +(w+1), +(w+2)."""
    o_b = o_m // (h * w)
    o_y = (o_m - o_b * (h * w)) // w
    o_x = o_m - (o_b * h + o_y) * w
    return (o_b * (h + 1) + o_y) * (w + 1) + o_x, o_y, o_x


@triton.jit
def _fold(
    p_seam, p_scale, p_sum,
    h, w, n_node, n_cell, n_k, row,
    PARTS: tl.constexpr, CX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    i_k = tl.program_id(1) * BLOCK_K
    m_m = o_m < n_node
    stride = tl.cast(row, tl.int64)
    o_cell, _, _ = _cells_of_node(o_m, h, w)
    b_sigma = tl.zeros((BLOCK_M,), tl.float32)
    b_scale, b_next, p_from, o_edge, m_seam, m_edge = (), (), (), (), (), ()
    for part in tl.static_range(PARTS):
        for side in tl.static_range(2):
            # node m is the lower end (1) of the seam behind its first cell, the upper end (0) of the one a row below
            o_from = o_cell + (1 - side) * (w + 1)
            b_before = tl.load(p_scale + part * n_cell + o_from, mask=m_m, other=0.0)
            b_behind = tl.load(p_scale + part * n_cell + o_from + 1, mask=m_m, other=0.0)
            b_unit = tl.maximum(b_before, b_behind)
            # the cell behind the seam is the first of the next program
            m_next = o_from % CX == CX - 1
            b_sigma = tl.maximum(b_sigma, b_unit)
            b_scale += (b_unit,)
            b_next += (b_behind,)
            p_from += (p_seam + ((part * 2 + side) * n_k + i_k) * stride + o_from,)
            # a program without a scale has stored nothing
            m_seam += (m_m & (tl.where(m_next, b_before, b_unit) > 0),)
            m_edge += (m_m & m_next & (b_behind > 0),)
            o_edge += (n_cell + o_from // CX + 1 - o_from,)
    b_inverse = 1.0 / tl.maximum(b_sigma, 1e-30)
    for k in range(0, tl.minimum(n_k - i_k, BLOCK_K)):
        b_sum = tl.zeros((BLOCK_M,), tl.float32)
        for c in tl.static_range(PARTS * 2):
            b_seam = tl.load(p_from[c] + k * stride, mask=m_seam[c], other=0.0).to(tl.float32)
            b_edge = tl.load(p_from[c] + k * stride + o_edge[c], mask=m_edge[c], other=0.0).to(tl.float32)
            b_sum += b_seam * (b_scale[c] * b_inverse) + b_edge * (b_next[c] * b_inverse)
        tl.store(p_sum + (i_k + k) * tl.cast(n_node, tl.int64) + o_m, b_sum.to(p_sum.dtype.element_ty), mask=m_m)


def seam_row(cells: Cells) -> int:
    """Numbers a slot has for one end of all seams: one per cell, then the edges, one per program."""
    return cells.count + triton.cdiv(cells.count, SEAM_CELLS)


def fold(seam: Tensor, scale: Tensor, cells: Cells, out: Tensor) -> None:
    """Sums per seam [parts, 2 ends, K, seam_row] -> `out`, sums per node [K, M].

    In units of the seam and of the node, made of scale [parts, cells] (see the module).
    """
    parts, _, slots, row = seam.shape
    grid = (triton.cdiv(cells.nodes, FOLD_NODES), triton.cdiv(slots, FOLD_K))
    _fold[grid](
        *(seam, scale, out, cells.h, cells.w, cells.nodes, cells.count, slots, row),
        *(parts, SEAM_CELLS, FOLD_NODES, FOLD_K),
        num_warps=4,
        **LAUNCH,
    )


@triton.jit
def _node_pairs(
    p_r, p_s, p_scale, p_pair,
    h, w, n_cell,
    S: tl.constexpr, PARTS: tl.constexpr, GROUPS: tl.constexpr, CX: tl.constexpr,
):  # fmt: skip
    o_cell = tl.program_id(0) * CX + tl.arange(0, CX)
    m_cell = o_cell < n_cell
    stride = tl.cast(n_cell, tl.int64)
    _, o_cy, o_cx = cell_position(o_cell, h, w)
    b_pair = ()
    for _ in tl.static_range(9):
        b_pair += (tl.zeros((CX,), tl.float32),)
    for j in tl.static_range(S):
        b_unit = tl.load(p_scale + (j * PARTS // S) * n_cell + o_cell, mask=m_cell, other=0.0)
        b_wy = node_share(o_cy, h, (j + 0.5) / S)
        for i in tl.static_range(S):
            b_wx = node_share(o_cx, w, (i + 0.5) / S)
            o_pixel = (j * S + i) * stride + o_cell
            b_s = tl.zeros((CX,), tl.float32)
            for g in tl.static_range(GROUPS):
                b_s += tl.load(p_s + g * (S * S) * stride + o_pixel, mask=m_cell, other=0.0)
            b_r = tl.load(p_r + o_pixel, mask=m_cell, other=0.0)
            b_c = b_r * b_r * tl.where(b_unit > 0, b_s * b_unit, 0.0)  # without a scale s may never have been stored
            b_y = (b_c * (1 - b_wy) * (1 - b_wy), b_c * (1 - b_wy) * b_wy, b_c * b_wy * b_wy)
            b_x = ((1 - b_wx) * (1 - b_wx), (1 - b_wx) * b_wx, b_wx * b_wx)
            b_next = ()
            for n in tl.static_range(9):
                b_next += (b_pair[n] + b_y[n // 3] * b_x[n % 3],)
            b_pair = b_next
    for n in tl.static_range(9):
        tl.store(p_pair + n * stride + o_cell, b_pair[n], mask=m_cell)


@triton.jit
def _neighbour_weight(p_pair, m_m, w, n_cell, DY: tl.constexpr, DX: tl.constexpr):
    """sum_x w_m w_j c(x) over the cells that node m shares with its neighbour j at (DY, DX).

    Seen from m those are the cells before it (side 0), behind it (side 1), or both. A pair of weights along an axis is
    stored as 0: both the upper node's, 1: one of each, 2: both the lower node's; m is the lower node of a cell before.
    """
    b_weight = tl.zeros(m_m.shape, tl.float32)
    for y in tl.static_range(2):
        for x in tl.static_range(2):
            if (DY == 0 or DY == 2 * y - 1) and (DX == 0 or DX == 2 * x - 1):
                pair = (2 - 2 * y if DY == 0 else 1) * 3 + (2 - 2 * x if DX == 0 else 1)
                p_cell = p_pair + pair * tl.cast(n_cell, tl.int64) + (y * (w + 1) + x)
                b_weight += tl.load(p_cell, mask=m_m, other=0.0)
    return b_weight


@triton.jit
def _project(
    p_grad, p_e, p_pair, p_scale,
    D, h, w, n_node, n_cell, stride_m,
    PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < n_node
    o_cell, o_y, o_x = _cells_of_node(o_m, h, w)
    b_sigma = tl.zeros((BLOCK_M,), tl.float32)
    for part in tl.static_range(PARTS):
        for c in tl.static_range(4):
            p_cell = p_scale + part * n_cell + o_cell + c // 2 * (w + 1) + c % 2
            b_sigma = tl.maximum(b_sigma, tl.load(p_cell, mask=m_m, other=0.0))
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    m = m_m[:, None] & (o_d < D)
    p_out = p_grad + o_m.to(tl.int64)[:, None] * D + o_d
    b_grad = tl.load(p_out, mask=m, other=0.0) * b_sigma[:, None]
    for n in tl.static_range(9):
        b_weight = _neighbour_weight(p_pair + o_cell, m_m, w, n_cell, n // 3 - 1, n % 3 - 1)
        o_ny = o_y + (n // 3 - 1)
        o_nx = o_x + (n % 3 - 1)
        m_e = m & ((o_ny >= 0) & (o_ny < h) & (o_nx >= 0) & (o_nx < w))[:, None]
        o_row = (o_m + (n // 3 - 1) * w + (n % 3 - 1)).to(tl.int64) * stride_m
        b_e = tl.load(p_e + o_row[:, None] + o_d, mask=m_e, other=0.0).to(tl.float32)
        b_grad -= b_weight[:, None] * b_e
    tl.store(p_out, b_grad, mask=m)


def project(grad_MD: Tensor, embed_MD: Tensor, r: Tensor, s: Tensor, scale: Tensor, cells: Cells) -> None:
    """Finish dloss/de in place: grad holds the GEMM's part in units of the node; subtract the stencil.

    embed [M, D], D contiguous; r [S*S, cells]; s [groups, S*S, cells] in units of scale [parts, cells].
    """
    pair = scratch(9, cells.count, like=grad_MD)
    _node_pairs[(triton.cdiv(cells.count, PAIR_CELLS),)](
        *(r, s, scale, pair, cells.h, cells.w, cells.count, cells.S, len(scale), len(s), PAIR_CELLS),
        num_warps=4,
        **LAUNCH,
    )
    nodes, D = grad_MD.shape
    _project[(triton.cdiv(nodes, PROJECT_NODES), triton.cdiv(D, PROJECT_D))](
        *(grad_MD, embed_MD, pair, scale, D, cells.h, cells.w, nodes, cells.count, embed_MD.stride(0)),
        *(len(scale), PROJECT_NODES, PROJECT_D),
        num_warps=4,
        **LAUNCH,
    )

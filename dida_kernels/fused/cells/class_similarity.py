"""Eq. 5 and 9 in one pass over the bank: what the bank says of the class of every pixel, without a [N, K] tensor.

    u_k = exp((d_k - 1) / t)        S_c = sum of u_k over the slots k of class c        q_ga[c] = S_c / sum_c S_c

d_k is the cosine of the enlarged embedding with slot k, interpolated from the nodes as in the instance loss, whose
docstring has the why of layout and shift. The bank is sorted by class, so S_c is one running sum in registers that is
written where the class ends: straight to the output [B, C, H, W], which a second, small kernel divides by its total.
A class prior is a factor on S_c, which that kernel knows too.
The slots are not divided among programs, so every S_c has one writer; a class cut by a chunk is added to by the next.

    symbol     name          shape (M nodes of the feature grid; cells: see geometry.py)
    e          embed_BDhw    [B, D, h, w] any strides -> rows [M, 1, D]
    e.b        a             [slots of a chunk, M, 1] float32, at the nodes
    1 / |e|    r             [1, S*S, cells], of the pixels
    q_ga       q_ga_BCHW     [B, C, H, W] float32, H = S h, W = S w

    memory (M nodes, N pixels, 384 slots a chunk)                 B=2, 512 x 512, S=4, D=256, K=300, C=19
    rows of the embedding      M D      half or float               17 MB (bf16)   34 MB (fp32)
    node logits                M Kc     float                       39
    1 / |e(x)|                 N        float                        2
    the output                 N C      float                       40

Not differentiable: it is only used as a pseudo-label.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dida_kernels.equations import class_similarity
from dida_kernels.fused.banks import log2_prior, sort_bank
from dida_kernels.fused.cells import interpolation
from dida_kernels.fused.cells.geometry import (
    Cells,
    cell_nodes,
    cell_position,
    enlarge_row,
    full_pixels,
    image_pixels,
    inside_image,
    load_pixels,
    refuses_scale,
    scratch,
)
from dida_kernels.fused.cells.node_logits import NodeLogits, classes_of
from dida_kernels.fused.launch import LAUNCH, refuses_device

CX, NUM_WARPS = 128, 4
ROWS = {2: 2, 4: 2, 8: 1}  # pixel rows of a cell that a thread owns
STAGES = 4  # slots under way (see instance_loss.py); on an H100, K = 300: 0.181 ms with 2, 0.108 with 3, 0.095 with 4
NORMALISE_PIXELS = 512


@triton.jit
def _class_sums(
    p_a, p_r, p_label, p_start, p_max, p_out,
    n_class, h, w, n_node, n_cell, i_first, i_stop,
    to_log2,
    S: tl.constexpr, SR: tl.constexpr, CX: tl.constexpr, PIXEL_SHIFT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    PIXELS: tl.constexpr = SR * S
    o_cell = tl.program_id(0) * CX + tl.arange(0, CX)
    i_row = tl.program_id(1) * SR
    m_cell = o_cell < n_cell
    stride = tl.cast(n_cell, tl.int64)
    plane = tl.cast(h, tl.int64) * w * (S * S)
    o_b, o_cy, o_cx = cell_position(o_cell, h, w)
    o_00, o_01, o_10, o_11 = cell_nodes(o_b, o_cy, o_cx, h, w)
    m_pixel = inside_image(m_cell, o_cy, o_cx, i_row, h, w, S, PIXELS)
    p_first = image_pixels(p_out, o_b, o_cy, o_cx, i_row, n_class * plane, w * S, 1, S)
    b_r = load_pixels(p_r + i_row * S * stride + o_cell, stride, m_cell, PIXELS)
    if PIXEL_SHIFT:
        b_max = load_pixels(p_max + i_row * S * stride + o_cell, stride, m_cell, PIXELS)

    c_first, c_last = classes_of(p_label, i_first, i_stop, n_class)
    for c in range(c_first, c_last + 1):
        k_start = tl.load(p_start + c)
        k_lo = tl.maximum(k_start, i_first)
        k_hi = tl.minimum(tl.load(p_start + c + 1), i_stop)
        b_S = full_pixels(0.0, CX, PIXELS)
        p_slot = p_a + (k_lo - i_first).to(tl.int64) * n_node
        for _ in tl.range(k_lo, k_hi, num_stages=STAGES):
            b_00 = tl.load(p_slot + o_00, mask=m_cell, other=0.0)
            b_01 = tl.load(p_slot + o_01, mask=m_cell, other=0.0)
            b_10 = tl.load(p_slot + o_10, mask=m_cell, other=0.0)
            b_11 = tl.load(p_slot + o_11, mask=m_cell, other=0.0)
            b_S2 = ()
            for j in tl.static_range(SR):
                b_d, b_step = enlarge_row(b_00, b_01, b_10, b_11, (i_row + j + 0.5) / S)
                for i in tl.static_range(S):
                    b_y = (b_d + ((i + 0.5) / S) * b_step) * (b_r[j * S + i] * to_log2)
                    if PIXEL_SHIFT:
                        b_y -= b_max[j * S + i]
                    else:
                        b_y -= to_log2
                    b_S2 += (b_S[j * S + i] + tl.exp2(b_y),)
            b_S = b_S2
            p_slot += tl.cast(n_node, tl.int64)
        m_begun = tl.broadcast_to(k_start, (CX,)) < i_first  # in an earlier chunk, which has left its part of the sum
        for n in tl.static_range(PIXELS):
            p_pixel = p_first + c * plane + n // S * (w * S) + n % S
            b_earlier = tl.load(p_pixel, mask=m_pixel[n] & m_begun, other=0.0)
            tl.store(p_pixel, b_earlier + b_S[n], mask=m_pixel[n])


@triton.jit
def _normalise(p_out, p_start, p_log2_prior, n_class, plane, BLOCK: tl.constexpr, ADJUSTED: tl.constexpr):
    o_pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = o_pixel < plane
    p_pixel = p_out + tl.program_id(1).to(tl.int64) * n_class * plane + o_pixel
    b_total = tl.zeros((BLOCK,), tl.float32)
    for c in range(0, n_class):
        # nothing was written for a class without slots
        n_slots = tl.load(p_start + c + 1) - tl.load(p_start + c)
        m_class = m & (tl.broadcast_to(n_slots, (BLOCK,)) > 0)
        b_sum = tl.load(p_pixel + c * tl.cast(plane, tl.int64), mask=m_class, other=0.0)
        if ADJUSTED:
            b_sum *= tl.exp2(tl.load(p_log2_prior + c))
        b_total += b_sum
    b_total = tl.where(m, b_total, 1.0)
    for c in range(0, n_class):
        n_slots = tl.load(p_start + c + 1) - tl.load(p_start + c)
        m_class = m & (tl.broadcast_to(n_slots, (BLOCK,)) > 0)
        b_sum = tl.load(p_pixel + c * tl.cast(plane, tl.int64), mask=m_class, other=0.0)
        if ADJUSTED:
            b_sum *= tl.exp2(tl.load(p_log2_prior + c))
        tl.store(p_pixel + c * tl.cast(plane, tl.int64), b_sum / b_total, mask=m)


@torch.library.custom_op("dida::class_similarity_cells", mutates_args=())
def class_similarity_cells(
    embed_BDhw: Tensor, bank_KD: Tensor, label_K: Tensor, log_prior_C: Tensor | None,
    classes: int, temperature: float, height: int, width: int,
) -> Tensor:  # fmt: skip
    B, _, h, w = embed_BDhw.shape
    cells = Cells(B, h, w, height // h)
    with torch.autocast(embed_BDhw.device.type, enabled=False), torch.cuda.device_of(embed_BDhw):
        rows, r = interpolation.rows_and_norms(embed_BDhw, cells=cells)
        bank = sort_bank(bank_KD, label_K, classes)
        logits = NodeLogits(bank, rows)
        largest = interpolation.shifts(logits, r, cells, temperature)
        q_ga_BCHW = scratch(B, classes, height, width, like=r)
        for start, stop, a in logits:
            _class_sums[(triton.cdiv(cells.count, CX), cells.S // ROWS[cells.S])](
                *(a, r, bank.label_K, bank.start_C1, r if largest is None else largest, q_ga_BCHW),
                *(classes, h, w, cells.nodes, cells.count, start, stop, math.log2(math.e) / temperature),
                *(cells.S, ROWS[cells.S], CX, largest is not None, STAGES),
                num_warps=NUM_WARPS,
                **LAUNCH,
            )
        _normalise[(triton.cdiv(height * width, NORMALISE_PIXELS), B)](
            *(q_ga_BCHW, bank.start_C1, log2_prior(log_prior_C, label_K, classes), classes, height * width),
            *(NORMALISE_PIXELS, log_prior_C is not None),
            num_warps=4,
            **LAUNCH,
        )
    return q_ga_BCHW


@class_similarity_cells.register_fake
def _(embed_BDhw, bank_KD, label_K, log_prior_C, classes, temperature, height, width):
    return embed_BDhw.new_empty((embed_BDhw.shape[0], classes, height, width), dtype=torch.float32)


def _refuses(embed_BDhw, bank_KD, label_K, *, size, **_) -> str | None:
    return refuses_device(embed_BDhw) or refuses_scale(embed_BDhw, size)


@class_similarity.implement("triton", refuses=_refuses)
def _class_similarity(embed_BDhw, bank_KD, label_K, *, classes, temperature, size, log_prior_C=None) -> Tensor:
    return class_similarity_cells(embed_BDhw, bank_KD, label_K, log_prior_C, classes, temperature, *size)

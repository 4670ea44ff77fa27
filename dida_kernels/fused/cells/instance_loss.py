"""Eq. 4 - 8 in one pass over the bank: loss and gradient without a [N, K], [N, D] or [N, C] tensor.

For every pixel, with cosines c_k of the student and d_k of the teacher, z the teacher's class probabilities, pi the
student's class prior (1 where there is none), l(k) the class of slot k:

    x_k = (c_k - 1) / t + log pi_l(k)
    v_k = exp(x_k)              L  = sum_k v_k                         q_k     = v_k / L
    u_k = exp((d_k - 1) / t)    Dn = sum_k z_l(k) u_k                  q_hat_k = z_l(k) u_k / Dn
                                Nn = sum_k z_l(k) u_k x_k              loss    = log L - Nn / Dn
                                                         G_k = dloss/dc_k = (q_k - q_hat_k) / t

One exponential per stream and slot. The slots are sorted by class, so z and pi enter once per class, not per slot, and
a z of exactly 0 is a zero weight instead of log 0. A cosine is at most 1, so 1/t is a shift that needs no running
maximum: sums over parts of the bank are plain sums, and chunks and programs merge by adding. In the cold exp(-2/t)
would underflow; there the shift is the pixel's own maximum (`interpolation.shifts`), z included: a slot that z leaves
nothing of may lie so far above the others that they vanish beside it.

A program none of whose pixels has a weight returns at once and stores nothing, so what is stored is read only of pixels
with one. In the gradient such pixels are those without a `scale`.

c_k and d_k are interpolated from the nodes (`interpolation.py`): a thread owns half a cell (S = 4: 8 pixels), keeps
their sums in registers and reads, per slot, the four nodes of its cell, both streams in one 8-byte load each, lanes
side by side. The slots are the thread's own loop: no shuffle, no barrier, no shared memory. What remains is two
exponentials per pixel and slot, and they are what bounds the kernel on sm_80, sm_86 and sm_90.

The gradient, to the student's embedding only, is taken in the forward, where the logits are at hand; the backward is
one scale of a [M, D] tensor.

    symbol       name                     shape (M nodes of the feature grid; cells: see geometry.py)
    e            student, teacher_BDhw    [B, D, h, w] any strides -> rows [M, 2, D], teacher first
    z            z_BCHW               [B, C, H, W] any strides, H = S h, W = S w
    w            weight_BHW               [B, H, W] any strides
    b, l         bank (SortedBank)        unit rows [K, D], classes [K], sorted
    e.b          a                        [slots of a chunk, M, 2] float32, at the nodes
    1 / |e|      r                        [2, S*S, cells], of the pixels
    L, Dn, Nn    sums                     [GROUPS, 3, S*S, cells]

    peak memory, in the gradient (N pixels)                  MB at B=2, 512 x 512, S=4, D=256, K=300
                                                             bfloat16 inputs      float32 inputs
    rows of both embeddings           2 M D  of their dtype  34                   67
    logits at the nodes               2 M Kc float           79 (Kc <= 384)       79
    7 numbers a pixel                 7 N    float           15                   15
    seam sums                         2 M Kg half, float     41 (Kg <= 384)       41 (Kg <= 192)
    node sums                         M Kc   half, float     20                   39
    in all (K = 100 000: 263, 322)                           188                  241
    kept for the backward             M D    float           34                   34
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dida_kernels.fused.banks import classes_to_ask, log2_prior, mass_on_slots, sort_bank
from dida_kernels.fused.cells import interpolation
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
    load_streams,
    scratch,
    store_pixels,
)
from dida_kernels.fused.cells.instance_gradient import BACKWARD_ROWS, Forward, gradient
from dida_kernels.fused.cells.node_logits import NodeLogits, classes_of
from dida_kernels.fused.launch import LAUNCH
from dida_kernels.fused.scaled import scaled

# One thread owns half a cell (S = 4): 128 registers, so 4 CTAs or 16 warps share an SM. 96 are enough for 20 warps, but
# with loads under way they made it slower, 0.170 ms instead of 0.146. Compilers differ by a few, which would make it 3
# CTAs, and are therefore told; with a shift for every pixel the cap would spill.
CX, NUM_WARPS = 128, 4
FORWARD_REGISTERS = {2: 80, 4: 128, 8: 128}
REDUCE_REGISTERS = {2: 48, 4: 168, 8: 168}
FORWARD_ROWS = {2: 2, 4: 2, 8: 1}  # pixel rows of a cell that a thread owns

# Slots under way while one is worked on. A thread waits some 1 000 cycles for a node and has work for 130 of them, and
# there are registers for 16 to 20 warps an SM: without, the loop waits. They arrive in shared memory. On an H100 with
# K = 300 in bfloat16: 0.198 ms without, 0.195 with 2, 0.146 with 3, 0.144 with 4.
STAGES = 4

# Ranges of slots worked on at once: 12 CTAs for each of 132 SMs (sm_90), 19 for each of 82 (sm_86), at 2 x 512 x 512.
GROUPS = 3

# Corner sums are at most 64 pixels' worth of |q - q_hat| <= 1 in units of the largest r. In half precision a unit of
# 2^8 leaves them far from overflow and lifts slots of q = 1e-6 out of the subnormal numbers.
UNITS_PER_SCALE = tl.constexpr(256.0)
LN2 = tl.constexpr(math.log(2.0))
PARTS = 256  # partial sums added up at a time


@triton.jit
def _heaviest(b_weight, CX: tl.constexpr, PIXELS: tl.constexpr):
    b_heaviest = tl.zeros((CX,), tl.float32)
    for n in tl.static_range(PIXELS):
        b_heaviest = tl.maximum(b_heaviest, b_weight[n])
    return tl.max(b_heaviest, 0)


@triton.jit
def _plus_times(b_sum, b_factor, b_of_class, PIXELS: tl.constexpr):
    b_plus = ()
    for n in tl.static_range(PIXELS):
        b_plus += (b_sum[n] + b_factor[n] * b_of_class[n],)
    return b_plus


@triton.jit
def _where_mass(
    b_D, p_z, m_pixel, p_start, n_class, stride_c, stride_y, stride_x, S: tl.constexpr, PIXELS: tl.constexpr
):
    """Dn, and 0 where too little of z is on classes with slots: such a pixel has no q_hat and does not count."""
    n_asked = classes_to_ask(p_start, n_class)
    b_kept = ()
    for n in tl.static_range(PIXELS):
        p_zn = p_z + n // S * stride_y + n % S * stride_x
        b_kept += (tl.where(mass_on_slots(p_zn, stride_c, m_pixel[n], p_start, n_asked), b_D[n], 0.0),)
    return b_kept


@triton.jit
def _loss_fwd(
    p_a, p_r, p_z_map, p_weight, p_log2_prior, p_label, p_start, p_max, p_sum,
    n_class, h, w, n_node, n_cell, i_first, i_stop, group_slots,
    stride_b, stride_c, stride_y, stride_x, stride_wb, stride_wy, stride_wx, to_log2,
    S: tl.constexpr, SR: tl.constexpr, CX: tl.constexpr,
    PIXEL_SHIFT: tl.constexpr, ADJUSTED: tl.constexpr, ADD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    PIXELS: tl.constexpr = SR * S
    o_cell = tl.program_id(0) * CX + tl.arange(0, CX)
    i_row, i_g = tl.program_id(1) * SR, tl.program_id(2)
    m_cell, stride = o_cell < n_cell, tl.cast(n_cell, tl.int64)
    o_b, o_cy, o_cx = cell_position(o_cell, h, w)
    o_00, o_01, o_10, o_11 = cell_nodes(o_b, o_cy, o_cx, h, w)
    m_pixel = inside_image(m_cell, o_cy, o_cx, i_row, h, w, S, PIXELS)
    p_z = image_pixels(p_z_map, o_b, o_cy, o_cx, i_row, stride_b, stride_y, stride_x, S)
    p_w = image_pixels(p_weight, o_b, o_cy, o_cx, i_row, stride_wb, stride_wy, stride_wx, S)
    if _heaviest(load_image(p_w, m_pixel, stride_wy, stride_wx, S, PIXELS), CX, PIXELS) == 0:
        return

    b_factor_d, b_factor_c, b_shift_d, b_shift_c = load_streams(
        p_r, p_max, i_row * S * stride, stride, o_cell, m_cell, to_log2, S, PIXELS, PIXEL_SHIFT
    )
    b_L, b_D, b_N = full_pixels(0.0, CX, PIXELS), full_pixels(0.0, CX, PIXELS), full_pixels(0.0, CX, PIXELS)

    i_lo = i_first + i_g * group_slots
    i_hi = tl.minimum(i_lo + group_slots, i_stop)
    c_first, c_last = classes_of(p_label, i_lo, i_hi, n_class)
    for c in range(c_first, c_last + 1):
        k_lo, k_hi = tl.maximum(tl.load(p_start + c), i_lo), tl.minimum(tl.load(p_start + c + 1), i_hi)
        p_zc = p_z + c * tl.cast(stride_c, tl.int64)
        b_shift_x, b_shift_y = less_log2_prior(b_shift_c, p_log2_prior + c, PIXELS, ADJUSTED), b_shift_d
        if PIXEL_SHIFT:
            b_shift_y = less_log2(b_shift_d, load_image(p_zc, m_pixel, stride_y, stride_x, S, PIXELS), PIXELS)
        b_S, b_R = full_pixels(0.0, CX, PIXELS), full_pixels(0.0, CX, PIXELS)
        p_slot = p_a + (k_lo - i_first).to(tl.int64) * 2 * n_node
        for _ in tl.range(k_lo, k_hi, num_stages=STAGES):
            b_d00, b_d01, b_d10, b_d11, b_c00, b_c01, b_c10, b_c11 = load_nodes(p_slot, o_00, o_01, o_10, o_11, m_cell)
            b_L2, b_S2, b_R2 = (), (), ()
            for j in tl.static_range(SR):
                b_wy = (i_row + j + 0.5) / S
                b_d, b_dstep = enlarge_row(b_d00, b_d01, b_d10, b_d11, b_wy)
                b_c, b_cstep = enlarge_row(b_c00, b_c01, b_c10, b_c11, b_wy)
                for i in tl.static_range(S):
                    b_y = (b_d + ((i + 0.5) / S) * b_dstep) * b_factor_d[j * S + i] - b_shift_y[j * S + i]
                    b_x = (b_c + ((i + 0.5) / S) * b_cstep) * b_factor_c[j * S + i] - b_shift_x[j * S + i]
                    b_u = tl.exp2(b_y)
                    b_L2 += (b_L[j * S + i] + tl.exp2(b_x),)
                    b_S2 += (b_S[j * S + i] + b_u,)
                    b_R2 += (b_R[j * S + i] + b_u * b_x,)
            b_L, b_S, b_R = b_L2, b_S2, b_R2
            p_slot += 2 * tl.cast(n_node, tl.int64)
        b_z = full_pixels(1.0, CX, PIXELS)
        if not PIXEL_SHIFT:
            b_z = load_image(p_zc, m_pixel, stride_y, stride_x, S, PIXELS)
        b_D, b_N = _plus_times(b_D, b_z, b_S, PIXELS), _plus_times(b_N, b_z, b_R, PIXELS)
    b_D = _where_mass(b_D, p_z, m_pixel, p_start, n_class, stride_c, stride_y, stride_x, S, PIXELS)
    i_sum = (i_g * (3 * S * S) + i_row * S) * stride
    store_pixels(p_sum + i_sum + o_cell, stride, b_L, m_cell, PIXELS, ADD)
    store_pixels(p_sum + (i_sum + S * S * stride) + o_cell, stride, b_D, m_cell, PIXELS, ADD)
    store_pixels(p_sum + (i_sum + 2 * S * S * stride) + o_cell, stride, b_N, m_cell, PIXELS, ADD)


@triton.jit
def _loss_reduce(
    p_sum, p_r, p_weight, p_loss, p_mass, p_factor, p_scale,
    h, w, n_cell,
    stride_b, stride_y, stride_x,
    S: tl.constexpr, SR: tl.constexpr, CX: tl.constexpr, GROUPS: tl.constexpr, NEED_GRAD: tl.constexpr,
):  # fmt: skip
    PIXELS: tl.constexpr = SR * S
    o_cell = tl.program_id(0) * CX + tl.arange(0, CX)
    i_part = tl.program_id(1)
    i_row = i_part * SR
    m_cell = o_cell < n_cell
    stride = tl.cast(n_cell, tl.int64)
    o_b, o_cy, o_cx = cell_position(o_cell, h, w)
    m_pixel = inside_image(m_cell, o_cy, o_cx, i_row, h, w, S, PIXELS)
    p_w = image_pixels(p_weight, o_b, o_cy, o_cx, i_row, stride_b, stride_y, stride_x, S)
    o_first = i_row * S * stride + o_cell
    b_loss = tl.zeros((CX,), tl.float32)
    b_mass = tl.zeros((CX,), tl.float32)
    b_scale = tl.zeros((CX,), tl.float32)
    b_wd, b_wc = (), ()
    for n in tl.static_range(PIXELS):
        b_w = tl.load(p_w + n // S * stride_y + n % S * stride_x, mask=m_pixel[n], other=0.0).to(tl.float32)
        m_weighs = b_w > 0  # of other pixels the sums may never have been stored
        b_L = tl.zeros((CX,), tl.float32)
        b_D = tl.zeros((CX,), tl.float32)
        b_N = tl.zeros((CX,), tl.float32)
        for g in tl.static_range(GROUPS):
            p_L = p_sum + (g * 3 * S * S + n) * stride + o_first
            b_L += tl.load(p_L, mask=m_weighs, other=0.0)
            b_D += tl.load(p_L + S * S * stride, mask=m_weighs, other=0.0)
            b_N += tl.load(p_L + 2 * S * S * stride, mask=m_weighs, other=0.0)
        m_counts = b_D != 0  # Dn = 0: no mass on slots; NaN is seen in the loss
        b_L = tl.where(m_counts, b_L, 1.0)
        b_D = tl.where(m_counts, b_D, 1.0)
        b_loss += tl.where(m_counts, b_w * (tl.log(b_L) - LN2 * (b_N / b_D)), 0.0)
        b_mass += tl.where(m_counts, b_w, 0.0)
        if NEED_GRAD:
            b_r = b_w * tl.load(p_r + (S * S + n) * stride + o_first, mask=m_counts, other=0.0)
            b_scale = tl.maximum(b_scale, b_r / UNITS_PER_SCALE)
            b_wd += (b_r / b_D,)
            b_wc += (b_r / b_L,)
    i_out = i_part * tl.num_programs(0) + tl.program_id(0)
    tl.store(p_loss + i_out, tl.sum(b_loss, 0))
    tl.store(p_mass + i_out, tl.sum(b_mass, 0))
    if NEED_GRAD:
        tl.store(p_scale + i_part * stride + o_cell, b_scale, mask=m_cell)
        b_inverse = 1.0 / tl.maximum(b_scale, 1e-30)  # no pixel counts: 0 in units of anything
        for n in tl.static_range(PIXELS):
            tl.store(p_factor + n * stride + o_first, b_wd[n] * b_inverse, mask=m_cell)
            tl.store(p_factor + (S * S + n) * stride + o_first, b_wc[n] * b_inverse, mask=m_cell)


@triton.jit
def _weighted_mean(p_loss, p_mass, p_mean, p_grad_scale, n_part, temperature, PARTS: tl.constexpr):
    """sum w loss / sum w and 1 / (t sum w) of what the programs have summed; in float64, as a sum of weights 0 and 1 is
    a count, which float32 loses."""
    b_loss = tl.zeros((PARTS,), tl.float64)
    b_mass = tl.zeros((PARTS,), tl.float64)
    for i in range(0, n_part, PARTS):
        o = i + tl.arange(0, PARTS)
        b_loss += tl.load(p_loss + o, mask=o < n_part, other=0.0).to(tl.float64)
        b_mass += tl.load(p_mass + o, mask=o < n_part, other=0.0).to(tl.float64)
    mass = tl.sum(b_mass, 0)
    mass = tl.where(mass > 0, mass, 1.0)
    tl.store(p_mean, (tl.sum(b_loss, 0) / mass).to(tl.float32))
    tl.store(p_grad_scale, (1.0 / (temperature * mass)).to(tl.float32))


@torch.library.custom_op("dida::instance_loss_cells", mutates_args=())
def instance_loss_cells(
    student_BDhw: Tensor, teacher_BDhw: Tensor, z_BCHW: Tensor, weight_BHW: Tensor,
    bank_KD: Tensor, label_K: Tensor, log_prior_C: Tensor | None, temperature: float, need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The loss, its unscaled gradient [M, D] float32 to the student ([0, D] unless needed), and the scale of it."""
    B, D, h, w = student_BDhw.shape
    cells = Cells(B, h, w, z_BCHW.shape[2] // h)
    to_log2 = math.log2(math.e) / temperature
    with torch.autocast(student_BDhw.device.type, enabled=False), torch.cuda.device_of(student_BDhw):
        rows, r = interpolation.rows_and_norms(teacher_BDhw, student_BDhw, cells=cells)
        C = z_BCHW.shape[1]
        bank, log2_prior_C = sort_bank(bank_KD, label_K, C), log2_prior(log_prior_C, label_K, C)
        logits = NodeLogits(bank, rows)
        largest = interpolation.shifts(logits, r, cells, temperature, (z_BCHW, log2_prior_C))

        sums = scratch(GROUPS, 3, cells.S**2, cells.count, like=r)
        fwd_rows, bwd_rows = FORWARD_ROWS[cells.S], BACKWARD_ROWS[cells.S]
        blocks = triton.cdiv(cells.count, CX)
        for start, stop, a in logits:
            _loss_fwd[(blocks, cells.S // fwd_rows, GROUPS)](
                *(a, r, z_BCHW, weight_BHW, log2_prior_C, bank.label_K, bank.start_C1),
                *(r if largest is None else largest, sums, C, h, w, cells.nodes, cells.count),
                *(start, stop, triton.cdiv(stop - start, GROUPS), *z_BCHW.stride(), *weight_BHW.stride(), to_log2),
                *(cells.S, fwd_rows, CX, largest is not None, log_prior_C is not None, start > 0, STAGES),
                num_warps=NUM_WARPS,
                maxnreg=FORWARD_REGISTERS[cells.S] if largest is None else None,
                **LAUNCH,
            )
        parts = cells.S // bwd_rows
        loss = scratch(parts * blocks, like=r)
        mass = scratch(parts * blocks, like=r)
        factor = scratch(2, cells.S**2, cells.count, like=r) if need_grad else r
        scale = scratch(parts, cells.count, like=r) if need_grad else r
        _loss_reduce[(blocks, parts)](
            *(sums, r, weight_BHW, loss, mass, factor, scale, h, w, cells.count, *weight_BHW.stride()),
            *(cells.S, bwd_rows, CX, GROUPS, need_grad),
            num_warps=NUM_WARPS,
            maxnreg=REDUCE_REGISTERS[cells.S],
            **LAUNCH,
        )
        del sums
        mean_loss, grad_scale = scratch(like=r), scratch(like=r)
        _weighted_mean[(1,)](loss, mass, mean_loss, grad_scale, len(loss), temperature, PARTS, num_warps=4, **LAUNCH)
        if not need_grad:
            return mean_loss, mean_loss.new_empty(0, D), grad_scale
        priors = (z_BCHW, log2_prior_C, log_prior_C is not None)
        forward = Forward(cells, *priors, rows, r, bank, logits, largest, factor, scale, to_log2)
        return mean_loss, gradient(forward), grad_scale


@instance_loss_cells.register_fake
def _(student_BDhw, teacher_BDhw, z_BCHW, weight_BHW, bank_KD, label_K, log_prior_C, temperature, need_grad):
    B, D, h, w = student_BDhw.shape
    scalar = student_BDhw.new_empty((), dtype=torch.float32)
    return scalar, scalar.new_empty(B * h * w if need_grad else 0, D), torch.empty_like(scalar)


def _setup(ctx, inputs, output):
    ctx.like = inputs[0].shape, inputs[0].dtype
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _backward(ctx, grad_loss, _grad_of_grad, _grad_of_scale):
    if torch.is_grad_enabled():
        raise RuntimeError("instance_loss: its gradient is a constant made in the forward; no create_graph=True")
    if grad_loss is None:
        return (None,) * 9
    (grad_MD, grad_scale), ((B, D, h, w), dtype) = ctx.saved_tensors, ctx.like
    return scaled(grad_MD, grad_loss, grad_scale, dtype).view(B, h, w, D).permute(0, 3, 1, 2), *[None] * 8


instance_loss_cells.register_autograd(_backward, setup_context=_setup)

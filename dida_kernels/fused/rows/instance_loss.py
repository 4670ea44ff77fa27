"""Eq. (6) over pixels that need no enlargement, `equations.instance_loss` in its [N, D] form, in one kernel.

With s_k = (e . b_k) / (|e| t) of the student, w_k the same of the teacher, z_k the teacher's probability of the class
of slot k and p_k the logarithm of the student's prior of it (0 where there is none)

    L = sum_k exp(s_k + p_k)      U = sum_k z_k exp(w_k)           X = sum_k z_k exp(w_k) (s_k + p_k)
    q_k = exp(s_k + p_k) / L      q_hat_k = z_k exp(w_k) / U       g_k = q_k - q_hat_k
    loss = log L - X / U          de = (sum_k g_k b_k / t - (e / |e|) sum_k g_k s_k) / |e|

A program owns a block of pixels, keeps both embeddings on chip and sweeps the bank twice: the first sweep sums L, U and
X, the second computes the same logits again, sums g s and feeds g straight into one more product. Five products of
N K D in all, one accumulator of [pixels, D], and both embeddings read once. The first sweep could sum what g s takes as
well, but a sum is [pixels, slots] in registers, and with a prior that would be five, at which Hopper's block spills;
the second has fewer slots at a time, and g itself, which loses less than a difference of sums. Blocks without a
weighted pixel sweep nothing. The gradient leaves the forward pass without its factor 1 / sum of weights, which no
program can know yet; the backward pass multiplies it by that and by the incoming gradient.

The bank is packed first (packed_bank.py): sorted by class in segments, so that the prior is read once for 16 slots. The
sweeps end at `used`, which the kernel reads from the device: no synchronisation; and no atomics.

    symbol     name          shape
    e          student_ND    [N, D] float32, bfloat16 or float16, any strides; the only input with a gradient
               teacher_ND    [N, D] as the student; two dtypes meet in the one that holds both
    z          z_NC          [N, C] floating, any strides
               weight_N      [N] floating, any stride
    b          packed        unit rows, bias, classes of the segments, used

Not materialised: normalised embeddings (2 N D), logits, q, q_hat, g (N K each). Written: the gradient, 8 bytes a block.

Numerics as in bank_similarity.py. z exp(w) enters U shifted by the largest exponent possible, or in the cold by the
largest found (ONLINE), z included, so that z on far slots alone does not underflow. float16 gradients are
kept in float32 until they are scaled: the values before scaling span more than float16 does.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dida_kernels.fused.banks import (
    CONSTANT_SHIFT_TEMPERATURE,
    classes_to_ask,
    log2_prior,
    mass_on_slots,
    sort_bank,
)
from dida_kernels.fused.launch import INTERPRETED, LAUNCH
from dida_kernels.fused.rows.blocks import (
    RowBlock,
    RowBlocks,
    block_for,
    block_of_channels,
    dot,
    inverse_row_norm,
    load_rows,
    precision,
    store_rows,
)
from dida_kernels.fused.rows.packed_bank import SEGMENT, load_packed, pack_bank
from dida_kernels.fused.scaled import scaled

LN_2: tl.constexpr = tl.constexpr(math.log(2))
LOWEST: tl.constexpr = tl.constexpr(-1e30)  # below every exponent, and finite: -inf - -inf would be NaN
BLOCKS = RowBlocks(
    half=RowBlock(64, 32, 32),
    half_hopper=RowBlock(128, 64, 32),  # 64 slots: narrower blocks starve Hopper's matrix unit
    wide=RowBlock(32, 16, 16),  # 32 slots spill by the hundred where Triton 3.6 compiles
)


@triton.jit
def _row_sums(
    b_student, b_teacher, b_scale_s, b_scale_w, p_rows, p_bias, p_class, p_slot_prior, p_z, used, o_n, N,
    stride_z_n, stride_z_c, log2e_over_t,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SEGMENT: tl.constexpr,
    ADJUSTED: tl.constexpr, ONLINE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One sweep over the slots: sums L, U and X, [BLOCK_N, BLOCK_K], one for every column of the block (columns are
    added up once, behind the loop), and what the exponents of student and teacher were less."""
    zero = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    b_L, b_U, b_X = zero, zero, zero
    one = tl.full((BLOCK_N,), 1.0, tl.float32)
    b_top_s, b_top_w = zero + LOWEST, zero + LOWEST
    for i_k in tl.range(0, used, BLOCK_K):
        b_b, b_bias, b_z = load_packed(
            p_rows, p_bias, p_class, p_z, i_k, o_n, N, stride_z_n, stride_z_c, one,
            BLOCK_D, BLOCK_N, BLOCK_K, SEGMENT,
        )  # fmt: skip
        b_w = dot(b_teacher, tl.trans(b_b), zero, PRECISION, UPCAST) * b_scale_w
        b_x = dot(b_student, tl.trans(b_b), zero, PRECISION, UPCAST) * b_scale_s
        if ADJUSTED:
            b_x += tl.load(p_slot_prior + i_k + tl.arange(0, BLOCK_K))[None, :]
        if ONLINE:
            b_v, b_u = b_x + b_bias[None, :], b_w + b_bias[None, :] + tl.log2(b_z)
            b_higher_s, b_higher_w = tl.maximum(b_top_s, b_v), tl.maximum(b_top_w, b_u)
            b_shrink_s, b_shrink_w = tl.exp2(b_top_s - b_higher_s), tl.exp2(b_top_w - b_higher_w)
            b_L, b_U, b_X = b_L * b_shrink_s, b_U * b_shrink_w, b_X * b_shrink_w
            b_top_s, b_top_w = b_higher_s, b_higher_w
            b_v, b_u = tl.exp2(b_v - b_top_s), tl.exp2(b_u - b_top_w)
        else:
            b_v = tl.exp2(b_x + (b_bias - log2e_over_t)[None, :])
            b_u = tl.exp2(b_w + (b_bias - log2e_over_t)[None, :]) * b_z
        b_L += b_v
        b_U += b_u
        b_X += b_u * b_x
    if ONLINE:
        b_shift_s, b_shift_w = tl.max(b_top_s, 1), tl.max(b_top_w, 1)
        b_shrink_s, b_shrink_w = tl.exp2(b_top_s - b_shift_s[:, None]), tl.exp2(b_top_w - b_shift_w[:, None])
        b_L, b_U, b_X = b_L * b_shrink_s, b_U * b_shrink_w, b_X * b_shrink_w
    else:
        b_shift_s, b_shift_w = log2e_over_t, log2e_over_t
    return b_L, b_U, b_X, b_shift_s, b_shift_w


@triton.jit
def _row_gradient(
    b_student, b_teacher, b_scale_s, b_scale_w, b_shift_s, b_shift_w, b_per_L, b_per_U,
    p_rows, p_bias, p_class, p_slot_prior, p_z, used, o_n, N, stride_z_n, stride_z_c, log2e_over_t,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SEGMENT: tl.constexpr,
    ADJUSTED: tl.constexpr, ONLINE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """A second sweep: sums of (q - q_hat) b, [BLOCK_N, BLOCK_D], and of (q - q_hat) s, [BLOCK_N], over the slots."""
    b_de = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    zero = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    b_along = zero
    for i_k in tl.range(0, used, BLOCK_K):
        b_b, b_bias, b_z = load_packed(
            p_rows, p_bias, p_class, p_z, i_k, o_n, N, stride_z_n, stride_z_c, b_per_U,
            BLOCK_D, BLOCK_N, BLOCK_K, SEGMENT,
        )  # fmt: skip
        b_w = dot(b_teacher, tl.trans(b_b), zero, PRECISION, UPCAST) * b_scale_w
        b_s = dot(b_student, tl.trans(b_b), zero, PRECISION, UPCAST) * b_scale_s
        b_p = tl.zeros((BLOCK_K,), tl.float32)
        if ADJUSTED:
            b_p = tl.load(p_slot_prior + i_k + tl.arange(0, BLOCK_K))
        if ONLINE:
            b_u = tl.exp2(b_w + (b_bias[None, :] - b_shift_w[:, None]) + tl.log2(b_z))
            b_x = b_s + ((b_bias + b_p)[None, :] - b_shift_s[:, None])
        else:
            b_u = tl.exp2(b_w + (b_bias - log2e_over_t)[None, :]) * b_z
            b_x = b_s + (b_bias + b_p - log2e_over_t)[None, :]
        b_g = tl.exp2(b_x) * b_per_L[:, None] - b_u
        b_along += b_g * b_s
        b_de = dot(b_g.to(p_rows.dtype.element_ty), b_b, b_de, PRECISION, UPCAST)
    return b_de, tl.sum(b_along, 1)


@triton.jit
def _rows_loss(
    p_student, p_teacher, p_z, p_weight, p_rows, p_bias, p_class, p_used, p_slot_prior, p_start, p_total, p_grad,
    N, C,
    stride_student_n, stride_student_d, stride_teacher_n, stride_teacher_d, stride_z_n, stride_z_c,
    stride_weight, log2e_over_t, inverse_t,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_K_GRAD: tl.constexpr,
    SEGMENT: tl.constexpr, NEED_GRAD: tl.constexpr, ADJUSTED: tl.constexpr, ONLINE: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    DOT: tl.constexpr = p_rows.dtype.element_ty
    o_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    b_weight = tl.load(p_weight + o_n * stride_weight, mask=o_n < N, other=0.0).to(tl.float32)
    used = tl.where(tl.max(b_weight, 0) > 0, tl.load(p_used), 0)
    b_student = load_rows(p_student, o_n, N, stride_student_n, stride_student_d, D, BLOCK_D)
    b_teacher = load_rows(p_teacher, o_n, N, stride_teacher_n, stride_teacher_d, D, BLOCK_D)
    b_r = inverse_row_norm(b_student)
    b_scale_s = (b_r * log2e_over_t)[:, None]
    b_scale_w = (inverse_row_norm(b_teacher) * log2e_over_t)[:, None]
    b_student, b_teacher = b_student.to(DOT), b_teacher.to(DOT)

    b_L, b_U, b_X, b_shift_s, b_shift_w = _row_sums(
        b_student, b_teacher, b_scale_s, b_scale_w, p_rows, p_bias, p_class, p_slot_prior, p_z, used, o_n, N,
        stride_z_n, stride_z_c, log2e_over_t,
        BLOCK_D, BLOCK_N, BLOCK_K, SEGMENT, ADJUSTED, ONLINE, PRECISION, UPCAST,
    )  # fmt: skip
    b_sum_U = tl.sum(b_U, 1)
    m_weighs = b_weight > 0
    m_counts = m_weighs & (b_sum_U != 0)  # NaN is seen in the loss
    n_asked = classes_to_ask(p_start, C)
    m_counts &= mass_on_slots(p_z + o_n * stride_z_n, stride_z_c, m_weighs, p_start, n_asked)
    b_sum_U = tl.where(m_counts, b_sum_U, 1.0)
    b_sum_L = tl.where(m_counts, tl.sum(b_L, 1), 1.0)
    b_loss = b_shift_s + tl.log2(b_sum_L) - tl.sum(b_X, 1) / b_sum_U
    b_loss = tl.where(m_counts, b_weight * (b_loss * LN_2), 0.0)
    tl.store(p_total + tl.program_id(0) * 2, tl.sum(b_loss, 0))
    tl.store(p_total + tl.program_id(0) * 2 + 1, tl.sum(tl.where(m_counts, b_weight, 0.0), 0))

    if NEED_GRAD:
        # A pixel that does not count has q = q_hat = 0 in every slot, hence a gradient that is exactly 0.
        b_per_L = tl.where(m_counts, b_weight / b_sum_L, 0.0)
        b_per_U = tl.where(m_counts, b_weight / b_sum_U, 0.0)
        b_de, b_along = _row_gradient(
            b_student, b_teacher, b_scale_s, b_scale_w, b_shift_s, b_shift_w, b_per_L, b_per_U,
            p_rows, p_bias, p_class, p_slot_prior, p_z, used, o_n, N, stride_z_n, stride_z_c, log2e_over_t,
            BLOCK_D, BLOCK_N, BLOCK_K_GRAD, SEGMENT, ADJUSTED, ONLINE, PRECISION, UPCAST,
        )  # fmt: skip
        # Read again rather than kept: through the loop the accumulator needs the registers.
        b_e = load_rows(p_student, o_n, N, stride_student_n, stride_student_d, D, BLOCK_D).to(tl.float32)
        b_de = (b_de * inverse_t - (b_along * LN_2 * b_r)[:, None] * b_e) * b_r[:, None]
        store_rows(p_grad, b_de, o_n, N, D, BLOCK_D)


@torch.library.custom_op("dida::instance_loss_rows", mutates_args=())
def instance_loss_rows(
    student_ND: Tensor,
    teacher_ND: Tensor,
    z_NC: Tensor,
    weight_N: Tensor,
    bank_KD: Tensor,
    label_K: Tensor,
    log_prior_C: Tensor | None,
    temperature: float,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, its unscaled gradient ([0, D] unless needed) and the scale 1 / sum of weights."""
    (N, D), C, device = student_ND.shape, z_NC.shape[1], student_ND.device
    dtype = torch.promote_types(student_ND.dtype, teacher_ND.dtype)
    block, online = block_for(BLOCKS, student_ND, dtype), temperature < CONSTANT_SHIFT_TEMPERATURE
    bank, log2_prior_C = sort_bank(bank_KD, label_K, C), log2_prior(log_prior_C, label_K, C)
    packed = pack_bank(bank, log2_prior_C, dtype, multiple=max(block.slots, block.slots_grad))
    total_T2 = torch.empty((triton.cdiv(N, block.pixels), 2), dtype=torch.float32, device=device)
    grad_ND = torch.empty((N if need_grad else 0, D), dtype=_saved_dtype(student_ND), device=device)
    with torch.cuda.device_of(student_ND):  # Triton launches on the current device, wherever the tensors are
        _rows_loss[(len(total_T2),)](
            student_ND,
            teacher_ND,
            z_NC,
            weight_N,
            *packed,
            bank.start_C1,
            total_T2,
            grad_ND,
            N,
            C,
            *student_ND.stride(),
            *teacher_ND.stride(),
            *z_NC.stride(),
            *weight_N.stride(),
            math.log2(math.e) / temperature,
            1 / temperature,
            D=D,
            BLOCK_D=block_of_channels(D),
            BLOCK_N=block.pixels,
            BLOCK_K=block.slots_grad if online else block.slots,  # two maxima more: the wider block would spill
            BLOCK_K_GRAD=block.slots_grad,
            SEGMENT=SEGMENT,
            NEED_GRAD=need_grad,
            ADJUSTED=log_prior_C is not None,
            ONLINE=online,
            PRECISION=precision(dtype),
            UPCAST=INTERPRETED,
            num_warps=block.warps,
            num_stages=block.stages,
            **LAUNCH,
        )
    total, mass = total_T2.sum(0)
    scale = 1 / mass.where(mass > 0, 1.0)
    return total * scale, grad_ND, scale


@instance_loss_rows.register_fake
def _(student_ND, teacher_ND, z_NC, weight_N, bank_KD, label_K, log_prior_C, temperature, need_grad):
    scalar = student_ND.new_empty((), dtype=torch.float32)
    rows = student_ND.shape[0] if need_grad else 0
    grad_ND = student_ND.new_empty((rows, student_ND.shape[1]), dtype=_saved_dtype(student_ND))
    return scalar, grad_ND, torch.empty_like(scalar)


def _setup(ctx, inputs, output):
    _, grad_ND, scale = output
    ctx.mark_non_differentiable(grad_ND, scale)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad_ND, scale)
    ctx.dtype = inputs[0].dtype


def _backward(ctx, grad_loss, _grad_of_grad, _grad_of_scale):
    grad_ND, scale = ctx.saved_tensors
    grads = None if grad_loss is None else scaled(grad_ND, grad_loss, scale, ctx.dtype)
    return grads, *[None] * 8


instance_loss_rows.register_autograd(_backward, setup_context=_setup)


def _saved_dtype(student_ND: Tensor) -> torch.dtype:
    return torch.float32 if student_ND.dtype == torch.float16 else student_ND.dtype

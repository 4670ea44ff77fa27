"""Eq. (4) - (8), `equations.instance_loss`: two sweeps over the bank for every tile, loss and gradient at once.

With s_k = cos(e, b_k) / t of the student, q = softmax(s + log pi), pi the class prior where there is one, and
q_hat = softmax(w + log z) of the teacher's logits w, the gradient of the loss of one pixel is, with inv = 1 / |e|,

    d loss / d s_k = g_k = q_k - q_hat_k
    d loss / d e   = inv/t sum_k g_k b_k/|b_k|  -  inv^2 (sum_k g_k s_k) e

times the pixel's weight, and a node receives the adjoint of the interpolation of that. In the first term it is taken
of inv g, so that this matrix product with the bank, too, happens at the nodes. No [N, K] and no [N, D] tensor exists.
"""

from typing import Any

import torch
from torch import Tensor

from dida_kernels.chunked.banks import Bank, inverse_norm
from dida_kernels.chunked.tiles import Plan, Tile
from dida_kernels.equations import instance_loss, on_slots, statistics_dtype


@instance_loss.implement("chunked")
def _instance_loss(
    student_BDhw: Tensor,
    teacher_BDhw: Tensor,
    z_BCHW: Tensor,
    weight_BHW: Tensor,
    bank_KD: Tensor,
    label_K: Tensor,
    *,
    temperature: float,
    log_prior_C: Tensor | None = None,
) -> Tensor:
    need_gradient = torch.is_grad_enabled() and student_BDhw.requires_grad
    tensors = (student_BDhw, teacher_BDhw, z_BCHW, weight_BHW, bank_KD, label_K, log_prior_C)
    return instance_loss_chunked(*tensors, float(temperature), need_gradient)[0]


@torch.library.custom_op("dida::instance_loss_chunked", mutates_args=())
def instance_loss_chunked(
    student_BDhw: Tensor,
    teacher_BDhw: Tensor,
    z_BCHW: Tensor,
    weight_BHW: Tensor,
    bank_KD: Tensor,
    label_K: Tensor,
    log_prior_C: Tensor | None,
    temperature: float,
    need_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient for the student (empty unless wanted), so that backward only scales it.

    One opaque operator: torch.compile would otherwise unroll the loop over tiles into one graph.
    """
    dtype, size = statistics_dtype(student_BDhw), z_BCHW.shape[2:]
    plan = Plan.of(size, bank_KD, dtype)
    bank = Bank.of(bank_KD, label_K, plan.chunks, dtype)
    log_prior_K = None if log_prior_C is None else log_prior_C.to(dtype).index_select(0, label_K)
    # Sums over tiles in float64: there are thousands of them, one number each.
    total, mass = torch.zeros(2, dtype=torch.float64, device=student_BDhw.device)
    gradient_BDhw = student_BDhw.new_zeros(student_BDhw.shape if need_gradient else 0, dtype=dtype)
    with torch.autocast(student_BDhw.device.type, enabled=False):
        for b, whole in plan.tiles(size, student_BDhw, dtype):
            # ClassMix pastes over half of the pixels: leave out those that count nothing.
            tile = whole.only(weight_BHW[b][whole.pixels] > 0) if weight_BHW.device.type == "cpu" else whole
            if tile is None:
                continue
            z_PC = tile.pixels_of(z_BCHW[b], dtype)
            weight_P = tile.pixels_of(weight_BHW[b][None], dtype).squeeze(1) * on_slots(z_PC, label_K)
            z_PC = z_PC.where(weight_P[:, None] > 0, 1.0)  # what counts nothing may be NaN, and 0 x NaN is NaN
            student_rcD = tile.nodes_of(student_BDhw[b], dtype)
            teacher_rcD = tile.nodes_of(teacher_BDhw[b], dtype)
            pair = _Pair(tile, student_rcD, teacher_rcD, z_PC, log_prior_K, bank, temperature)
            loss_P, gradient_rcD = pair.loss(weight_P, need_gradient)
            total += loss_P.sum(dtype=torch.float64)
            mass += weight_P.sum(dtype=torch.float64)
            if gradient_rcD is not None:
                gradient_BDhw[(b, slice(None), *tile.nodes)] += gradient_rcD.permute(2, 0, 1)
    mass = mass.where(mass > 0, 1.0)
    return (total / mass).to(dtype), gradient_BDhw.div_(mass)


class _Pair:
    """Student and teacher in one tile: two sweeps over the bank, the second with the softmax denominators of the first.

    A bank of one chunk, the usual case, keeps its logits for the second sweep; several chunks compute them again.
    """

    def __init__(
        self,
        tile: Tile,
        student_rcD: Tensor,
        teacher_rcD: Tensor,
        z_PC: Tensor,
        log_prior_K: Tensor | None,
        bank: Bank,
        temperature: float,
    ):
        self.tile, self.bank, self.temperature = tile, bank, temperature
        self.student_rcD, self.teacher_rcD, self.log_prior_K = student_rcD, teacher_rcD, log_prior_K
        lowest = torch.finfo(z_PC.dtype).min
        # log 0 as the lowest finite number: the slot's weight still is exactly 0, and no inf - inf can arise.
        self.log_z_PC = z_PC.log().clamp_(min=lowest)
        self.inverse_P1 = inverse_norm(tile.enlarge(student_rcD))
        self.teacher_scale_P1 = inverse_norm(tile.enlarge(teacher_rcD)) / temperature
        self.kept: tuple[Tensor, Tensor] | None = None
        self.log_sum_P1 = torch.full_like(self.inverse_P1, lowest)
        self.teacher_log_sum_P1 = torch.full_like(self.inverse_P1, lowest)
        for chunk in bank.chunks:
            s_PK, w_PK = self.logits(chunk)
            adjusted_PK = s_PK if log_prior_K is None else s_PK + log_prior_K[chunk]
            self.log_sum_P1 = torch.logaddexp(self.log_sum_P1, adjusted_PK.logsumexp(1, keepdim=True))
            self.teacher_log_sum_P1 = torch.logaddexp(self.teacher_log_sum_P1, w_PK.logsumexp(1, keepdim=True))
            self.kept = (s_PK, w_PK) if len(bank.chunks) == 1 else None

    def logits(self, chunk: slice) -> tuple[Tensor, Tensor]:
        """s = cos / t of the student and w + log z of the teacher, so that q_hat = softmax. See Eq. (7) and (8)."""
        s_PK = self.bank.logits(chunk, self.tile, self.student_rcD, self.inverse_P1 / self.temperature)
        w_PK = self.bank.logits(chunk, self.tile, self.teacher_rcD, self.teacher_scale_P1)
        return s_PK, w_PK.add_(self.log_z_PC.index_select(1, self.bank.label_K[chunk]))

    def loss(self, weight_P: Tensor, need_gradient: bool) -> tuple[Tensor, Tensor | None]:
        """The weighted loss of each pixel and the gradient of their sum at the nodes [r, c, D].

        To be called once: the logits that were kept are overwritten.
        """
        loss_P = torch.zeros_like(self.inverse_P1[:, 0])
        slope_P1 = torch.zeros_like(self.inverse_P1)  # sum_k g_k s_k
        gradient_rcD = torch.zeros_like(self.student_rcD)
        factor_P1 = self.inverse_P1 * weight_P[:, None]
        for chunk in self.bank.chunks:
            s_PK, w_PK = self.kept or self.logits(chunk)
            q_hat_PK = w_PK.sub_(self.teacher_log_sum_P1).exp_()
            log_q_PK = s_PK - self.log_sum_P1
            if self.log_prior_K is not None:
                log_q_PK += self.log_prior_K[chunk]
            loss_P -= (q_hat_PK * log_q_PK).sum(1)
            if need_gradient:
                g_PK = log_q_PK.exp_().sub_(q_hat_PK)
                slope_P1 += torch.mul(g_PK, s_PK, out=q_hat_PK).sum(1, keepdim=True)
                at_nodes_rcK = self.tile.adjoint(g_PK.mul_(factor_P1)).mul_(self.bank.inverse_norm_K[chunk])
                gradient_rcD += at_nodes_rcK @ self.bank.rows(chunk, g_PK.dtype)
        loss_P = torch.where(weight_P > 0, weight_P * loss_P, 0.0)
        if not need_gradient:
            return loss_P, None
        along_PD = self.tile.enlarge(self.student_rcD).mul_(slope_P1 * factor_P1 * self.inverse_P1)
        return loss_P, gradient_rcD.div_(self.temperature).sub_(self.tile.adjoint(along_PD))


@instance_loss_chunked.register_fake
def _(
    student_BDhw: Tensor,
    teacher_BDhw: Tensor,
    z_BCHW: Tensor,
    weight_BHW: Tensor,
    bank_KD: Tensor,
    label_K: Tensor,
    log_prior_C: Tensor | None,
    temperature: float,
    need_gradient: bool,
) -> tuple[Tensor, Tensor]:
    dtype = statistics_dtype(student_BDhw)
    shape = student_BDhw.shape if need_gradient else (0,)
    return student_BDhw.new_empty((), dtype=dtype), student_BDhw.new_empty(shape, dtype=dtype)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    gradient_BDhw = output[1]
    ctx.mark_non_differentiable(gradient_BDhw)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(gradient_BDhw)
    ctx.dtype = inputs[0].dtype


def _scale_gradient(ctx: Any, of_loss: Tensor | None, of_gradient: None) -> tuple:
    if torch.is_grad_enabled():  # create_graph=True: what was computed in the forward is a constant here
        raise RuntimeError("instance_loss: no second derivative is defined")
    (gradient_BDhw,) = ctx.saved_tensors
    return (None if of_loss is None else (gradient_BDhw * of_loss).to(ctx.dtype), *[None] * 8)


instance_loss_chunked.register_autograd(_scale_gradient, setup_context=_keep_gradient)

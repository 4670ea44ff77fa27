"""The torch backend where the equation itself would need too much memory or time.

Three facts carry this file (letters as in equations.py; R, W: pixel rows and columns of a tile, P = R*W; r, c: the rows
and columns of nodes, points of the feature grid, that these pixels lie between):

- Interpolation is linear, so it commutes with the dot product: <enlarge(e), b_k> = enlarge(<e, b_k>). The matrix
  product with the bank is done at the nodes, and logits are enlarged instead of embeddings.
- Bilinear interpolation of a tile is two small matrices, Y [R, r] and X [W, c]. Its adjoint is their transposes: exact
  for every ratio of the grids, borders included, and free of atomics, so two runs agree bit for bit.
- Softmax over K needs one number per pixel from a first sweep over the slots, the log of its denominator. A second
  sweep then has the probabilities, the loss and its gradient, one chunk of slots at a time.

With s_k = cos(e, b_k) / t of the student, q = softmax(s) and q_hat = softmax(w + log prior) of the teacher's logits w,
the gradient of the loss of one pixel is, with inv = 1 / |e|,

    d loss / d s_k = g_k = q_k - q_hat_k
    d loss / d e   = inv/t sum_k g_k b_k/|b_k|  -  inv^2 (sum_k g_k s_k) e

and a node receives the adjoint of the interpolation of that. In the first term it is taken of inv g, so that this
matrix product with the bank, too, happens at the nodes. No [N, K] and no [N, D] tensor exists.

Memory beyond inputs and outputs: at most TILE_BYTES for the buffers of a tile, 4*K bytes for the norms of the bank, and
4*B*D*h*w for the gradient that `instance_loss` keeps, whatever the image size and K (8 instead of 4 in float64). The
blend at the end of `bank_update` is the equation's and holds up to two more banks.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dida_kernels.equations import (
    IGNORE,
    bank_update,
    blend,
    boundary_mask,
    class_similarity,
    instance_loss,
    statistics_dtype,
)

TILE_BYTES = 16 << 20  # on a CPU: a few MB per buffer stay near the cache
TILE_BYTES_GPU = 128 << 20  # elsewhere: a tile is some sixty launches, so it has to be worth them
_BUFFERS = 6  # tensors [P, max(D, slots of a chunk)] that are alive at once in a tile
_COLUMNS = 64  # X costs as many multiplications per pixel and slot as it has nodes, so tiles are narrow ...
_MIN_ROWS = 16  # ... and tall enough that few nodes are shared with a neighbour and computed twice
_WORD = 63  # classes that fit into the bits of a positive int64


def _runs_anywhere(*args: object, **options: object) -> None:
    return None


# ---- tiles and chunks ----------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """A rectangle of pixels, the rectangle of nodes around it, and the two matrices that interpolate between them."""

    pixels: tuple[slice, slice]
    nodes: tuple[slice, slice]
    Y_Rr: Tensor
    X_Wc: Tensor

    def enlarge(self, x_rcX: Tensor) -> Tensor:
        """Node values to pixel values, [P, X]."""
        x_RcX = (self.Y_Rr @ x_rcX.flatten(1)).unflatten(1, x_rcX.shape[1:])
        return (self.X_Wc @ x_RcX).flatten(0, 1)

    def adjoint(self, x_PX: Tensor) -> Tensor:
        """The transpose of `enlarge`: pixel values to node values, [r, c, X]."""
        x_RcX = self.X_Wc.T @ x_PX.unflatten(0, (len(self.Y_Rr), -1))
        return (self.Y_Rr.T @ x_RcX.flatten(1)).unflatten(1, x_RcX.shape[1:])

    def nodes_of(self, x_Xhw: Tensor, dtype: torch.dtype) -> Tensor:
        """One image's map at the tile's nodes, channels last: [r, c, X]."""
        return x_Xhw[(slice(None), *self.nodes)].permute(1, 2, 0).to(dtype).contiguous()

    def pixels_of(self, x_XHW: Tensor, dtype: torch.dtype) -> Tensor:
        """One image's map at the tile's pixels, channels last: [P, X]."""
        return x_XHW[(slice(None), *self.pixels)].permute(1, 2, 0).flatten(0, 1).to(dtype)


class Axis(NamedTuple):
    """Bilinear interpolation along one axis (align_corners=False) as a matrix [pixels, nodes], read in slices."""

    weight: Tensor

    @staticmethod
    def between(pixels: int, nodes: int, like: Tensor, dtype: torch.dtype) -> "Axis":
        """In float64 until the last step: torch's own float32 positions are less exact than what is computed here."""
        position = (torch.arange(pixels, dtype=torch.float64, device=like.device) + 0.5) * (nodes / pixels) - 0.5
        distance = position.clamp(0, nodes - 1)[:, None] - torch.arange(nodes, device=like.device)
        return Axis((1 - distance.abs()).clamp(min=0).to(dtype))

    def cut(self, step: int) -> Iterator[tuple[slice, slice, Tensor]]:
        """Every `step` pixels, the nodes that they lie between, and that part of the matrix."""
        pixels, nodes = self.weight.shape
        for start in range(0, pixels, step):
            stop = min(start + step, pixels)
            first = math.floor(max((start + 0.5) * (nodes / pixels) - 0.5, 0))
            last = min(math.floor(max((stop - 0.5) * (nodes / pixels) - 0.5, 0)) + 1, nodes - 1)
            yield slice(start, stop), slice(first, last + 1), self.weight[start:stop, first : last + 1]


class Plan(NamedTuple):
    """How an image is cut into tiles and a bank into chunks, so that the buffers of a tile fit the budget."""

    rows: int
    columns: int
    chunks: list[slice]

    @staticmethod
    def of(size: tuple[int, int], bank_KD: Tensor, dtype: torch.dtype) -> "Plan":
        slots, channels = bank_KD.shape
        columns = min(size[1], _COLUMNS)
        budget = TILE_BYTES if bank_KD.device.type == "cpu" else TILE_BYTES_GPU
        values = budget // (_BUFFERS * dtype.itemsize)  # in one buffer
        chunk = max(1, min(slots, values // (columns * min(size[0], _MIN_ROWS))))
        rows = max(1, min(size[0], values // (columns * max(chunk, channels))))
        return Plan(rows, columns, [slice(k, min(k + chunk, slots)) for k in range(0, slots, chunk)])

    def tiles(self, size: tuple[int, int], embed_BDhw: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, Tile]]:
        """Every tile of every image, with the image's index."""
        y, x = (Axis.between(*ends, embed_BDhw, dtype) for ends in zip(size, embed_BDhw.shape[2:], strict=True))
        for rows, node_rows, Y_Rr in y.cut(self.rows):
            for columns, node_columns, X_Wc in x.cut(self.columns):
                tile = Tile((rows, columns), (node_rows, node_columns), Y_Rr, X_Wc)
                yield from ((b, tile) for b in range(len(embed_BDhw)))


class Bank(NamedTuple):
    """The bank in chunks of slots. Rows are scaled to unit length after the product, so no copy of the bank is made."""

    bank_KD: Tensor
    label_K: Tensor
    inverse_norm_K: Tensor
    chunks: list[slice]

    @staticmethod
    def of(bank_KD: Tensor, label_K: Tensor, chunks: list[slice], dtype: torch.dtype) -> "Bank":
        inverse_norm_K = torch.cat([_inverse_norm(bank_KD[chunk].to(dtype)).squeeze(1) for chunk in chunks])
        return Bank(bank_KD, label_K, inverse_norm_K, chunks)

    def rows(self, chunk: slice, dtype: torch.dtype) -> Tensor:
        return self.bank_KD[chunk].to(dtype)

    def logits(self, chunk: slice, tile: Tile, embed_rcD: Tensor, scale_P1: Tensor) -> Tensor:
        """scale * <e, b_k / |b_k|> for the pixels of the tile, [P, slots of the chunk]. See Eq. (4) and (5)."""
        dot_rcK = (embed_rcD @ self.rows(chunk, embed_rcD.dtype).T).mul_(self.inverse_norm_K[chunk])
        return tile.enlarge(dot_rcK).mul_(scale_P1)


def _inverse_norm(x_XD: Tensor) -> Tensor:
    """1 / |x| of each row, [X, 1]; 0 for a row without a direction (see `equations.unit`), whose cosines are then 0."""
    length_X1 = torch.linalg.vector_norm(x_XD, dim=1, keepdim=True)
    return length_X1.reciprocal().masked_fill_(length_X1 <= 1e-12, 0.0)


# ---- instance_loss -------------------------------------------------------------------------------------------------


@instance_loss.implement("torch", refuses=_runs_anywhere)
def _instance_loss(
    student_BDhw: Tensor,
    teacher_BDhw: Tensor,
    prior_BCHW: Tensor,
    valid_BHW: Tensor,
    bank_KD: Tensor,
    label_K: Tensor,
    *,
    temperature: float,
) -> Tensor:
    need_gradient = torch.is_grad_enabled() and student_BDhw.requires_grad
    tensors = (student_BDhw, teacher_BDhw, prior_BCHW, valid_BHW, bank_KD, label_K)
    return instance_loss_chunked(*tensors, float(temperature), need_gradient)[0]


@torch.library.custom_op("dida::instance_loss_chunked", mutates_args=())
def instance_loss_chunked(
    student_BDhw: Tensor,
    teacher_BDhw: Tensor,
    prior_BCHW: Tensor,
    valid_BHW: Tensor,
    bank_KD: Tensor,
    label_K: Tensor,
    temperature: float,
    need_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient for the student (empty unless wanted), so that backward only scales it.

    One opaque operator: torch.compile would otherwise unroll the loop over tiles into one graph.
    """
    dtype, size = statistics_dtype(student_BDhw), tuple(prior_BCHW.shape[2:])
    plan = Plan.of(size, bank_KD, dtype)
    bank = Bank.of(bank_KD, label_K, plan.chunks, dtype)
    # Sums over tiles in float64: there are thousands of them, one number each.
    total = torch.zeros((), dtype=torch.float64, device=student_BDhw.device)
    count = torch.zeros((), dtype=torch.int64, device=student_BDhw.device)
    gradient_BDhw = student_BDhw.new_zeros(student_BDhw.shape if need_gradient else 0, dtype=dtype)
    with torch.autocast(student_BDhw.device.type, enabled=False):
        for b, tile in plan.tiles(size, student_BDhw, dtype):
            # log 0 as the lowest finite number: the slot's weight still is exactly 0, and no inf - inf can arise.
            log_prior_PC = tile.pixels_of(prior_BCHW[b], dtype).log().clamp_(min=torch.finfo(dtype).min)
            student_rcD = tile.nodes_of(student_BDhw[b], dtype)
            teacher_rcD = tile.nodes_of(teacher_BDhw[b], dtype)
            pair = _Pair(tile, student_rcD, teacher_rcD, log_prior_PC, bank, temperature)
            counts_P = valid_BHW[b][tile.pixels].flatten() & pair.defined_P
            loss_P, gradient_rcD = pair.loss(counts_P, need_gradient)
            total += loss_P.sum(dtype=torch.float64)
            count += counts_P.sum()
            if gradient_rcD is not None:
                gradient_BDhw[(b, slice(None), *tile.nodes)] += gradient_rcD.permute(2, 0, 1)
    count.clamp_(min=1)
    return (total / count).to(dtype), gradient_BDhw.div_(count)


class _Pair:
    """Student and teacher in one tile: two sweeps over the bank, the second with the softmax denominators of the first.

    A bank of one chunk, the usual case, keeps its logits for the second sweep; several chunks compute them again.
    """

    def __init__(
        self,
        tile: Tile,
        student_rcD: Tensor,
        teacher_rcD: Tensor,
        log_prior_PC: Tensor,
        bank: Bank,
        temperature: float,
    ):
        self.tile, self.bank, self.temperature = tile, bank, temperature
        self.student_rcD, self.teacher_rcD, self.log_prior_PC = student_rcD, teacher_rcD, log_prior_PC
        self.inverse_P1 = _inverse_norm(tile.enlarge(student_rcD))
        self.teacher_scale_P1 = _inverse_norm(tile.enlarge(teacher_rcD)) / temperature
        self.kept: tuple[Tensor, Tensor] | None = None
        lowest = torch.finfo(student_rcD.dtype).min
        self.log_sum_P1 = torch.full_like(self.inverse_P1, lowest)
        self.teacher_log_sum_P1 = torch.full_like(self.inverse_P1, lowest)
        for chunk in bank.chunks:
            s_PK, w_PK = self.logits(chunk)
            self.log_sum_P1 = torch.logaddexp(self.log_sum_P1, s_PK.logsumexp(1, keepdim=True))
            self.teacher_log_sum_P1 = torch.logaddexp(self.teacher_log_sum_P1, w_PK.logsumexp(1, keepdim=True))
            self.kept = (s_PK, w_PK) if len(bank.chunks) == 1 else None
        # No slot of a class that the prior allows: there is no q_hat here.
        self.defined_P = self.teacher_log_sum_P1.squeeze(1) > lowest / 2

    def logits(self, chunk: slice) -> tuple[Tensor, Tensor]:
        """s = cos / t of the student and w + log prior of the teacher, so that q_hat = softmax. See Eq. (7) and (8)."""
        s_PK = self.bank.logits(chunk, self.tile, self.student_rcD, self.inverse_P1 / self.temperature)
        w_PK = self.bank.logits(chunk, self.tile, self.teacher_rcD, self.teacher_scale_P1)
        return s_PK, w_PK.add_(self.log_prior_PC.index_select(1, self.bank.label_K[chunk]))

    def loss(self, counts_P: Tensor, need_gradient: bool) -> tuple[Tensor, Tensor | None]:
        """The loss of each pixel that counts, 0 elsewhere, and the gradient of their sum at the nodes [r, c, D].

        To be called once: the logits that were kept are overwritten.
        """
        loss_P = torch.zeros_like(self.inverse_P1[:, 0])
        slope_P1 = torch.zeros_like(self.inverse_P1)  # sum_k g_k s_k
        gradient_rcD = torch.zeros_like(self.student_rcD)
        weight_P1 = self.inverse_P1 * counts_P[:, None]
        for chunk in self.bank.chunks:
            s_PK, w_PK = self.kept or self.logits(chunk)
            q_hat_PK = w_PK.sub_(self.teacher_log_sum_P1).exp_()
            log_q_PK = s_PK - self.log_sum_P1
            loss_P -= (q_hat_PK * log_q_PK).sum(1)
            if need_gradient:
                g_PK = log_q_PK.exp_().sub_(q_hat_PK)
                slope_P1 += torch.mul(g_PK, s_PK, out=q_hat_PK).sum(1, keepdim=True)
                at_nodes_rcK = self.tile.adjoint(g_PK.mul_(weight_P1)).mul_(self.bank.inverse_norm_K[chunk])
                gradient_rcD += at_nodes_rcK @ self.bank.rows(chunk, g_PK.dtype)
        loss_P = torch.where(counts_P, loss_P, 0.0)
        if not need_gradient:
            return loss_P, None
        along_PD = self.tile.enlarge(self.student_rcD).mul_(slope_P1 * weight_P1 * self.inverse_P1)
        return loss_P, gradient_rcD.div_(self.temperature).sub_(self.tile.adjoint(along_PD))


@instance_loss_chunked.register_fake
def _(student_BDhw, teacher_BDhw, prior_BCHW, valid_BHW, bank_KD, label_K, temperature, need_gradient):
    dtype = statistics_dtype(student_BDhw)
    shape = student_BDhw.shape if need_gradient else (0,)
    return student_BDhw.new_empty((), dtype=dtype), student_BDhw.new_empty(shape, dtype=dtype)


def _keep_gradient(ctx, inputs, output) -> None:
    gradient_BDhw = output[1]
    ctx.mark_non_differentiable(gradient_BDhw)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(gradient_BDhw)
    ctx.dtype = inputs[0].dtype


def _scale_gradient(ctx, of_loss: Tensor | None, of_gradient: None) -> tuple:
    if torch.is_grad_enabled():  # create_graph=True: what was computed in the forward is a constant here
        raise RuntimeError("instance_loss: no second derivative is defined")
    (gradient_BDhw,) = ctx.saved_tensors
    return (None if of_loss is None else (gradient_BDhw * of_loss).to(ctx.dtype), *[None] * 7)


instance_loss_chunked.register_autograd(_scale_gradient, setup_context=_keep_gradient)


# ---- class_similarity ----------------------------------------------------------------------------------------------


@class_similarity.implement("torch", refuses=_runs_anywhere)
def _class_similarity(
    embed_BDhw: Tensor, bank_KD: Tensor, label_K: Tensor, *, classes: int, temperature: float, size: tuple[int, int]
) -> Tensor:
    return class_similarity_chunked(embed_BDhw, bank_KD, label_K, classes, float(temperature), list(size))


@torch.library.custom_op("dida::class_similarity_chunked", mutates_args=())
def class_similarity_chunked(
    embed_BDhw: Tensor, bank_KD: Tensor, label_K: Tensor, classes: int, temperature: float, size: list[int]
) -> Tensor:
    """Softmax and gather over chunks of slots: sums per class, rescaled whenever a chunk raises the pixel's maximum."""
    dtype, size = statistics_dtype(embed_BDhw), tuple(size)
    plan = Plan.of(size, bank_KD, dtype)
    bank = Bank.of(bank_KD, label_K, plan.chunks, dtype)
    belongs_KC = F.one_hot(label_K, classes).to(dtype)
    q_ga_BCHW = embed_BDhw.new_empty(len(embed_BDhw), classes, *size, dtype=dtype)
    with torch.autocast(embed_BDhw.device.type, enabled=False):
        for b, tile in plan.tiles(size, embed_BDhw, dtype):
            embed_rcD = tile.nodes_of(embed_BDhw[b], dtype)
            scale_P1 = _inverse_norm(tile.enlarge(embed_rcD)) / temperature
            peak_P1 = torch.full_like(scale_P1, -math.inf)
            sum_PC = scale_P1.new_zeros(len(scale_P1), classes)
            for chunk in bank.chunks:
                w_PK = bank.logits(chunk, tile, embed_rcD, scale_P1)
                higher_P1 = torch.maximum(peak_P1, w_PK.amax(1, keepdim=True))
                sum_PC.mul_((peak_P1 - higher_P1).exp_()).addmm_(w_PK.sub_(higher_P1).exp_(), belongs_KC[chunk])
                peak_P1 = higher_P1
            sum_PC /= sum_PC.sum(1, keepdim=True)
            q_ga_BCHW[(b, slice(None), *tile.pixels)] = sum_PC.T.unflatten(1, (len(tile.Y_Rr), -1))
    return q_ga_BCHW


@class_similarity_chunked.register_fake
def _(embed_BDhw, bank_KD, label_K, classes, temperature, size):
    return embed_BDhw.new_empty(len(embed_BDhw), classes, *size, dtype=statistics_dtype(embed_BDhw))


# ---- bank_update and boundary_mask ---------------------------------------------------------------------------------


@bank_update.implement("torch", refuses=_runs_anywhere)
def _bank_update(
    bank_KD: Tensor,
    label_K: Tensor,
    embed_BDhw: Tensor,
    label_BHW: Tensor,
    boundary_BHW: Tensor,
    *,
    classes: int,
    momentum: float,
) -> Tensor:
    sum_SD, count_S = set_sums_chunked(embed_BDhw, label_BHW, boundary_BHW, classes)
    return blend(bank_KD, label_K, sum_SD, count_S, momentum=momentum)


@torch.library.custom_op("dida::set_sums_chunked", mutates_args=())
def set_sums_chunked(
    embed_BDhw: Tensor, label_BHW: Tensor, boundary_BHW: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Sums and counts of the enlarged embeddings of 2C sets of pixels: C interiors, then C boundaries.

    A sum of interpolated values is a weighted sum of nodes, and the weights are the adjoint of the set's mask. At
    ratios that are powers of two they are exact in float32.
    """
    dtype, size = statistics_dtype(embed_BDhw), tuple(label_BHW.shape[1:])
    set_S = torch.arange(2 * classes, device=embed_BDhw.device)
    sum_SD = embed_BDhw.new_zeros(2 * classes, embed_BDhw.shape[1], dtype=dtype)
    count_S = torch.zeros_like(set_S)
    with torch.autocast(embed_BDhw.device.type, enabled=False):
        for b, tile in Plan.of(size, sum_SD, dtype).tiles(size, embed_BDhw, dtype):
            label_P = label_BHW[b][tile.pixels].flatten().long()
            set_P = torch.where(label_P == IGNORE, -1, label_P + classes * boundary_BHW[b][tile.pixels].flatten())
            member_PS = set_P[:, None] == set_S
            weight_rcS = tile.adjoint(member_PS.to(dtype))
            sum_SD.addmm_(weight_rcS.flatten(0, 1).T, tile.nodes_of(embed_BDhw[b], dtype).flatten(0, 1))
            count_S += member_PS.sum(0)
    return sum_SD, count_S


@set_sums_chunked.register_fake
def _(embed_BDhw, label_BHW, boundary_BHW, classes):
    sum_SD = embed_BDhw.new_empty(2 * classes, embed_BDhw.shape[1], dtype=statistics_dtype(embed_BDhw))
    return sum_SD, label_BHW.new_empty(2 * classes, dtype=torch.int64)


def _more_classes_than_bits(label_BHW: Tensor, *, classes: int, threshold: int = 2) -> str | None:
    return None if classes <= _WORD else f"a set of classes is one int64, {classes} do not fit into {_WORD} bits"


@boundary_mask.implement("torch", refuses=_more_classes_than_bits)
def _boundary_mask(label_BHW: Tensor, *, classes: int, threshold: int = 2) -> Tensor:
    """The classes of a window as the bits of one integer: 8 bytes a pixel where the equation pools C maps."""
    valid_BHW = label_BHW != IGNORE
    bits_BHW = torch.where(valid_BHW, torch.bitwise_left_shift(1, label_BHW.long().clamp(0, _WORD - 1)), 0)
    bits_BHW = F.pad(bits_BHW, (1, 1, 1, 1))
    bits_BHW = bits_BHW[:, :-2] | bits_BHW[:, 1:-1] | bits_BHW[:, 2:]
    bits_BHW = bits_BHW[..., :-2] | bits_BHW[..., 1:-1] | bits_BHW[..., 2:]
    for _ in range(threshold - 1):
        bits_BHW = bits_BHW & (bits_BHW - 1)  # without the lowest set bit; 0 stays 0
    return (bits_BHW != 0) & valid_BHW

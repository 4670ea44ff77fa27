"""Section III of the paper in plain PyTorch, in the paper's order.

This file is the meaning of every op: the backend that always runs, the truth of every test, the baseline of every
bench. It is written to be read beside the paper, not to be fast: at image resolution it builds [N, D] and [N, K]
tensors.
`chunked/` and `fused/` compute the same values without them and may only agree with what stands here.

Letters in names say the layout: B images, C classes, D channels, K bank slots, N pixels, HW image, hw feature grid.
Where the print cannot be meant (sums for means, a one-hot maximum), the docstring says what is done instead and why.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dida_kernels import checks
from dida_kernels.checks import IGNORE
from dida_kernels.dispatch import op

# ---- III-A: self-training ------------------------------------------------------------------------------------------


def segmentation_loss(logits_BCHW: Tensor, label_BHW: Tensor) -> Tensor:
    """Supervised cross-entropy on the source. Implements Eq. (1).

    The print sums over pixels; the mean over all B*H*W positions is taken instead, ignored ones (255) counting as
    zero, so that the loss does not grow with the crop. Returns a scalar.
    """
    return F.cross_entropy(logits_BCHW, label_BHW, ignore_index=IGNORE, reduction="none").mean()


def pseudo_label(semantic_BCHW: Tensor) -> Tensor:
    """The most probable class of every pixel, [B, H, W] int64. Implements Eq. (2)."""
    return semantic_BCHW.argmax(1)


def self_training_loss(logits_BCHW: Tensor, label_BHW: Tensor, weight_BHW: Tensor) -> Tensor:
    """Cross-entropy with the (mixed) pseudo-label, each pixel weighted by its confidence. Implements Eq. (3).

    The print thresholds a one-hot vector, whose maximum is always 1, and drops the label from the log-likelihood;
    the weight therefore comes from the probability (see `confident`) and the label selects the class. Returns a scalar,
    the mean over all B*H*W positions.
    """
    loss_BHW = F.cross_entropy(logits_BCHW, label_BHW, ignore_index=IGNORE, reduction="none")
    return (loss_BHW * weight_BHW).mean()


def confident(confidence_BHW: Tensor, threshold: float) -> Tensor:
    """The indicator of Eq. (3): 1.0 where the confidence reaches the threshold, else 0.0. [B, H, W] float."""
    return (confidence_BHW >= threshold).to(confidence_BHW.dtype)


# ---- III-C: instance-level discrimination --------------------------------------------------------------------------


def similarity_logits(embed_ND: Tensor, bank_KD: Tensor, *, temperature: float) -> Tensor:
    """cos(e, e_k) / t, the exponent of Eq. (4) and (5). [N, K] in the dtype of `embed_ND`.

    The formula prints a raw dot product, the text says cosine similarity; cosine is what keeps t = 0.1 meaningful for
    features of any scale. A zero embedding has cosine 0 with every slot, so a dead ReLU pixel is similar to none, and
    as no small step gives it a direction worth following, its gradient is 0 (see `unit`).
    """
    return unit(embed_ND) @ unit(bank_KD.to(embed_ND.dtype)).T / temperature


def unit(x_XD: Tensor) -> Tensor:
    """Rows scaled to length 1. [X, D], dtype kept.

    A row no longer than 1e-12 (in float16 its smallest normal number) has no direction: it becomes 0 and passes no
    gradient on. Dividing by a floor under the length, as F.normalize does, would multiply the gradient by 1e12 there,
    and one dead pixel would outweigh all others of the batch.
    """
    shortest = max(1e-12, torch.finfo(x_XD.dtype).tiny)
    length_X1 = torch.linalg.vector_norm(x_XD, dim=1, keepdim=True)
    return torch.where(length_X1 <= shortest, 0.0, x_XD / length_X1.clamp(min=shortest))  # NaN stays NaN


@op(check=checks.check_bank_similarity)
def bank_similarity(embed_ND: Tensor, bank_KD: Tensor, *, temperature: float) -> Tensor:
    """Softmax over the bank of the cosine similarity: the instance-level prediction. Implements Eq. (4) and Eq. (5).

    Args: embed_ND [N, D] floating; bank_KD [K, D] float (no gradient); temperature t > 0.
    Returns [N, K] float32 (float64 for float64 inputs), rows summing to one; differentiable in `embed_ND`.
    Raises TypeError or ValueError for wrong dtypes, shapes, devices, t <= 0 or NaN, K = 0, a bank wanting a gradient.
    """
    return similarity_logits(embed_ND, bank_KD, temperature=temperature).softmax(1, dtype=statistics_dtype(embed_ND))


@op(check=checks.check_instance_loss)
def instance_loss(
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
    """Cross-entropy between the student's and the regenerated instance-level distribution. Implements Eq. (6).

    loss(x) = -sum_k q_hat_k(x) log q_k(x), and of that the mean over pixels, sum w loss / sum w, with q of the student
    (see Eq. (4)), q_hat = scale(q of the teacher's embedding, Eq. (5), scatter(z)) (Eq. (7), (8)). The pixels are
    those of `z_BCHW`; embeddings on a coarser grid are enlarged bilinearly (align_corners=False) before
    normalisation. The print sums over pixels, each once; the mean is taken. A z of all ones leaves the teacher's q
    as it is. Where a class prior is given, the student's q is proportional to exp(cos / t + log_prior[class of slot])
    (logit adjustment; the paper has none).

    Args:
        student_BDhw: [B, D, h, w] floating; the only input that gets a gradient.
        teacher_BDhw: [B, D, h, w] floating. z_BCHW: [B, C, H, W] floating, non-negative; rows need not sum to one,
            but to a number of that order.
        weight_BHW: [B, H, W] floating, finite and at least 0: what each pixel counts; those of 0 cost nothing.
        bank_KD: [K, D]. label_K: [K] int64 in 0 .. C-1. log_prior_C: [C] floating, finite, up to a constant.
    Returns a scalar float32 (float64 for float64 inputs); 0 with gradient 0 if no pixel counts. A pixel whose z has
    no mass on slots (`on_slots`) has no q_hat and leaves both sums.
    Raises TypeError or ValueError that names argument, expectation and value; also if a gradient is asked for anything
    but the student.
    """
    student_ND = pixels(enlarge(student_BDhw, z_BCHW.shape[-2:]))
    teacher_ND = pixels(enlarge(teacher_BDhw, z_BCHW.shape[-2:]))
    dtype = statistics_dtype(student_ND)
    z_NC = pixels(z_BCHW).to(dtype)

    # Eq. (8) as a sum of logarithms: in float32 q itself is 0 on slots that are colder than e^-103.
    w_NK = similarity_logits(teacher_ND, bank_KD, temperature=temperature).to(dtype) + scatter(z_NC, label_K).log()
    q_hat_NK = torch.where(on_slots(z_NC, label_K)[:, None], w_NK, 0.0).softmax(1)
    s_NK = similarity_logits(student_ND, bank_KD, temperature=temperature).to(dtype)
    if log_prior_C is not None:
        s_NK = s_NK + log_prior_C.to(dtype)[label_K]
    weight_N = weight_BHW.flatten().to(dtype) * on_slots(z_NC, label_K)
    loss_N = torch.where(weight_N > 0, weight_N * -(q_hat_NK * s_NK.log_softmax(1)).sum(1), 0.0)
    total = weight_N.sum()
    return loss_N.sum() / total.where(total > 0, 1.0)


MASS = 1e-6  # the share of a pixel's z that must be on classes with slots; less, and nothing says which slots


def on_slots(z_NC: Tensor, label_K: Tensor) -> Tensor:
    """[N] bool: is at least MASS of the pixel's z on classes that have slots? The one rule of all backends.

    It asks z alone: however cold the softmax is, a slot far from the teacher's embedding is one. A z of NaN
    counts, so that it is seen in the loss.
    """
    has_slots_C = torch.zeros(z_NC.shape[1], dtype=torch.bool, device=label_K.device).index_fill(0, label_K, True)
    on_N = torch.where(has_slots_C, z_NC, 0.0).sum(1)
    return ~((on_N <= 0) | (on_N < MASS * z_NC.sum(1)))


# ---- III-D: pseudo-label regeneration ------------------------------------------------------------------------------


@op(check=checks.check_scatter)
def scatter(semantic_NC: Tensor, label_K: Tensor) -> Tensor:
    """Unfold class probabilities onto the slots: z_sc[n, k] = z[n, label k]. Implements Eq. (7).

    Args: semantic_NC [N, C] floating; label_K [K] int64 in 0 .. C-1. Returns [N, K] in its dtype; the adjoint of
    `gather`. Raises TypeError or ValueError for wrong dtypes, shapes or devices, K = 0, a label outside its range.
    """
    return semantic_NC.index_select(1, label_K)


def scale(q_NK: Tensor, z_sc_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Scale the instance level by the scattered class level and renormalise. Implements Eq. (8).

    Returns q_hat [N, K] and a bool [N]: False where the sum is 0 (all class mass on classes without slots), so that
    no distribution is defined; q_hat is 0 there. With z in place of q and q_ga in place of z_sc it is the same rule for
    the class level (Table V, "scaling").
    """
    product_NK = q_NK * z_sc_NK
    total_N1 = product_NK.sum(1, keepdim=True)
    defined_N1 = total_N1 > 0
    return torch.where(defined_N1, product_NK / total_N1.where(defined_N1, 1.0), 0.0), defined_N1.squeeze(1)


@op(check=checks.check_gather)
def gather(q_NK: Tensor, label_K: Tensor, *, classes: int) -> Tensor:
    """Sum instance-level mass per class: q_ga[n, c] = sum of q[n, k] over the slots k of class c. Implements Eq. (9).

    Args: q_NK [N, K] floating; label_K [K] int64 in 0 .. classes-1. Returns [N, C] in the dtype of q; the adjoint of
    `scatter`. Raises TypeError or ValueError for wrong dtypes, shapes or devices, K = 0, a label outside its range.
    """
    return q_NK.new_zeros(len(q_NK), classes).index_add(1, label_K, q_NK)


@op(check=checks.check_class_similarity)
def class_similarity(
    embed_BDhw: Tensor,
    bank_KD: Tensor,
    label_K: Tensor,
    *,
    classes: int,
    temperature: float,
    size: tuple[int, int],
    log_prior_C: Tensor | None = None,
) -> Tensor:
    """gather(bank_similarity(e)) at image resolution: what the bank says of the class of every pixel. See Eq. (5), (9).

    Args: embed_BDhw [B, D, h, w] floating, enlarged bilinearly to `size` = (H, W), then normalised; bank_KD [K, D];
        label_K [K] int64 in 0 .. classes-1; log_prior_C [classes] floating, finite, up to a constant: q is then
        proportional to exp(cos / t + log_prior[class of slot]), as in `instance_loss`.
    Returns [B, C, H, W] float32 (float64 for float64 inputs), summing to one over C. Not differentiable: it is only
    used as a pseudo-label.
    Raises TypeError or ValueError for wrong dtypes, shapes or devices, t <= 0 or NaN, K = 0, a label outside its range,
    a size below the embedding's, a log_prior that is not finite, an input wanting a gradient.
    """
    q_NK = bank_similarity(pixels(enlarge(embed_BDhw, size)), bank_KD, temperature=temperature)
    q_ga_NC = gather(q_NK, label_K, classes=classes)
    if log_prior_C is not None:  # a factor per class, so it may as well be taken after the sum
        q_ga_NC, _ = scale(q_ga_NC, log_prior_C.to(q_ga_NC.dtype).softmax(0).expand_as(q_ga_NC))
    return q_ga_NC.unflatten(0, (len(embed_BDhw), *size)).permute(0, 3, 1, 2)


def smooth(semantic_BCHW: Tensor, q_ga_BCHW: Tensor, phi: float) -> Tensor:
    """z_hat = phi z + (1 - phi) q_ga: the class level corrected by the instance level. Implements Eq. (10)."""
    return phi * semantic_BCHW + (1 - phi) * q_ga_BCHW


# ---- III-E: the bank -----------------------------------------------------------------------------------------------


@op(check=checks.check_boundary_mask)
def boundary_mask(label_BHW: Tensor, *, classes: int, threshold: int = 2) -> Tensor:
    """True on pixels whose 3x3 window holds at least `threshold` distinct valid classes. Implements Algorithm 1.

    The print asks for more than 2, which keeps only points where three classes meet, while its text and figures mean
    object boundaries: the default is at least 2. The centre must be valid, 255 is not counted, and the window ends
    at the image's edge (which counts as replicating it).

    Args: label_BHW [B, H, W] uint8, int32 or int64 with values in 0 .. classes-1 or 255; threshold >= 1.
    Returns [B, H, W] bool.
    Raises TypeError or ValueError for another dtype, shape or label, classes < 1, a threshold that is not whole or < 1.
    """
    class_C = torch.arange(classes, device=label_BHW.device)
    is_class_BCHW = (label_BHW.unsqueeze(1) == class_C[:, None, None]).float()
    distinct_BHW = F.max_pool2d(is_class_BCHW, 3, stride=1, padding=1).sum(1)
    return (distinct_BHW >= threshold) & (label_BHW != IGNORE)


@op(check=checks.check_bank_update)
def bank_update(
    bank_KD: Tensor,
    label_K: Tensor,
    embed_BDhw: Tensor,
    label_BHW: Tensor,
    boundary_BHW: Tensor,
    *,
    classes: int,
    momentum: float,
) -> Tensor:
    """e_k <- omega e_k + (1 - omega) e_avg[class of k] for every class in the batch. Implements Eq. (11).

    e_avg is the mean of two means: over the class's boundary pixels and over its interior pixels; where one of the sets
    is empty it is the other alone. Rows of classes without any pixel are returned unchanged, bit for bit. The whole
    batch takes part, every image with its own label map; embeddings on a coarser grid are enlarged bilinearly.

    Args: bank_KD [K, D] float32; label_K [K] int64; embed_BDhw [B, D, h, w] floating; label_BHW [B, H, W] uint8, int32,
        or int64, 0 .. classes-1 or 255; boundary_BHW [B, H, W] bool (all False: e_avg is the plain class mean);
        momentum omega in [0, 1].
    Returns the new bank [K, D] in the bank's dtype; nothing is differentiable and nothing is changed in place.
    Raises TypeError or ValueError for wrong dtypes, shapes or devices, K = 0, a label outside its range, a momentum
    outside [0, 1], an input wanting a gradient.
    """
    embed_ND = pixels(enlarge(embed_BDhw.to(statistics_dtype(embed_BDhw)), label_BHW.shape[-2:]))
    # Two sets per class, boundary and interior, and a last row that collects ignored pixels and is then dropped.
    label_N = label_BHW.flatten().long()
    set_N = torch.where(label_N == IGNORE, 2 * classes, label_N + classes * boundary_BHW.flatten())
    sum_SD = embed_ND.new_zeros(2 * classes + 1, embed_ND.shape[1]).index_add(0, set_N, embed_ND)[:-1]
    count_S = embed_ND.new_zeros(2 * classes + 1).index_add(0, set_N, torch.ones_like(embed_ND[:, 0]))[:-1]
    return blend(bank_KD, label_K, sum_SD, count_S, momentum=momentum)


def blend(bank_KD: Tensor, label_K: Tensor, sum_SD: Tensor, count_S: Tensor, *, momentum: float) -> Tensor:
    """The tail of Eq. (11): from sums and counts of the sets (C interiors, then C boundaries) to the new bank."""
    mean_2CD = (sum_SD / count_S.clamp(min=1)[:, None]).unflatten(0, (2, -1))
    exists_2C = (count_S > 0).unflatten(0, (2, -1))
    average_CD = mean_2CD.sum(0) / exists_2C.sum(0).clamp(min=1)[:, None]  # an empty set has mean 0
    moved_KD = momentum * bank_KD + (1 - momentum) * average_CD[label_K].to(bank_KD.dtype)
    return torch.where(exists_2C.any(0)[label_K][:, None], moved_KD, bank_KD)


# ---- layouts -------------------------------------------------------------------------------------------------------


def enlarge(x_BXhw: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear to `size` = (H, W) as the logits are enlarged (align_corners=False); same grid: unchanged."""
    if tuple(x_BXhw.shape[-2:]) == tuple(size):
        return x_BXhw
    return F.interpolate(x_BXhw, size=tuple(size), mode="bilinear", align_corners=False)


def pixels(x_BXHW: Tensor) -> Tensor:
    """[B, X, H, W] -> [N, X], one row per pixel."""
    return x_BXHW.permute(0, 2, 3, 1).flatten(0, 2)


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Softmax, sums and losses are kept in float32 whatever the inputs are, or in float64 for float64 inputs."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32

"""III-C: instance-level discrimination of the strong view against the regenerated instance-level pseudo-label."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import dida_kernels
from dida.batch import Belief, Mixed, Prediction
from dida.method.bank import InstanceBank
from dida.method.views import StepRandom

Choose = Callable[[Tensor, Tensor, StepRandom], Tensor]  # (valid, label, rng) -> those of the valid that count


def at_image(
    seen: Prediction,
    belief: Belief,
    mixed: Mixed,
    bank: InstanceBank,
    rng: StepRandom,
    *,
    weight: float,
    temperature: float,
    choose: Choose,
) -> Tensor:
    """L_ins over the image's own target pixels, see Eq. (6). Scalar.

    Pixels pasted from the source are left out: there the student sees another object than the teacher did.
    """
    counts_BHW = choose(mixed.valid, mixed.label, rng)
    return _loss(seen, belief, counts_BHW, bank, weight, temperature, pool=None)


def at_stride4(
    seen: Prediction,
    belief: Belief,
    mixed: Mixed,
    bank: InstanceBank,
    rng: StepRandom,
    *,
    weight: float,
    temperature: float,
    choose: Choose,
) -> Tensor:
    """L_ins over the cells of the feature grid: those of target pixels only, with the mean class prior of each."""
    size = tuple(seen.embed.shape[-2:])
    whole_Bhw = F.adaptive_avg_pool2d(mixed.valid.float(), size) == 1
    label_B1hw = F.interpolate(mixed.label[:, None].float(), size=size, mode="nearest-exact")
    counts_Bhw = choose(whole_Bhw, label_B1hw[:, 0].long(), rng)
    return _loss(seen, belief, counts_Bhw, bank, weight, temperature, pool=size)


def off(
    seen: Prediction,
    belief: Belief,
    mixed: Mixed,
    bank: InstanceBank,
    rng: StepRandom,
    *,
    weight: float,
    temperature: float,
    choose: Choose,
) -> Tensor:
    """No instance loss."""
    return seen.logits.new_zeros(())


INSTANCE_LOSS = {"image": at_image, "stride4": at_stride4, "off": off}


def _loss(
    seen: Prediction,
    belief: Belief,
    valid_BHW: Tensor,
    bank: InstanceBank,
    weight: float,
    temperature: float,
    pool: tuple[int, int] | None,
) -> Tensor:
    total = torch.zeros((), device=seen.embed.device)
    for term in belief.terms:
        prior_BCHW = term.prior if pool is None else F.adaptive_avg_pool2d(term.prior, pool)
        loss = dida_kernels.instance_loss(
            seen.embed, term.embed, prior_BCHW, valid_BHW, bank.features, bank.labels, temperature=temperature
        )
        total = total + term.share * loss
    return weight * total


# ---- which pixels count ---------------------------------------------------------------------------------------------


def all_pixels(valid_BHW: Tensor, label_BHW: Tensor, rng: StepRandom, *, classes: int) -> Tensor:
    """Every valid pixel, as Eq. (6) sums: each class counts as much as it covers."""
    return valid_BHW


def balanced_pixels(valid_BHW: Tensor, label_BHW: Tensor, rng: StepRandom, *, classes: int) -> Tensor:
    """A random part of the valid pixels with about as many of every class found as the rarest of them has.

    The bank has as many slots for poles as for roads, and a softmax over cosines has no bias that could learn how rare
    poles are. Averaged over all pixels its cross-entropy therefore moves whatever could be a pole towards the road, and
    the features, which the classifier reads too, go along. The mean over this part is, in expectation, the mean over
    classes of each class's mean: docs/instance_loss_on_the_toy.md has what it changes.
    """
    index_BHW = torch.where(valid_BHW, label_BHW, classes)
    count_C = torch.zeros(classes + 1, device=label_BHW.device).index_add(
        0, index_BHW.flatten(), torch.ones(index_BHW.numel(), device=label_BHW.device)
    )
    rarest = count_C[:classes].where(count_C[:classes] > 0, torch.inf).amin()
    keep_C = rarest / count_C.clamp(min=1)
    draw_BHW = torch.rand(label_BHW.shape, generator=rng.device, device=label_BHW.device)
    return valid_BHW & (draw_BHW < keep_C[index_BHW])


INSTANCE_PIXELS = {"all": all_pixels, "balanced": balanced_pixels}

"""III-C: instance-level discrimination of the strong view against the regenerated instance-level pseudo-label."""

import torch
import torch.nn.functional as F
from torch import Tensor

import dida_kernels
from dida.batch import Belief, Mixed, Prediction
from dida.method.bank import InstanceBank


def at_image(seen: Prediction, belief: Belief, mixed: Mixed, bank: InstanceBank, *, weight: float, temperature: float):
    """L_ins over the image's own target pixels, see Eq. (6). Scalar.

    Pixels pasted from the source are left out: there the student sees another object than the teacher did.
    """
    return _loss(seen, belief, mixed.valid, bank, weight, temperature, pool=None)


def at_stride4(
    seen: Prediction, belief: Belief, mixed: Mixed, bank: InstanceBank, *, weight: float, temperature: float
):
    """L_ins over the cells of the feature grid: those of target pixels only, with the mean class prior of each."""
    size = tuple(seen.embed.shape[-2:])
    whole_BHW = F.adaptive_avg_pool2d(mixed.valid.float(), size) == 1
    return _loss(seen, belief, whole_BHW, bank, weight, temperature, pool=size)


def off(seen: Prediction, belief: Belief, mixed: Mixed, bank: InstanceBank, *, weight: float, temperature: float):
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

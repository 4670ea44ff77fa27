"""III-D: the class level and the instance level correct each other.

`semantic` strategies make z-hat, `instance` strategies make q-hat (as factors, see `InstanceTarget`).
"""

import torch
from torch import Tensor

from dida.batch import Belief, InstanceTarget, Prediction
from dida.method.bank import InstanceBank
from dida_kernels import class_similarity
from dida_kernels.equations import scale, smooth


def smooth_semantic(
    z_BCHW: Tensor, embed_BDhw: Tensor, bank: InstanceBank, *, phi: float, temperature: float
) -> Tensor:
    """z-hat by gathering and smoothing, see Eq. (9), (10)."""
    return smooth(z_BCHW, gathered(z_BCHW, embed_BDhw, bank, temperature), phi)


def scale_semantic(z_BCHW: Tensor, embed_BDhw: Tensor, bank: InstanceBank, *, phi: float, temperature: float) -> Tensor:
    """z-hat proportional to z times the gathered instance level: the rule of Eq. (8) at the class level (Table V)."""
    q_ga_BCHW = gathered(z_BCHW, embed_BDhw, bank, temperature)
    z_hat_BCHW, defined_BHW = scale(z_BCHW, q_ga_BCHW)
    return torch.where(defined_BHW[:, None], z_hat_BCHW, z_BCHW)


def keep_semantic(z_BCHW: Tensor, embed_BDhw: Tensor, bank: InstanceBank, *, phi: float, temperature: float) -> Tensor:
    """z-hat = z: the bank has no say in the class level."""
    return z_BCHW


def gathered(z_BCHW: Tensor, embed_BDhw: Tensor, bank: InstanceBank, temperature: float) -> Tensor:
    """q_ga of every pixel, [B, C, H, W]."""
    return class_similarity(
        embed_BDhw,
        bank.features,
        bank.labels,
        classes=z_BCHW.shape[1],
        temperature=temperature,
        size=tuple(z_BCHW.shape[-2:]),
    )


def scale_instance(z_BCHW: Tensor, embed_BDhw: Tensor, *, phi: float) -> tuple[InstanceTarget, ...]:
    """q-hat by scattering and scaling, see Eq. (7), (8)."""
    return (InstanceTarget(1.0, embed_BDhw, z_BCHW),)


def smooth_instance(z_BCHW: Tensor, embed_BDhw: Tensor, *, phi: float) -> tuple[InstanceTarget, ...]:
    """q-hat = phi q + (1 - phi) z_sc / sum z_sc (Table V; no formula is printed).

    Cross-entropy is linear in its target, so the loss is the same sum of two losses. A zero embedding is equally
    similar to every slot, which leaves z_sc alone.
    """
    return (
        InstanceTarget(phi, embed_BDhw, torch.ones_like(z_BCHW)),
        InstanceTarget(1 - phi, torch.zeros_like(embed_BDhw), z_BCHW),
    )


def keep_instance(z_BCHW: Tensor, embed_BDhw: Tensor, *, phi: float) -> tuple[InstanceTarget, ...]:
    """q-hat = q: the class level has no say in the instance level."""
    return (InstanceTarget(1.0, embed_BDhw, torch.ones_like(z_BCHW)),)


def no_instance(z_BCHW: Tensor, embed_BDhw: Tensor, *, phi: float) -> tuple[InstanceTarget, ...]:
    """No instance level at all."""
    return ()


SEMANTIC = {"smooth": smooth_semantic, "scale": scale_semantic, "none": keep_semantic}
INSTANCE = {"scale": scale_instance, "smooth": smooth_instance, "none": keep_instance}


def regenerate(seen: Prediction, bank: InstanceBank, *, semantic, instance) -> Belief:
    """Both levels of the teacher's prediction, each corrected by the other."""
    z_BCHW = seen.logits.softmax(1)
    return Belief(
        semantic=semantic(z_BCHW, seen.embed, bank),
        prior=z_BCHW,
        terms=instance(z_BCHW, seen.embed),
    )

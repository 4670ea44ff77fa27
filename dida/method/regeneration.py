"""III-D: the class level and the instance level correct each other."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dida.batch import Belief, InstanceTarget, Prediction
from dida.method.bank import InstanceBank
from dida.method.prior import ClassShares, Prior
from dida_kernels import class_similarity
from dida_kernels.equations import scale, smooth


class SemanticRule(Protocol):
    """Makes z-hat, [B, C, H, W]."""

    def __call__(self, z_BCHW: Tensor, embed_BDhw: Tensor, bank: InstanceBank, log_prior_C: Tensor | None, /) -> Tensor:
        """`log_prior_C`: the prior of the teacher's own q, see `ClassPrior`."""
        ...


class InstanceRule(Protocol):
    """Makes q-hat, as factors: see `InstanceTarget`."""

    def __call__(
        self, z_BCHW: Tensor, embed_BDhw: Tensor, log_prior_C: Tensor | None, /
    ) -> tuple[InstanceTarget, ...]: ...


@dataclass(frozen=True)
class Regenerate:
    """Both levels of the teacher's prediction, each corrected by the other from step `start` on."""

    semantic: SemanticRule
    instance: InstanceRule
    prior: Prior
    start: int  # first step at which the bank is asked

    def __call__(self, seen: Prediction, bank: InstanceBank, shares: ClassShares, step: int) -> Belief:
        z_BCHW = seen.logits.softmax(1)
        if step < self.start:
            return Belief(semantic=z_BCHW, z=z_BCHW, terms=())
        prior = self.prior(shares, bank)
        return Belief(
            semantic=self.semantic(z_BCHW, seen.embed, bank, prior.teacher),
            z=z_BCHW,
            terms=self.instance(z_BCHW, seen.embed, prior.teacher),
            log_prior=prior.student,
        )


# ---- z-hat (Table V, rows) -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SmoothSemantic:
    """z-hat by gathering and smoothing, see Eq. (9), (10)."""

    phi: float
    temperature: float

    def __call__(self, z_BCHW: Tensor, embed_BDhw: Tensor, bank: InstanceBank, log_prior_C: Tensor | None) -> Tensor:
        return smooth(z_BCHW, gathered(z_BCHW, embed_BDhw, bank, self.temperature, log_prior_C), self.phi)


@dataclass(frozen=True)
class ScaleSemantic:
    """z-hat proportional to z times the gathered instance level: the rule of Eq. (8) at the class level (Table V).

    z has the prior, once.
    """

    temperature: float

    def __call__(self, z_BCHW: Tensor, embed_BDhw: Tensor, bank: InstanceBank, log_prior_C: Tensor | None) -> Tensor:
        q_ga_BCHW = gathered(z_BCHW, embed_BDhw, bank, self.temperature, None)
        z_hat_BCHW, defined_BHW = scale(z_BCHW, q_ga_BCHW)
        return torch.where(defined_BHW[:, None], z_hat_BCHW, z_BCHW)


@dataclass(frozen=True)
class KeepSemantic:
    """z-hat = z: the bank has no say in the class level."""

    def __call__(self, z_BCHW: Tensor, embed_BDhw: Tensor, bank: InstanceBank, log_prior_C: Tensor | None) -> Tensor:
        return z_BCHW


def gathered(
    z_BCHW: Tensor, embed_BDhw: Tensor, bank: InstanceBank, temperature: float, log_prior_C: Tensor | None
) -> Tensor:
    """q_ga of every pixel, [B, C, H, W]."""
    _, C, H, W = z_BCHW.shape
    return class_similarity(
        embed_BDhw,
        bank.features,
        bank.labels,
        classes=C,
        temperature=temperature,
        size=(H, W),
        log_prior_C=log_prior_C,
    )


# ---- q-hat (Table V, columns) --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScaleInstance:
    """q-hat by scattering and scaling, see Eq. (7), (8): z has the prior, once."""

    def __call__(self, z_BCHW: Tensor, embed_BDhw: Tensor, log_prior_C: Tensor | None) -> tuple[InstanceTarget, ...]:
        return (InstanceTarget(1.0, embed_BDhw, z_BCHW),)


@dataclass(frozen=True)
class SmoothInstance:
    """q-hat = phi q + (1 - phi) z_sc / sum z_sc (Table V; no formula is printed).

    Cross-entropy is linear in its target, so the loss is the same sum of two losses. A zero embedding is equally
    similar to every slot, which leaves z_sc alone.
    """

    phi: float

    def __call__(self, z_BCHW: Tensor, embed_BDhw: Tensor, log_prior_C: Tensor | None) -> tuple[InstanceTarget, ...]:
        return (
            InstanceTarget(self.phi, embed_BDhw, _alone(z_BCHW, log_prior_C)),
            InstanceTarget(1 - self.phi, torch.zeros_like(embed_BDhw), z_BCHW),
        )


@dataclass(frozen=True)
class KeepInstance:
    """q-hat = q: the class level has no say in the instance level."""

    def __call__(self, z_BCHW: Tensor, embed_BDhw: Tensor, log_prior_C: Tensor | None) -> tuple[InstanceTarget, ...]:
        return (InstanceTarget(1.0, embed_BDhw, _alone(z_BCHW, log_prior_C)),)


@dataclass(frozen=True)
class NoInstance:
    """No instance level at all."""

    def __call__(self, z_BCHW: Tensor, embed_BDhw: Tensor, log_prior_C: Tensor | None) -> tuple[InstanceTarget, ...]:
        return ()


def _alone(z_BCHW: Tensor, log_prior_C: Tensor | None) -> Tensor:
    """The factor per class of a q that stands without z: its prior, the largest as 1; [B, C, H, W]."""
    if log_prior_C is None:
        return torch.ones_like(z_BCHW)
    prior_C = (log_prior_C - log_prior_C.amax()).exp().to(z_BCHW.dtype)
    return prior_C[:, None, None].expand_as(z_BCHW)

"""Beside the paper: the class prior that a softmax over a class-balanced bank lacks.

The bank has as many slots for poles as for roads, so the softmax over it says poles as readily as road, and averaged
over all pixels Eq. (6) moves whatever could be a pole towards the road: the features learn what a prior should say.
With q_k proportional to pi_c / n_c exp(cos / t) for a slot k of class c (n_c slots), as logit adjustment has it
(balanced softmax), nothing is left to learn there. pi is what the pseudo-labels say.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dida.batch import Target
from dida.machine.distributed import ALONE, World
from dida.method.bank import InstanceBank

FLOOR = 1e-4  # share of the pixels that every class is granted, so that its logarithm is finite


class ClassShares(nn.Module):
    """share [C] float32, a buffer: the part of the target's pixels that each class is believed to have; first 1 / C."""

    share: Tensor

    def __init__(self, classes: int):
        super().__init__()
        self.register_buffer("share", torch.full((classes,), 1 / classes))

    def log_prior(self, bank: InstanceBank, power: float) -> Tensor:
        """log (pi^power / n) of every class, [C]: what its slots add to an exponent. A share is at least FLOOR."""
        return power * self.share.clamp(min=FLOOR).log() - bank.held.clamp(min=1).log()


# ---- how shares follow the pseudo-labels ---------------------------------------------------------------------------


@dataclass(frozen=True)
class AverageShares:
    """pi <- momentum pi + (1 - momentum) share in the batch's pseudo-labels, of pixels that are used."""

    momentum: float = 0.98
    world: World = ALONE

    @torch.no_grad()
    def __call__(self, shares: ClassShares, target: Target) -> None:
        label_BHW, used_BHW = target.pseudo.label, target.pseudo.used
        count_C = torch.zeros(len(shares.share), dtype=torch.int64, device=label_BHW.device).index_add(
            0, label_BHW.flatten(), used_BHW.flatten().long()
        )
        count_C = self.world.sum(count_C)
        total = count_C.sum()
        share_C = torch.where(total > 0, count_C / total.clamp(min=1), shares.share)
        shares.share.lerp_(share_C, 1 - self.momentum)


@dataclass(frozen=True)
class KeepShares:
    """Shares stay 1 / C: with --instance-prior none nobody asks for them, and where --no-self-training leaves no
    pseudo-labels nothing says what they are."""

    def __call__(self, shares: ClassShares, target: Target | None) -> None:
        return None


# ---- who is given the prior ----------------------------------------------------------------------------------------


class ClassPrior(NamedTuple):
    """log (pi / n) of every class, [C], for each side of L_ins; None: no prior."""

    student: Tensor | None
    teacher: Tensor | None  # where its q stands without z, which has a prior already


class Prior(Protocol):
    """Makes the priors of a step."""

    def __call__(self, shares: ClassShares, bank: InstanceBank, /) -> ClassPrior: ...


@dataclass(frozen=True)
class NoPrior:
    """As the paper prints it."""

    def __call__(self, shares: ClassShares, bank: InstanceBank) -> ClassPrior:
        return ClassPrior(None, None)


@dataclass(frozen=True)
class StudentPrior:
    """q of the student alone."""

    power: float  # of pi: 1 where all pixels count alike; less where weights make the classes more alike

    def __call__(self, shares: ClassShares, bank: InstanceBank) -> ClassPrior:
        return ClassPrior(shares.log_prior(bank, self.power), None)


@dataclass(frozen=True)
class BothPriors:
    """q of the student, and the teacher's own q where it stands alone or is smoothed, be it gathered."""

    power: float

    def __call__(self, shares: ClassShares, bank: InstanceBank) -> ClassPrior:
        log_prior_C = shares.log_prior(bank, self.power)
        return ClassPrior(log_prior_C, log_prior_C)

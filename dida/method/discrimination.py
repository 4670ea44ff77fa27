"""III-C: instance-level discrimination of the strong view against the regenerated instance-level pseudo-label."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

import dida_kernels
from dida.batch import Belief, Mixed, Prediction
from dida.method.bank import InstanceBank
from dida.method.views import StepRandom


class Choose(Protocol):
    """Which of the valid pixels count. [B, *, *] bool."""

    def __call__(self, valid_BXX: Tensor, label_BXX: Tensor, rng: StepRandom, /) -> Tensor: ...


@dataclass(frozen=True)
class InstanceLoss:
    """lambda_ins L_ins over target pixels, see Eq. (6). Scalar; 0 before there is an instance level.

    Pixels pasted from the source are left out: there the student sees another object than the teacher did.
    """

    weight: float  # lambda_ins
    temperature: float
    grid: "AtImage | AtStride4"  # the pixels that the mean runs over
    choose: Choose  # those of them that count

    def __call__(self, seen: Prediction, belief: Belief, mixed: Mixed, bank: InstanceBank, rng: StepRandom) -> Tensor:
        h, w = seen.embed.shape[-2:]
        counts_BXX = self.choose(*self.grid.valid_and_label(mixed, (h, w)), rng)
        total = torch.zeros((), device=seen.embed.device)
        for term in belief.terms:
            loss = dida_kernels.instance_loss(
                seen.embed,
                term.embed,
                self.grid.prior(term.prior, (h, w)),
                counts_BXX,
                bank.features,
                bank.labels,
                temperature=self.temperature,
            )
            total = total + term.share * loss
        return self.weight * total


@dataclass(frozen=True)
class NoInstanceLoss:
    """The class level alone."""

    def __call__(self, seen: Prediction, belief: Belief, mixed: Mixed, bank: InstanceBank, rng: StepRandom) -> Tensor:
        return seen.logits.new_zeros(())


# ---- the grid -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AtImage:
    """The image's own pixels."""

    def valid_and_label(self, mixed: Mixed, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return mixed.valid, mixed.label

    def prior(self, prior_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
        return prior_BCHW


@dataclass(frozen=True)
class AtStride4:
    """Cells of the feature grid, of `size` (h, w): those of valid pixels only, each with its mean class prior."""

    def valid_and_label(self, mixed: Mixed, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        whole_Bhw = F.adaptive_avg_pool2d(mixed.valid.float(), size) == 1
        label_B1hw = F.interpolate(mixed.label[:, None].float(), size=size, mode="nearest-exact")
        return whole_Bhw, label_B1hw[:, 0].long()

    def prior(self, prior_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
        return F.adaptive_avg_pool2d(prior_BCHW, size)


# ---- which pixels count ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CountAll:
    """Every valid pixel, as Eq. (6) sums: each class counts as much as it covers."""

    def __call__(self, valid_BHW: Tensor, label_BHW: Tensor, rng: StepRandom) -> Tensor:
        return valid_BHW


@dataclass(frozen=True)
class CountBalanced:
    """A random part of the valid pixels with about as many of every class found as the rarest of them has.

    The bank has as many slots for poles as for roads, and a softmax over cosines has no bias that could learn how rare
    poles are. Averaged over all pixels its cross-entropy therefore moves whatever could be a pole towards the road, and
    the features, which the classifier reads too, go along. The mean over this part is, in expectation, the mean over
    classes of each class's mean: docs/instance_loss_on_the_toy.md has what it changes.
    """

    classes: int

    def __call__(self, valid_BHW: Tensor, label_BHW: Tensor, rng: StepRandom) -> Tensor:
        index_BHW = torch.where(valid_BHW, label_BHW, self.classes)
        count_C = torch.zeros(self.classes + 1, device=label_BHW.device).index_add(
            0, index_BHW.flatten(), torch.ones(index_BHW.numel(), device=label_BHW.device)
        )
        rarest = count_C[: self.classes].where(count_C[: self.classes] > 0, torch.inf).amin()
        keep_C = rarest / count_C.clamp(min=1)
        draw_BHW = torch.rand(label_BHW.shape, generator=rng.device, device=label_BHW.device)
        return valid_BHW & (draw_BHW < keep_C[index_BHW])

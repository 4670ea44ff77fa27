"""III-C: instance-level discrimination of the strong view against the regenerated instance-level pseudo-label."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import dida_kernels
from dida.batch import Belief, Mixed, Prediction
from dida.machine.distributed import ALONE, World
from dida.method.bank import InstanceBank
from dida_kernels.equations import on_slots, pixels


@dataclass(frozen=True)
class InstanceLoss:
    """lambda_ins L_ins over target pixels, see Eq. (6). Scalar; 0 before there is an instance level.

    Pixels pasted from the source are left out: there the student sees another object than the teacher did. A weighted
    mean over the others, so that the length of the gradient does not depend on how many of them count.
    """

    weight: float  # lambda_ins
    temperature: float
    grid: "AtImage | AtStride4"  # the pixels that the mean runs over
    weigh: "ClassWeights"  # what each of them counts
    world: World = ALONE

    def __call__(self, seen: Prediction, belief: Belief, mixed: Mixed, bank: InstanceBank) -> Tensor:
        if not belief.terms:
            return seen.logits.new_zeros(())  # before the bank is used: nothing to count or to ask other processes
        h, w = seen.embed.shape[-2:]
        weight_BXX = self.weigh(*self.grid.valid_and_label(mixed, (h, w)))
        total = torch.zeros((), device=seen.embed.device)
        for term in belief.terms:
            factor_BCXX = self.grid.factor(term.factor, (h, w))
            loss = dida_kernels.instance_loss(
                seen.embed,
                term.embed,
                factor_BCXX,
                weight_BXX,
                bank.features,
                bank.labels,
                temperature=self.temperature,
                log_prior_C=belief.log_prior,
            )
            total = total + term.share * self.world.pooled(loss, partial(_counted, weight_BXX, factor_BCXX, bank))
        return self.weight * total


def _counted(weight_BXX: Tensor, factor_BCXX: Tensor, bank: InstanceBank) -> Tensor:
    """[] What the pixels of L_ins count together: what its mean is divided by."""
    return (weight_BXX.flatten() * on_slots(pixels(factor_BCXX), bank.labels)).sum()


@dataclass(frozen=True)
class NoInstanceLoss:
    """The class level alone."""

    def __call__(self, seen: Prediction, belief: Belief, mixed: Mixed, bank: InstanceBank) -> Tensor:
        return seen.logits.new_zeros(())


# ---- the grid -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AtImage:
    """The image's own pixels."""

    def valid_and_label(self, mixed: Mixed, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return mixed.valid, mixed.label

    def factor(self, factor_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
        return factor_BCHW


@dataclass(frozen=True)
class AtStride4:
    """Cells of the feature grid, of `size` (h, w): those of valid pixels only, with the mean of every factor."""

    def valid_and_label(self, mixed: Mixed, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        whole_Bhw = F.adaptive_avg_pool2d(mixed.valid.float(), size) == 1
        label_B1hw = F.interpolate(mixed.label[:, None].float(), size=size, mode="nearest-exact")
        return whole_Bhw, label_B1hw[:, 0].long()

    def factor(self, factor_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
        return F.adaptive_avg_pool2d(factor_BCHW, size)


# ---- what a pixel counts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassWeights:
    """1 / pixels^power of its class for every valid pixel, and 0 for the others, [B, H, W] float32.

    Power 0 counts all alike, as Eq. (6) sums. Power 1 makes L_ins the mean over the classes that occur in the batch's
    pseudo-labels of each class's mean: docs/instance_loss_on_the_toy.md has what that changes. 1/2 is half-way.
    """

    classes: int
    power: float
    world: World = ALONE

    def __call__(self, valid_BHW: Tensor, label_BHW: Tensor) -> Tensor:
        index_BHW = torch.where(valid_BHW, label_BHW, self.classes)
        count_C = torch.zeros(self.classes + 1, device=label_BHW.device).index_add(
            0, index_BHW.flatten(), torch.ones(index_BHW.numel(), device=label_BHW.device)
        )
        count_C = self.world.sum(count_C)
        weight_C = count_C.clamp(min=1) ** -self.power
        return torch.where(valid_BHW, weight_C[index_BHW], 0.0)

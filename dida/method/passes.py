"""III-B: what one iteration consists of, as passes over the batch.

A pass over images takes its own gradient: the sum of their gradients is that of the sum of all losses, and the graph of
one is gone before the next one is built. A further pass over the target is one more entry of `Method.target_passes`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from dida.batch import Batch, Belief, LabelledCrops, Mixed, OnSource, OnTarget, Prediction, PseudoLabel, Target
from dida.method.bank import InstanceBank
from dida.method.prior import ClassShares
from dida.method.views import StepRandom, WeakView
from dida_kernels.equations import segmentation_loss, self_training_loss

Believed = TypeVar("Believed", bound=Target | None)


@dataclass(frozen=True)
class Method(Generic[Believed]):
    """Every field is a strategy, and "off" is a strategy too, so the step has no branch.

    The passes over the target take what `believe` returns: a Target, or None where there are no such passes.
    """

    source_pass: Callable[[nn.Module, LabelledCrops], OnSource]
    believe: Callable[[nn.Module, InstanceBank, ClassShares, Batch, int, StepRandom], Believed]
    target_passes: tuple[Callable[[nn.Module, InstanceBank, Batch, Believed, StepRandom], OnTarget], ...]
    clip_gradient: Callable[[nn.Module], Tensor]  # [] the norm that it had
    update_teacher: Callable[[nn.Module, nn.Module, int], None]
    update_bank: Callable[[InstanceBank, Tensor, Tensor, int, StepRandom], None]
    update_shares: Callable[[ClassShares, Believed], None]


@dataclass(frozen=True)
class SourcePass:
    """The source, supervised: L_src, see Eq. (1), and the baseline's L_FD."""

    feature_distance: Callable[[Prediction, LabelledCrops], Tensor]

    def __call__(self, student: nn.Module, source: LabelledCrops) -> OnSource:
        """Add the gradient of L_src + L_FD to the student's."""
        seen = student(source.image)
        losses = {
            "source": segmentation_loss(seen.logits, source.label),
            "feature": self.feature_distance(seen, source),
        }
        return OnSource(_backward(losses), seen.embed.detach())


@dataclass(frozen=True)
class Believe:
    """What teacher and bank believe about the target (Sec. III-C, III-D)."""

    weak_view: WeakView
    regenerate: Callable[[Prediction, InstanceBank, ClassShares, int], Belief]
    label_target: Callable[[Belief, Tensor], PseudoLabel]

    @torch.no_grad()
    def __call__(
        self, teacher: nn.Module, bank: InstanceBank, shares: ClassShares, batch: Batch, step: int, rng: StepRandom
    ) -> Target:
        """The pseudo-labels of both levels; no gradient."""
        belief = self.regenerate(teacher(self.weak_view(batch.target, rng)), bank, shares, step)
        return Target(belief, self.label_target(belief, batch.real_BHW()))


@dataclass(frozen=True)
class Abstain:
    """No belief about the target: source-only training and the oracle."""

    def __call__(
        self, teacher: nn.Module, bank: InstanceBank, shares: ClassShares, batch: Batch, step: int, rng: StepRandom
    ) -> None:
        return None


@dataclass(frozen=True)
class MixedPass:
    """The student answers on the strong view: L_tgt, see Eq. (3), and lambda_ins L_ins, see Eq. (6)."""

    mixed_view: Callable[[LabelledCrops, Tensor, PseudoLabel, StepRandom], Mixed]
    instance_loss: Callable[[Prediction, Belief, Mixed, InstanceBank], Tensor]

    def __call__(
        self, student: nn.Module, bank: InstanceBank, batch: Batch, target: Target, rng: StepRandom
    ) -> OnTarget:
        """Add the gradient of L_tgt + lambda_ins L_ins to the student's."""
        with torch.no_grad():
            mixed = self.mixed_view(batch.source, batch.target, target.pseudo, rng)
        seen = student(mixed.image)
        losses = {
            "target": self_training_loss(seen.logits, mixed.label, mixed.weight),
            "instance": self.instance_loss(seen, target.belief, mixed, bank),
        }
        return OnTarget(_backward(losses), mixed)


def _backward(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the gradient of their sum; the losses, detached."""
    reduce(torch.add, losses.values()).backward()
    return {name: loss.detach() for name, loss in losses.items()}

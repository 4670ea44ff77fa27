"""III-A: the teacher (a moving average of the student), its pseudo-labels and what each of them is worth."""

import copy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dida.batch import Belief, PseudoLabel
from dida.machine.distributed import ALONE, World
from dida_kernels.equations import confident, pseudo_label

ROWS = 512  # of the crop that ignored rows are counted in; they shrink and grow with the crop


def as_teacher(student: nn.Module, norm: str) -> nn.Module:
    """A copy of the student that gives targets: no gradient, no dropout, no stochastic depth.

    norm "batch" keeps batch norm in training mode, so the teacher normalises with the statistics of the target crops it
    sees and keeps running averages of its own, as DACS and DAFormer do. "averaged" uses the student's running averages.
    """
    teacher = copy.deepcopy(student).requires_grad_(False)
    teacher.eval()
    for module in teacher.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(norm == "batch")
    return teacher


@dataclass(frozen=True)
class AverageTeacher:
    """theta' <- alpha theta' + (1 - alpha) theta with alpha = min(1 - 1/(step + 2), momentum), after step `step`.

    The family updates at the start of the next iteration with 1 - 1/(i + 1): the same average, named one step earlier.
    """

    momentum: float
    buffers: bool  # take over the student's running averages of batch norm

    @torch.no_grad()
    def __call__(self, teacher: nn.Module, student: nn.Module, step: int) -> None:
        alpha = min(1 - 1 / (step + 2), self.momentum)
        torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - alpha)
        if self.buffers:
            for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
                mine.copy_(theirs)


class Weigh(Protocol):
    """The weight of each pixel, [B, H, W], from 1.0 on confident pixels and 0.0 elsewhere, and on all padding.

    `real_BHW` is False on padding, which no share counts.
    """

    def __call__(self, confident_BHW: Tensor, real_BHW: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class ShareOfBatch:
    """One weight for all: the share of confident pixels in the batch (DACS)."""

    world: World = ALONE

    def __call__(self, confident_BHW: Tensor, real_BHW: Tensor) -> Tensor:
        return _share(confident_BHW, real_BHW, (0, 1, 2), self.world).expand_as(confident_BHW)


@dataclass(frozen=True)
class ShareOfImage:
    """One weight per image: its own share of confident pixels."""

    def __call__(self, confident_BHW: Tensor, real_BHW: Tensor) -> Tensor:
        return _share(confident_BHW, real_BHW, (1, 2)).expand_as(confident_BHW)


@dataclass(frozen=True)
class PerPixel:
    """The indicator itself, as Eq. (3) prints it."""

    def __call__(self, confident_BHW: Tensor, real_BHW: Tensor) -> Tensor:
        return confident_BHW


def _share(confident_BHW: Tensor, real_BHW: Tensor, dims: tuple[int, ...], world: World = ALONE) -> Tensor:
    """Confident pixels over real ones along `dims`, which stay, and over a world; 0 where there are none."""
    sure, real = (world.sum(found_BHW.sum(dims, keepdim=True)) for found_BHW in (confident_BHW, real_BHW))
    return sure / real.clamp(min=1)


@dataclass(frozen=True)
class LabelTarget:
    """Label = argmax of z-hat; weight from the confident pixels; rows at the top and bottom count nothing, nor does
    padding, of which a teacher is as sure as of anything.

    Confidence is the maximum of the teacher's z, not of z-hat: with phi = 0.9 and an uninformative bank z-hat stays
    below 0.905, no pixel would ever pass tau = 0.968 and the target loss would vanish. `of_regenerated` takes z-hat:
    the paper read literally.
    """

    threshold: float  # tau
    weigh: Weigh
    of_regenerated: bool
    ignore_top: int  # rows, in 1/512 of the crop
    ignore_bottom: int
    world: World = ALONE

    def __call__(self, belief: Belief, real_BHW: Tensor) -> PseudoLabel:
        """`real_BHW` [B, H, W] bool is False on padding."""
        believed_BCHW = belief.semantic if self.of_regenerated else belief.z
        confident_BHW = confident(believed_BCHW.amax(1), self.threshold) * real_BHW
        H = confident_BHW.shape[1]
        row = (torch.arange(H, device=confident_BHW.device) + 0.5) * ROWS / H
        used_H = (row > self.ignore_top) & (row < ROWS - self.ignore_bottom)
        used_BHW = used_H[:, None] & real_BHW
        return PseudoLabel(
            label=pseudo_label(belief.semantic),
            weight=self.weigh(confident_BHW, real_BHW) * used_BHW,
            used=used_BHW,
            coverage=_share(confident_BHW, real_BHW, (0, 1, 2), self.world).squeeze(),
        )

"""III-A: the teacher (a moving average of the student), its pseudo-labels and what each of them is worth."""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from dida.batch import Belief, PseudoLabel
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


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, step: int, *, momentum: float, buffers: bool) -> None:
    """theta' <- alpha theta' + (1 - alpha) theta with alpha = min(1 - 1/(step + 2), momentum), after step `step`.

    The family updates at the start of the next iteration with 1 - 1/(i + 1): the same average, named one step earlier.
    """
    alpha = min(1 - 1 / (step + 2), momentum)
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - alpha)
    if buffers:
        for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
            mine.copy_(theirs)


def share_of_batch(confident_BHW: Tensor) -> Tensor:
    """One weight for all: the share of confident pixels in the batch (DACS)."""
    return confident_BHW.mean().expand_as(confident_BHW)


def share_of_image(confident_BHW: Tensor) -> Tensor:
    """One weight per image: its own share of confident pixels."""
    return confident_BHW.mean((1, 2), keepdim=True).expand_as(confident_BHW)


def per_pixel(confident_BHW: Tensor) -> Tensor:
    """The indicator itself, as Eq. (3) prints it."""
    return confident_BHW


PSEUDO_WEIGHTS = {"batch": share_of_batch, "image": share_of_image, "pixel": per_pixel}


def label_target(
    belief: Belief, *, threshold: float, weigh, confidence: str, ignore_top: int, ignore_bottom: int
) -> PseudoLabel:
    """Label = argmax of z-hat; weight from the confident pixels; rows at the top and bottom count nothing.

    Confidence is the maximum of the teacher's z, not of z-hat: with phi = 0.9 and an uninformative bank z-hat stays
    below 0.905, no pixel would ever pass tau = 0.968 and the target loss would vanish. "regenerated" takes z-hat: the
    paper read literally.
    """
    believed_BCHW = belief.prior if confidence == "teacher" else belief.semantic
    confident_BHW = confident(believed_BCHW.amax(1), threshold)
    H = confident_BHW.shape[1]
    row = (torch.arange(H, device=confident_BHW.device) + 0.5) * ROWS / H
    used_BHW = ((row > ignore_top) & (row < ROWS - ignore_bottom))[:, None].expand_as(confident_BHW)
    return PseudoLabel(
        label=pseudo_label(belief.semantic),
        weight=weigh(confident_BHW) * used_BHW,
        used=used_BHW,
        coverage=confident_BHW.mean(),
    )


def build_label_target(config):
    """Bind the options of `label_target`."""
    return partial(
        label_target,
        threshold=config.threshold,
        weigh=PSEUDO_WEIGHTS[config.pseudo_weight],
        confidence=config.confidence,
        ignore_top=config.ignore_top,
        ignore_bottom=config.ignore_bottom,
    )

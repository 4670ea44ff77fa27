"""The values that flow through one training step. All are immutable; a function returns new ones.

Shape legend, used by every suffix in this project:
    B images in a batch          C classes of the class set  D embedding channels
    K slots of the instance bank N pixels, flattened         HW the image grid, hw the feature grid (stride 4)
"""

from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = 255  # the label of a pixel that belongs to no class
MEAN = (123.675, 116.28, 103.53)  # of ImageNet, RGB in 0 .. 255: "normalised" means (x - MEAN) / STD
STD = (58.395, 57.12, 57.375)


class LabelledCrops(NamedTuple):
    """Images with their ground truth."""

    image: Tensor  # [B, 3, H, W] float, normalised with the ImageNet mean and deviation
    label: Tensor  # [B, H, W] int64, 0 .. C-1 or 255


class Batch(NamedTuple):
    """What the data hands to one step: labelled source images and target images without labels."""

    source: LabelledCrops
    target: Tensor  # [B, 3, H, W] float, normalised
    real: Tensor | None = None  # [B, H, W] bool: target pixels that show the picture, not padding; None: all

    def real_BHW(self) -> Tensor:
        """[B, H, W] bool: `real`, or what None stands for."""
        return torch.ones_like(self.target[:, 0], dtype=torch.bool) if self.real is None else self.real


class Prediction(NamedTuple):
    """What a network says of an image."""

    logits: Tensor  # [B, C, H, W] class scores, bilinearly enlarged to the image
    embed: Tensor  # [B, D, h, w] the instance embeddings, stride 4: the head's fused map before dropout, or made of it
    deepest: Tensor  # [B, C4, h', w'] the encoder's last stage, stride 32


class Belief(NamedTuple):
    """What the teacher and the bank together hold of the weak view (Sec. III-D).

    The instance-level pseudo-label over K slots would be B*H*W*K numbers, so its factors travel instead:
    a teacher embedding and a factor per class and term, which the loss multiplies tile by tile.
    """

    semantic: Tensor  # [B, C, H, W] the regenerated class-level pseudo-label (z-hat)
    z: Tensor  # [B, C, H, W] the teacher's own class-level prediction
    terms: tuple["InstanceTarget", ...]  # the instance-level pseudo-label (q-hat) as a weighted sum; empty: none yet
    log_prior: Tensor | None = None  # [C] what the student's softmax over the bank adds to the slots of each class


class InstanceTarget(NamedTuple):
    """One term of q-hat: proportional to softmax_k(cos(embed, bank_k) / t) * factor[class of slot k] (Eq. 8)."""

    share: float  # weight of this term; the shares of a Belief sum to one
    embed: Tensor  # [B, D, h, w] teacher embedding of the weak view; all zero: every slot is equally similar
    factor: Tensor  # [B, C, H, W] what scales q: z, or where q stands alone its class prior; all one: no scaling


class PseudoLabel(NamedTuple):
    """Class-level pseudo-label of target pixels and how much each is worth."""

    label: Tensor  # [B, H, W] int64
    weight: Tensor  # [B, H, W] float in [0, 1]; 0 on pixels that are not used
    used: Tensor  # [B, H, W] bool: False on padding, and on the rows at the top and bottom that are not used
    coverage: Tensor  # [] share of pixels of the batch, padding apart, that pass the threshold


class Mixed(NamedTuple):
    """ClassMix of source onto target after the strong augmentation (Sec. III-A)."""

    image: Tensor  # [B, 3, H, W]
    label: Tensor  # [B, H, W] int64: ground truth on pasted pixels, pseudo-label elsewhere
    weight: Tensor  # [B, H, W]: 1 on pasted pixels, the pseudo-label's weight elsewhere
    pasted: Tensor  # [B, H, W] bool: True where the pixel shows the source
    valid: Tensor  # [B, H, W] bool: target pixels whose pseudo-labels are used


class Target(NamedTuple):
    """What is believed about the target images of a step: what its passes over them learn from."""

    belief: Belief
    pseudo: PseudoLabel


class OnSource(NamedTuple):
    """What the pass over the source leaves behind; its graph is gone."""

    losses: dict[str, Tensor]  # scalars by name, already weighted, detached
    embed: Tensor  # [B, D, h, w] detached: what the bank learns from


class OnTarget(NamedTuple):
    """What a pass over the target leaves behind; its graph is gone."""

    losses: dict[str, Tensor]  # scalars by name, already weighted, detached
    view: Mixed  # what the student was shown


class Trace(NamedTuple):
    """What a step leaves behind. Everything is detached and still on the device.

    It holds maps at image resolution (134 MB at 2 x 512 x 512): let it go before the next step.
    """

    losses: dict[str, Tensor]  # scalars by name, already weighted
    target: Target | None  # None for methods that never look at the target
    mixed: tuple[Mixed, ...]  # the strong view of every target pass
    gradient_norm: Tensor  # [] Euclidean, of all parameters, before the optimizer's step
    weight_norm: Tensor  # [] Euclidean, of the student's parameters, after it

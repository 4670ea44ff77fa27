"""III-A: the two views of a target image, weak for the teacher and strong (ClassMix, colour, blur) for the student.

All of it runs batched on the images' device. Whether a step jitters or blurs at all is drawn on the host, from the
step's own generator, so nothing here waits for the device.
"""

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dida.batch import IGNORE, MEAN, STD, LabelledCrops, Mixed, PseudoLabel
from dida.machine.distributed import ALONE, World


class StepRandom(NamedTuple):
    """The randomness of one step, derived from (seed, step)."""

    host: random.Random
    device: torch.Generator
    world: World = ALONE

    def rand(self, *shape: int, device: torch.device, images: int = 0) -> Tensor:
        """Uniform numbers in [0, 1), drawn for the images of all processes: the part of those of this one.

        Images lie along dimension `images`.
        """
        whole = list(shape)
        whole[images] *= self.world.size
        return self.world.mine(torch.rand(whole, generator=self.device, device=device), images)


@dataclass(frozen=True)
class Photometric:
    """Colour jitter, then blur: one draw per step whether, one per image how much (DACS)."""

    jitter_chance: float
    jitter_strength: float
    blur_chance: float
    sigma: tuple[float, float] = (0.15, 1.15)  # pixels

    def __call__(self, image_B3HW: Tensor, rng: StepRandom) -> Tensor:
        """Normalised images in and out."""
        if rng.host.random() < self.jitter_chance:
            mean, std = _normalisation(image_B3HW.device)
            jittered = jitter((image_B3HW * std + mean).clamp(0, 1), rng, self.jitter_strength)
            image_B3HW = (jittered - mean) / std
        if rng.host.random() < self.blur_chance:
            low, high = self.sigma
            sigma_B = rng.rand(len(image_B3HW), device=image_B3HW.device) * (high - low) + low
            image_B3HW = blur(image_B3HW, sigma_B, reach=math.ceil(5 * high))
        return image_B3HW


class WeakView(Protocol):
    """What the teacher sees, [B, 3, H, W] normalised."""

    def __call__(self, target_B3HW: Tensor, rng: StepRandom, /) -> Tensor: ...


@dataclass(frozen=True)
class PlainView:
    """The crop itself: what DAFormer's teacher sees."""

    def __call__(self, target_B3HW: Tensor, rng: StepRandom) -> Tensor:
        return target_B3HW


@dataclass(frozen=True)
class PhotometricView:
    """A jittered and blurred copy; the strong view is still made from the untouched crop."""

    photometric: Photometric

    def __call__(self, target_B3HW: Tensor, rng: StepRandom) -> Tensor:
        return self.photometric(target_B3HW, rng)


@dataclass(frozen=True)
class ClassMix:
    """The strong view: half of the source classes pasted onto the target, with labels and weight 1, recoloured."""

    classes: int
    per_image: bool  # classes are drawn from each image's own, or from those of the whole batch
    photometric: Photometric

    def __call__(self, source: LabelledCrops, target_B3HW: Tensor, pseudo: PseudoLabel, rng: StepRandom) -> Mixed:
        pasted_BHW = class_mix_mask(source.label, rng, classes=self.classes, per_image=self.per_image)
        image_B3HW = torch.where(pasted_BHW[:, None], source.image, target_B3HW)
        return Mixed(
            image=self.photometric(image_B3HW, rng),
            label=torch.where(pasted_BHW, source.label, pseudo.label),
            weight=torch.where(pasted_BHW, 1.0, pseudo.weight),
            pasted=pasted_BHW,
            valid=~pasted_BHW & pseudo.used,
        )


def class_mix_mask(label_BHW: Tensor, rng: StepRandom, *, classes: int, per_image: bool) -> Tensor:
    """True on pixels of ceil(n/2) of the n labels found, drawn for each image without replacement. [B, H, W] bool.

    Labels are looked for in the whole batch (DAFormer) or in each image (DACS); 255 counts as one, as in both, because
    pasting it hides target pixels behind an ignored label rather than behind a wrong one.
    """
    index_BHW = torch.where(label_BHW == IGNORE, classes, label_BHW)
    present_BC = torch.zeros(len(label_BHW), classes + 1, dtype=torch.bool, device=label_BHW.device)
    present_BC = present_BC.scatter(1, index_BHW.flatten(1), True)
    if not per_image:
        present_BC = rng.world.gather(present_BC).any(0, keepdim=True).expand_as(present_BC)
    score_BC = rng.rand(*present_BC.shape, device=label_BHW.device)
    rank_BC = score_BC.masked_fill(~present_BC, -1.0).argsort(1, descending=True).argsort(1)
    chosen_BC = rank_BC < (present_BC.sum(1, keepdim=True) + 1) // 2
    return chosen_BC.gather(1, index_BHW.flatten(1)).view_as(label_BHW)


@lru_cache
def _normalisation(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation for RGB in [0, 1], [3, 1, 1]; kept, because copying them to a GPU would wait for it."""
    mean, std = ((torch.tensor(x, device=device) / 255).view(3, 1, 1) for x in (MEAN, STD))
    return mean, std


def jitter(image_B3HW: Tensor, rng: StepRandom, strength: float) -> Tensor:
    """Brightness, contrast, saturation and hue in an order of each image's own; RGB in [0, 1] in and out.

    The semantics are those of the colour jitter that DACS used (kornia 0.5): brightness is added, contrast multiplies,
    saturation multiplies S and hue turns H by up to strength * 2 pi, and every operation clamps to [0, 1].
    """
    B = len(image_B3HW)
    draw = rng.rand(4, B, device=image_B3HW.device, images=1)
    brightness, contrast, hue, saturation = 1 + strength * (2 * draw - 1)
    turn = rng.rand(B, 4, device=image_B3HW.device).argsort(1)  # operation at each position

    for position in range(4):
        # An image whose turn it is not gets the neutral factor, so the four operations stay batched.
        def factor(operation: int, value_B: Tensor, neutral: float, at: int = position) -> Tensor:
            return torch.where(turn[:, at] == operation, value_B, neutral).view(B, 1, 1, 1)

        image_B3HW = (image_B3HW + factor(0, brightness - 1, 0.0)).clamp(0, 1)
        image_B3HW = (image_B3HW * factor(1, contrast, 1.0)).clamp(0, 1)
        h, s, v = rgb_to_hsv(image_B3HW)
        h = (h + factor(2, hue - 1, 0.0)[:, 0]) % 1.0
        s = (s * factor(3, saturation, 1.0)[:, 0]).clamp(0, 1)
        image_B3HW = hsv_to_rgb(h, s, v)
    return image_B3HW


def rgb_to_hsv(image_B3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in turns [0, 1), saturation and value in [0, 1], each [B, H, W]."""
    r, g, b = image_B3HW.unbind(1)
    value, brightest = image_B3HW.max(1)
    chroma = value - image_B3HW.amin(1)
    safe = chroma.clamp(min=1e-12)
    sixth = torch.stack([(g - b) / safe, (b - r) / safe + 2, (r - g) / safe + 4]).gather(0, brightest[None])[0]
    return (sixth / 6) % 1.0, chroma / value.clamp(min=1e-12), value


def hsv_to_rgb(h: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """The inverse of `rgb_to_hsv`: channel = v - v s max(0, min(k, 4 - k, 1)) with k = (n + 6 h) mod 6."""
    n = torch.arange(5, 0, -2, device=h.device, dtype=h.dtype).view(1, 3, 1, 1)
    k = (n + 6 * h[:, None]) % 6
    return v[:, None] - (v * s)[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def blur(image_B3HW: Tensor, sigma_B: Tensor, *, reach: int) -> Tensor:
    """Gaussian blur, one sigma per image, reflected at the border; `reach` pixels to each side.

    The original uses 51 taps at 512 pixels; 5 sigma to each side leaves out less than one millionth of the weight.
    """
    B, _, H, W = image_B3HW.shape
    reach = min(reach, H - 1, W - 1)  # reflection cannot reach further than the image
    offset = torch.arange(-reach, reach + 1, device=image_B3HW.device)
    tap_BT = torch.exp(-(offset**2) / (2 * sigma_B[:, None] ** 2))
    tap = (tap_BT / tap_BT.sum(1, keepdim=True)).repeat_interleave(3, 0)
    rows = F.pad(image_B3HW, (reach, reach, reach, reach), mode="reflect").flatten(0, 1)[None]
    rows = F.conv2d(rows, tap[:, None, None, :], groups=3 * B)
    return F.conv2d(rows, tap[:, None, :, None], groups=3 * B).view(B, 3, H, W)

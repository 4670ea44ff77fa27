"""The baseline's ImageNet feature distance: things on the source should look to the encoder as they did to ImageNet."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dida.batch import IGNORE, LabelledCrops, Prediction
from dida.machine.distributed import ALONE, World

MIN_SHARE = 0.75  # of a cell's pixels that its dominant class must hold


@dataclass(frozen=True)
class FeatureDistance:
    """weight * mean over thing cells of || F4_student - F4_imagenet ||_2 on the deepest stage.

    `encoder` is a frozen copy of the backbone with its ImageNet weights: image [B, 3, H, W] -> its stages. It is a
    constant of the method and therefore in no checkpoint. Distances are float32 at least.
    """

    encoder: nn.Module
    weight: float  # lambda_FD
    is_thing_C: Tensor  # [C + 1] bool on the encoder's device; the last one, False, stands for ignored pixels
    world: World = ALONE

    def __call__(self, seen: Prediction, source: LabelledCrops) -> Tensor:
        dtype = torch.promote_types(seen.deepest.dtype, torch.float32)
        with torch.no_grad():
            imagenet = self.encoder(source.image)[-1].to(dtype)
            thing_Bhw = self.thing_cells(source.label, tuple(imagenet.shape[-2:]))
        distance_Bhw = torch.linalg.vector_norm(seen.deepest.to(dtype) - imagenet, dim=1)
        # No thing in the crop: the mean over nothing is 0 here, not NaN.
        loss = self.weight * (distance_Bhw * thing_Bhw).sum() / thing_Bhw.sum().clamp(min=1)
        return self.world.pooled(loss, thing_Bhw.sum)

    def thing_cells(self, label_BHW: Tensor, size: tuple[int, int]) -> Tensor:
        """True where one thing class holds at least MIN_SHARE of the cell's pixels. [B, *size] bool."""
        index_BHW = torch.where(label_BHW == IGNORE, len(self.is_thing_C) - 1, label_BHW)
        share_BChw = F.adaptive_avg_pool2d(F.one_hot(index_BHW, len(self.is_thing_C)).movedim(-1, 1).float(), size)
        share_Bhw, dominant_Bhw = share_BChw.max(1)
        return self.is_thing_C[dominant_Bhw] & (share_Bhw >= MIN_SHARE)


@dataclass(frozen=True)
class NoFeatureDistance:
    """Feature distance off."""

    def __call__(self, seen: Prediction, source: LabelledCrops) -> Tensor:
        return seen.logits.new_zeros(())


def feature_distance(
    encoder: nn.Module, *, weight: float, things: tuple[int, ...], classes: int, world: World = ALONE
) -> FeatureDistance:
    """The distance to `encoder`, which is frozen here, on cells of the classes `things`."""
    encoder = encoder.eval().requires_grad_(False)
    is_thing = [c in things for c in range(classes + 1)]
    return FeatureDistance(encoder, weight, torch.tensor(is_thing, device=next(encoder.parameters()).device), world)

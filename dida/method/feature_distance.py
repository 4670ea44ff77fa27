"""The baseline's ImageNet feature distance: things on the source should look to the encoder as they did to ImageNet."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dida.batch import IGNORE, Labeled, Prediction

MIN_SHARE = 0.75  # of a cell's pixels that its dominant class must hold


class FeatureDistance:
    """weight * mean over thing cells of || F4_student - F4_imagenet ||_2 on the deepest stage.

    `encoder` is a frozen copy of the backbone with its ImageNet weights: image [B, 3, H, W] -> its stages. It is a
    constant of the method and therefore in no checkpoint.
    """

    def __init__(self, encoder: nn.Module, *, weight: float, things: tuple[int, ...], classes: int):
        self.encoder = encoder.eval().requires_grad_(False)
        self.weight, self.classes = weight, classes
        is_thing = [c in things for c in range(classes + 1)]  # the last one stands for ignored pixels
        self.is_thing_C = torch.tensor(is_thing, device=next(encoder.parameters()).device)

    def __call__(self, seen: Prediction, source: Labeled) -> Tensor:
        with torch.no_grad():
            imagenet = self.encoder(source.image)[-1]
            thing_Bhw = self.thing_cells(source.label, tuple(imagenet.shape[-2:]))
        distance_Bhw = torch.linalg.vector_norm(seen.deepest - imagenet, dim=1)
        # No thing in the crop: the mean over nothing is 0 here, not NaN.
        return self.weight * (distance_Bhw * thing_Bhw).sum() / thing_Bhw.sum().clamp(min=1)

    def thing_cells(self, label_BHW: Tensor, size: tuple[int, int]) -> Tensor:
        """True where one thing class holds at least MIN_SHARE of the cell's pixels. [B, *size] bool."""
        index_BHW = torch.where(label_BHW == IGNORE, self.classes, label_BHW)
        share_BChw = F.adaptive_avg_pool2d(F.one_hot(index_BHW, self.classes + 1).movedim(-1, 1).float(), size)
        share_Bhw, dominant_Bhw = share_BChw.max(1)
        return self.is_thing_C[dominant_Bhw] & (share_Bhw >= MIN_SHARE)


def no_distance(seen: Prediction, source: Labeled) -> Tensor:
    """Feature distance off."""
    return seen.logits.new_zeros(())

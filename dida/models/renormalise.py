"""Pictures for a backbone that was not trained on ImageNet's normalisation, which is that of the data here."""

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from dida.batch import MEAN, STD


class Renormalise(nn.Module):
    """A picture normalised as everywhere here, by ImageNet's mean and deviation, to one normalised by others."""

    factor: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """`mean` and `std` of RGB in 0 .. 1, as timm writes them."""
        super().__init__()
        factor = [imagenet / 255 / other for imagenet, other in zip(STD, std, strict=True)]
        shift = [(imagenet / 255 - m) / s for imagenet, m, s in zip(MEAN, mean, std, strict=True)]
        # kept with the weights, which are of no use without them
        self.register_buffer("factor", torch.tensor(factor).view(3, 1, 1))
        self.register_buffer("shift", torch.tensor(shift).view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W], of the same dtype."""
        return (image * self.factor + self.shift).to(image.dtype)


def as_trained(name: str) -> nn.Module:
    """What shows a backbone pictures as its published weights saw them: most of timm's had ImageNet's mean and
    deviation, as MiT had, and some had others."""
    published = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if published is None or (published.mean, published.std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD):
        return nn.Identity()
    return Renormalise(published.mean, published.std)

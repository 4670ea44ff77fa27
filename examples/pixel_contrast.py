"""Pixels against a queue of 190 000 labelled pixels: contrast across images, with nothing of size pixels x queue.

    python examples/pixel_contrast.py [SLOTS]

Supervised segmentation (Wang et al., ContrastiveSeg, ICCV 2021): a pixel is drawn to the queue's pixels of its
class and pushed from all others. Here the denominator holds the whole queue, as in supervised contrastive learning
(Khosla et al., 2020, Eq. 2); ContrastiveSeg's leaves the other positives out, which a softmax over a bank cannot say.
A teacher of zeros is as similar to every slot as to any other, so what its class leaves is uniform over the positives.
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from dida_kernels import instance_loss

GRID, CHANNELS, CLASSES, TEMPERATURE, IGNORE = 8, 256, 19, 0.1, 255


def ours(embed_BDHW: Tensor, label_BHW: Tensor, queue_KD: Tensor, label_K: Tensor) -> Tensor:
    """Scalar, the mean over labelled pixels."""
    known_BHW = label_BHW != IGNORE
    one_hot_BHWC = F.one_hot(label_BHW.where(known_BHW, 0), CLASSES)
    z_BCHW, weight_BHW = one_hot_BHWC.permute(0, 3, 1, 2).float(), known_BHW.float()
    nobody = torch.zeros_like(embed_BDHW)
    return instance_loss(embed_BDHW, nobody, z_BCHW, weight_BHW, queue_KD, label_K, temperature=TEMPERATURE)


def plain(embed_BDHW: Tensor, label_BHW: Tensor, queue_KD: Tensor, label_K: Tensor) -> Tensor:
    """The same, pixel by slot."""
    known_N = label_BHW.flatten() != IGNORE
    embed_ND, label_N = embed_BDHW.permute(0, 2, 3, 1).flatten(0, 2)[known_N], label_BHW.flatten()[known_N]
    log_q_NK = (F.normalize(embed_ND) @ F.normalize(queue_KD).T / TEMPERATURE).log_softmax(1)
    positive_NK = label_N[:, None] == label_K
    return -(log_q_NK.where(positive_NK, 0).sum(1) / positive_NK.sum(1)).mean()


def main(slots: int = 190_000) -> float:
    """Print loss and agreement. Returns the larger difference of loss and gradient, relative to the plain form."""
    torch.manual_seed(0)
    queue_KD, label_K = torch.randn(slots, CHANNELS), torch.arange(slots) % CLASSES
    label_BHW = torch.randint(CLASSES, (1, GRID, GRID))
    label_BHW[:, 0, :2] = IGNORE
    embed_BDHW = torch.randn(1, CHANNELS, GRID, GRID, requires_grad=True)
    losses = [form(embed_BDHW, label_BHW, queue_KD, label_K) for form in (ours, plain)]
    pairs = [losses, [torch.autograd.grad(loss, embed_BDHW)[0] for loss in losses]]
    apart = max(float((a - b).detach().norm() / b.detach().norm()) for a, b in pairs)
    print(f"a queue of {slots} pixels: loss {losses[0].item():.5f}, differs from the plain form by {apart:.1e}")
    return apart


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""SimMatch's instance loss for image classification, over a bank of 12 800 labelled images.

    python examples/simmatch.py [SLOTS]

Semi-supervised classification (Zheng et al., SimMatch, CVPR 2022): a weakly augmented view says which
labelled images a picture is similar to, its class probabilities are unfolded onto them, and a strongly augmented view
has to say the same. An image is a picture of 1x1 pixels to these ops.
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from dida_kernels import class_similarity, instance_loss

IMAGES, CHANNELS, CLASSES, TEMPERATURE, ALPHA = 64, 128, 10, 0.1, 0.9
Answer = tuple[Tensor, Tensor]  # the loss, and the pseudo-labels [B, C] that the bank has smoothed


def ours(strong_BD: Tensor, weak_BD: Tensor, prob_BC: Tensor, bank_KD: Tensor, label_K: Tensor) -> Answer:
    """No similarity of all pictures to all slots is kept for the backward."""
    strong, weak, prob = (x[:, :, None, None] for x in (strong_BD, weak_BD, prob_BC))
    every_image = torch.ones(len(prob), 1, 1)
    loss = instance_loss(strong, weak, prob, every_image, bank_KD, label_K, temperature=TEMPERATURE)
    by_bank = class_similarity(weak, bank_KD, label_K, classes=CLASSES, temperature=TEMPERATURE, size=(1, 1))
    return loss, ALPHA * prob_BC + (1 - ALPHA) * by_bank[:, :, 0, 0]


def plain(strong_BD: Tensor, weak_BD: Tensor, prob_BC: Tensor, bank_KD: Tensor, label_K: Tensor) -> Answer:
    """The same, written down as the paper has it."""
    bank_KD = F.normalize(bank_KD)
    weak_BK = (F.normalize(weak_BD) @ bank_KD.T / TEMPERATURE).softmax(1)
    unfolded_BK = weak_BK * prob_BC[:, label_K]
    target_BK = unfolded_BK / unfolded_BK.sum(1, keepdim=True)
    log_strong_BK = (F.normalize(strong_BD) @ bank_KD.T / TEMPERATURE).log_softmax(1)
    by_bank_BC = torch.zeros_like(prob_BC).index_add(1, label_K, weak_BK)
    return -(target_BK * log_strong_BK).sum(1).mean(), ALPHA * prob_BC + (1 - ALPHA) * by_bank_BC


def main(slots: int = 12_800) -> float:
    """Print loss and agreement. Returns the largest difference of loss, labels and gradient, relative to the plain."""
    torch.manual_seed(0)
    bank_KD, label_K = torch.randn(slots, CHANNELS), torch.arange(slots) % CLASSES
    picture_BD = bank_KD[:IMAGES] + torch.randn(IMAGES, CHANNELS)
    weak_BD = picture_BD + 0.1 * torch.randn(IMAGES, CHANNELS)
    strong_BD = (picture_BD + torch.randn(IMAGES, CHANNELS)).requires_grad_()
    prob_BC = torch.randn(IMAGES, CLASSES).softmax(1)
    found = [form(strong_BD, weak_BD, prob_BC, bank_KD, label_K) for form in (ours, plain)]
    pairs = [*zip(*found, strict=True), [torch.autograd.grad(loss, strong_BD)[0] for loss, _ in found]]
    apart = max(float((a - b).detach().norm() / b.detach().norm()) for a, b in pairs)
    print(f"{slots} labelled images: loss {found[0][0].item():.5f}, differs from the plain form by {apart:.1e}")
    return apart


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

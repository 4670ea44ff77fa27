"""Ten prototypes a class instead of a classifier's row, and no parameter in them.

    python examples/prototypes.py [PROTOTYPES]

Segmentation by prototypes (Zhou et al., Rethinking Semantic Segmentation: A Prototype View, CVPR 2022): a pixel has the
class of the nearest prototype, is drawn to its own one, and prototypes follow the pixels that they were given. Which of
its class is a pixel's own, the paper finds by optimal transport; here it is the nearest. Its third term, (1 - cosine)^2
with the own prototype, is one product a pixel and needs no op.
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from dida_kernels import bank_similarity, bank_update

GRID, CHANNELS, CLASSES, TEMPERATURE, MOMENTUM, CONTRAST = 16, 64, 19, 0.1, 0.99, 0.01
Step = tuple[Tensor, Tensor]  # the loss, and the prototypes after it


def ours(embed_BDHW: Tensor, label_N: Tensor, bank_KD: Tensor, label_K: Tensor) -> Step:
    """A softmax over all prototypes holds both: its logarithm is the similarity, up to what a softmax drops anyway."""
    embed_ND = embed_BDHW.permute(0, 2, 3, 1).flatten(0, 2)
    log_q_NK = bank_similarity(embed_ND, bank_KD, temperature=TEMPERATURE).log()
    loss, own_N = _losses(log_q_NK, log_q_NK, label_N, label_K)
    own_BHW = own_N.view(len(embed_BDHW), *embed_BDHW.shape[2:])
    nowhere = torch.zeros_like(own_BHW, dtype=torch.bool)  # no boundary: a plain mean
    each_K = torch.arange(len(bank_KD))  # every prototype a class of its own
    unit_BDHW = F.normalize(embed_BDHW.detach())
    return loss, bank_update(bank_KD, each_K, unit_BDHW, own_BHW, nowhere, classes=len(bank_KD), momentum=MOMENTUM)


def plain(embed_BDHW: Tensor, label_N: Tensor, bank_KD: Tensor, label_K: Tensor) -> Step:
    """The same without the ops."""
    embed_ND = F.normalize(embed_BDHW.permute(0, 2, 3, 1).flatten(0, 2))
    similarity_NK = embed_ND @ F.normalize(bank_KD).T / TEMPERATURE
    loss, own_N = _losses(similarity_NK, similarity_NK.log_softmax(1), label_N, label_K)
    moved_KD = bank_KD.clone()
    for k in own_N.unique():
        moved_KD[k] = MOMENTUM * bank_KD[k] + (1 - MOMENTUM) * embed_ND.detach()[own_N == k].mean(0)
    return loss, moved_KD


def _losses(similarity_NK: Tensor, log_q_NK: Tensor, label_N: Tensor, label_K: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the classes' nearest prototypes and contrast to the own one, [N], of those of the own class."""
    best_NC = torch.stack([similarity_NK[:, label_K == c].amax(1) for c in range(CLASSES)], dim=1)
    own_N = similarity_NK.detach().where(label_N[:, None] == label_K, -torch.inf).argmax(1)
    contrast = F.nll_loss(log_q_NK, own_N)
    return F.cross_entropy(best_NC, label_N) + CONTRAST * contrast, own_N


def main(prototypes: int = 10) -> float:
    """Print loss and agreement. Returns the largest difference of loss, gradient and bank, relative to the plain."""
    torch.manual_seed(0)
    slots = prototypes * CLASSES
    bank_KD, label_K = F.normalize(torch.randn(slots, CHANNELS)), torch.arange(slots) % CLASSES
    label_N = torch.randint(CLASSES, (2 * GRID * GRID,))
    embed_BDHW = torch.randn(2, CHANNELS, GRID, GRID, requires_grad=True)
    found = [form(embed_BDHW, label_N, bank_KD, label_K) for form in (ours, plain)]
    pairs = [*zip(*found, strict=True), [torch.autograd.grad(loss, embed_BDHW)[0] for loss, _ in found]]
    apart = max(float((a - b).detach().norm() / b.detach().norm()) for a, b in pairs)
    print(f"{slots} prototypes: loss {found[0][0].item():.5f}, differs from the plain form by {apart:.1e}")
    return apart


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""III-E: how many slots each class gets, and which source pixels make the vector that feeds them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dida.batch import IGNORE
from dida.method.views import StepRandom
from dida_kernels import boundary_mask

# ---- slots per class (Table III, left) -----------------------------------------------------------------------------


def balanced_slots(size: int, pixels_C: Tensor) -> Tensor:
    """Class-balanced sampling: as many for each class with pixels, the first ones one more where K is no multiple."""
    return _shares(size, (pixels_C > 0).double())


def slots_by_frequency(size: int, pixels_C: Tensor) -> Tensor:
    """Random sampling: what a bank of random source pixels looks like, slots in proportion to pixels."""
    return _shares(size, pixels_C.double())


def slots_by_inverse_frequency(size: int, pixels_C: Tensor) -> Tensor:
    """Imbalanced long-tail sampling: the rarer the class the more slots (the paper gives no formula)."""
    return _shares(size, torch.where(pixels_C > 0, 1 / pixels_C.double(), 0.0))


def slot_labels(slots: Callable[[int, Tensor], Tensor], size: int, pixels_C: Tensor) -> Tensor:
    """The class of every slot, [K] int64 in ascending order, from the source's pixels per class [C].

    `slots`: one of the rules above, (K, pixels per class [C]) -> slots per class [C].

    Every class of the source gets at least one slot. Raises ValueError if K is smaller than their number.
    """
    present = int((pixels_C > 0).sum())
    if size < present:
        raise ValueError(f"--bank-size {size}: the source has {present} classes and each needs a slot")
    return torch.repeat_interleave(torch.arange(len(pixels_C)), slots(size, pixels_C))


def _shares(size: int, weight_C: Tensor) -> Tensor:
    """Whole slots in proportion to the weights, at least one each, the largest remainders (then the first) one more."""
    one_C = (weight_C > 0).long()
    left = size - int(one_C.sum())
    exact_C = weight_C / weight_C.sum() * size - one_C
    exact_C = exact_C.clamp(min=0) / exact_C.clamp(min=0).sum().clamp(min=1e-12) * left
    whole_C = (exact_C + 1e-9).floor().long()
    order = (whole_C - exact_C).sort(stable=True).indices
    whole_C[order[: left - int(whole_C.sum())]] += 1
    return one_C + whole_C


# ---- pixels per vector (Table III, right) --------------------------------------------------------------------------


@dataclass(frozen=True)
class BoundaryAndInterior:
    """Boundary pixel selecting: boundary pixels and a centre of the rest, whose two means are then averaged."""

    classes: int
    boundary_classes: int  # distinct classes in the 3x3 window that make a boundary pixel
    clusters: int

    def __call__(self, embed_BDhw: Tensor, label_BHW: Tensor, rng: StepRandom) -> tuple[Tensor, Tensor]:
        edge_BHW = boundary_mask(label_BHW, classes=self.classes, threshold=self.boundary_classes)
        centre_BHW = _centre(embed_BDhw, label_BHW, ~edge_BHW, self.clusters, rng)
        return torch.where(edge_BHW | centre_BHW, label_BHW, IGNORE), edge_BHW


@dataclass(frozen=True)
class AllPixels:
    """The plain class mean."""

    def __call__(self, embed_BDhw: Tensor, label_BHW: Tensor, rng: StepRandom) -> tuple[Tensor, Tensor]:
        return label_BHW, torch.zeros_like(label_BHW, dtype=torch.bool)


@dataclass(frozen=True)
class CentreOnly:
    """The K-means centre of the pixels off the boundary."""

    classes: int
    boundary_classes: int
    clusters: int

    def __call__(self, embed_BDhw: Tensor, label_BHW: Tensor, rng: StepRandom) -> tuple[Tensor, Tensor]:
        edge_BHW = boundary_mask(label_BHW, classes=self.classes, threshold=self.boundary_classes)
        centre_BHW = _centre(embed_BDhw, label_BHW, ~edge_BHW, self.clusters, rng)
        return torch.where(centre_BHW, label_BHW, IGNORE), torch.zeros_like(centre_BHW)


@dataclass(frozen=True)
class OneAtRandom:
    """One random pixel of each class of each image."""

    def __call__(self, embed_BDhw: Tensor, label_BHW: Tensor, rng: StepRandom) -> tuple[Tensor, Tensor]:
        noise_BN = torch.rand(label_BHW.shape, generator=rng.device, device=label_BHW.device).flatten(1)
        label_BN = label_BHW.flatten(1).long()
        best_BL = noise_BN.new_zeros(len(label_BHW), IGNORE + 1).scatter_reduce(1, label_BN, noise_BN, "amax")
        chosen_BHW = (noise_BN == best_BL.gather(1, label_BN)).view_as(label_BHW)
        return torch.where(chosen_BHW, label_BHW, IGNORE), torch.zeros_like(chosen_BHW)


def _centre(embed_BDhw: Tensor, label_BHW: Tensor, off_edge_BHW: Tensor, clusters: int, rng: StepRandom) -> Tensor:
    """Pixels of the largest of `clusters` K-means clusters of each class's pixels off the boundary, [B, H, W] bool.

    Clusters are those of the nodes; a pixel takes part if the node it lies on is of its class and in the largest one.
    """
    inside_BHW = off_edge_BHW & (label_BHW != IGNORE)
    if clusters == 1:  # one cluster is all of them: its centre is the mean
        return inside_BHW
    size = tuple(embed_BDhw.shape[-2:])
    node_label = torch.where(inside_BHW, label_BHW, IGNORE).float()[:, None]
    label_M = F.interpolate(node_label, size=size, mode="nearest-exact").flatten().long()
    largest_M = _largest_cluster(embed_BDhw.permute(0, 2, 3, 1).flatten(0, 2).float(), label_M, clusters, rng)
    chosen = torch.where(largest_M, label_M, IGNORE).view(len(embed_BDhw), 1, *size).float()
    chosen_BHW = F.interpolate(chosen, size=label_BHW.shape[-2:], mode="nearest-exact")[:, 0].long()
    return inside_BHW & (chosen_BHW == label_BHW)


def _largest_cluster(x_MD: Tensor, label_M: Tensor, clusters: int, rng: StepRandom, rounds: int = 10) -> Tensor:
    """Lloyd's K-means within every label at once; True for members of their label's largest cluster. [M] bool."""
    part_M = torch.randint(clusters, label_M.shape, generator=rng.device, device=label_M.device)
    for _ in range(rounds):
        cell_M = label_M * clusters + part_M
        count = x_MD.new_zeros((IGNORE + 1) * clusters).index_add(0, cell_M, torch.ones_like(x_MD[:, 0]))
        total = x_MD.new_zeros(len(count), x_MD.shape[1]).index_add(0, cell_M, x_MD)
        centre = (total / count.clamp(min=1)[:, None]).view(-1, clusters, x_MD.shape[1])
        empty = (count == 0).view(-1, clusters)
        distance_MP = torch.stack(
            [
                (x_MD - centre[label_M, p]).square().sum(1).masked_fill(empty[label_M, p], torch.inf)
                for p in range(clusters)
            ],
            1,
        )
        part_M = distance_MP.argmin(1)
    size_LP = torch.zeros_like(count).index_add(0, label_M * clusters + part_M, torch.ones_like(x_MD[:, 0]))
    return part_M == size_LP.view(-1, clusters).argmax(1)[label_M]

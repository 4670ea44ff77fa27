"""III-E: the labelled bank of K source instances and how it changes.

Slots of one class lie side by side. Features keep the scale of the embeddings and are normalised where they are used.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dida.method.views import StepRandom
from dida_kernels import bank_update


class Select(Protocol):
    """Which pixels make a class's vector: the label, 255 where not chosen, and a bool mask of boundary pixels."""

    def __call__(self, embed_BDhw: Tensor, label_BHW: Tensor, rng: StepRandom, /) -> tuple[Tensor, Tensor]: ...


class InstanceBank(nn.Module):
    """features [K, D] float32 and labels [K] int64: buffers, so the bank moves and is saved with everything else."""

    features: Tensor
    labels: Tensor
    written: Tensor
    held: Tensor
    place: Tensor

    def __init__(self, label_K: Tensor, dim: int, classes: int):
        super().__init__()
        self.register_buffer("features", torch.zeros(len(label_K), dim))
        self.register_buffer("labels", label_K)
        self.register_buffer("written", torch.zeros(classes, dtype=torch.int64))  # vectors filled in so far, per class
        self.register_buffer("held", torch.zeros(classes, dtype=torch.int64), persistent=False)  # slots per class
        self.register_buffer("place", torch.zeros_like(label_K), persistent=False)  # within the class
        self._count()
        self.register_load_state_dict_post_hook(lambda bank, _: bank._count())

    def _count(self) -> None:
        """What follows from the labels: those of a checkpoint need not be what today's class statistics give.

        Raises ValueError for a label that is no class.
        """
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.held):
            raise ValueError(f"labels: slots are of the classes 0 to {len(self.held) - 1}, found others")
        self.held.copy_(torch.bincount(self.labels, minlength=len(self.held)))
        first_C = self.held.cumsum(0) - self.held
        self.place.copy_(torch.arange(len(self.labels), device=self.labels.device) - first_C[self.labels])

    @property
    def filled(self) -> Tensor:
        """Share of slots that hold a vector of their own, a scalar on the device."""
        return torch.minimum(self.written, self.held).sum() / len(self.labels)

    @torch.no_grad()
    def fill(self, vector_CD: Tensor, present_C: Tensor) -> None:
        """Write one vector per present class into that class's next slot, round and round.

        vector [C, D] float32; present [C] bool, which of its rows count. Slots that have none of their own yet take the
        newest, so no slot is empty once its class was seen.
        """
        present_K = present_C[self.labels]
        written_K = self.written[self.labels]
        takes_K = (self.place == written_K % self.held[self.labels]) | (self.place >= written_K)
        self.features.copy_(torch.where((takes_K & present_K)[:, None], vector_CD[self.labels], self.features))
        self.written += present_C

    @torch.no_grad()
    def fill_random(self, generator: torch.Generator) -> None:
        """Random unit vectors in every slot (Sec. IV-B of the paper), as if none were empty."""
        random = torch.randn(self.features.shape, generator=generator)
        self.features.copy_(nn.functional.normalize(random, dim=1))
        self.written.copy_(self.held)


@dataclass(frozen=True)
class BankRule:
    """When and from which pixels the bank is written: filled before `start`, then averaged every `every` steps."""

    select: Select
    classes: int
    momentum: float  # omega
    every: int  # u, steps between two updates
    start: int
    fill: int  # steps before `start` whose embeddings fill the slots

    @torch.no_grad()
    def __call__(self, bank: InstanceBank, embed_BDhw: Tensor, label_BHW: Tensor, step: int, rng: StepRandom) -> None:
        """Advance the bank by the source pass of step `step`. embed [B, D, h, w], label [B, H, W].

        Several processes bring their images together, each then computes the same new bank.
        """
        fills, updates = self.start - self.fill <= step < self.start, step >= self.start and step % self.every == 0
        if fills or updates:
            embed_BDhw, label_BHW = rng.world.gather(embed_BDhw), rng.world.gather(label_BHW)
        if fills:
            for embed_DHW, label_HW in zip(embed_BDhw, label_BHW, strict=True):  # one vector per image: instances
                self._fill(bank, embed_DHW[None], label_HW[None], rng)
        elif updates:
            label_BHW, boundary_BHW = self.select(embed_BDhw, label_BHW, rng)
            new_KD = bank_update(
                bank.features,
                bank.labels,
                embed_BDhw,
                label_BHW,
                boundary_BHW,
                classes=self.classes,
                momentum=self.momentum,
            )
            bank.features.copy_(new_KD)

    def _fill(self, bank: InstanceBank, embed_1Dhw: Tensor, label_1HW: Tensor, rng: StepRandom) -> None:
        label_1HW, boundary_1HW = self.select(embed_1Dhw, label_1HW, rng)
        class_C = torch.arange(self.classes, device=label_1HW.device)
        empty_CD = bank.features.new_zeros(self.classes, bank.features.shape[1])
        vector_CD = bank_update(
            empty_CD, class_C, embed_1Dhw, label_1HW, boundary_1HW, classes=self.classes, momentum=0.0
        )
        bank.fill(vector_CD, (label_1HW.flatten() == class_C[:, None]).any(1))


@dataclass(frozen=True)
class NoBankRule:
    """The bank stays as it is: with --selecting off, as in every method but DIDA."""

    def __call__(self, bank: InstanceBank, embed_BDhw: Tensor, label_BHW: Tensor, step: int, rng: StepRandom) -> None:
        return None

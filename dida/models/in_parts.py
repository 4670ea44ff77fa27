"""A batch that is too large for one GPU, seen in parts: what a network says of it, and its gradient, are the same.

The losses need the whole batch at once: the weight of its pseudo-labels, what its pixels count, its cells of things. So
the network answers part by part and keeps its answers alone; the losses are those of the batch; and in backward every
part is computed again and takes its share of the gradient. That costs one more forward of the network, and is exact
in every method. Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021,
arXiv:2101.06983. Batch norm alone differs: it has the statistics of a part.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dida.batch import Prediction
from dida.machine.distributed import Whole, World, part_of
from dida.models.whole_batch import drawn_for_all


class Turns(World):
    """A world in which each process stands for several, one after another, as far as draws go."""

    def __init__(self, world: World, parts: int) -> None:
        self._first, self.rank, self.size = world.rank * parts, world.rank * parts, world.size * parts

    def take(self, part: int) -> None:
        """The turn of the next draws."""
        self.rank = self._first + part

    def mine(self, whole: Whole, dim: int = 0) -> Whole:
        return part_of(whole, self.rank, self.size, dim)


class InParts(nn.Module):
    """Image [B, 3, H, W] -> `Prediction` of all of it, made of equal parts, `parts` of which are B."""

    def __init__(self, network: nn.Module, parts: int, world: World) -> None:
        """Dropout and stochastic depth of `network` are drawn, from here on, for the batch of all processes."""
        super().__init__()
        self.network, self.parts, self._turns = network, parts, Turns(world, parts)
        drawn_for_all(network, self._turns)

    def forward(self, image: Tensor) -> Prediction:
        answers = []
        for part, own in enumerate(image.chunk(self.parts)):
            # Every part draws for all from one state, which only the last one moves on.
            kept = torch.random.fork_rng([image.device] if image.is_cuda else [])
            with kept if part < self.parts - 1 else nullcontext():
                answers.append(self._again(own, part) if torch.is_grad_enabled() else self._answer(own, part))
        return Prediction(*(torch.cat(parts) for parts in zip(*answers, strict=True)))

    def _answer(self, own: Tensor, part: int) -> Prediction:
        self._turns.take(part)
        return self.network(own)

    def _again(self, own: Tensor, part: int) -> Prediction:
        return checkpoint(self._answer, own, part, use_reentrant=False, context_fn=self._contexts)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), unremembered(self.network)


@contextmanager
def unremembered(network: nn.Module) -> Iterator[None]:
    """What batch norms see in the block does not count in their running averages."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    buffers = [buffer for norm in norms for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, was in zip(buffers, before, strict=True):
            buffer.copy_(was)

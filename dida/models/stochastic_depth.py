"""Stochastic depth: in training, whole branches of residual blocks are left out at random, image by image.

Paper: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, arXiv:1603.09382.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dida.machine.distributed import ALONE, World


class StochasticDepth(nn.Module):
    """What every branch of every block is multiplied by: 0 where it is left out of an image, 1 / chance where not.

    Drawn for all blocks at once, on the host: a block then is the same program whatever its chance, with no random
    number in it, and a GPU gets one small copy instead of three launches a branch.

    Args:
        rates: chance of a block's branches to be left out, block by block.
        branches: of each block.
    """

    def __init__(self, rates: Sequence[float], branches: int) -> None:
        super().__init__()
        self.rates, self.branches = tuple(rates), branches
        self.world: World = ALONE  # whose images are drawn for, see `models.whole_batch`

    def forward(self, x: Tensor) -> Tensor | None:
        """[blocks, branches, B, 1, 1] in the dtype and on the device of the images x [B, ...]; None: all are kept."""
        if not self.training or not any(self.rates):
            return None
        shape = (len(self.rates), self.branches, self.world.size * len(x), 1, 1)
        kept = torch.ones(shape, dtype=x.dtype, pin_memory=x.is_cuda)
        for rate, block in zip(self.rates, kept, strict=True):
            if rate > 0:
                for branch in block:
                    branch.bernoulli_(1 - rate).div_(1 - rate)
        return self.world.mine(kept, dim=2).to(x.device, non_blocking=True)

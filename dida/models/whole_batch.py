"""What a network does over the images of a batch, done over those of all processes: batch norm's statistics, and the
draws of dropout and stochastic depth.
"""

from typing import Any

import torch
from timm.layers import BatchNormAct2d, DropPath
from torch import Tensor, nn

from dida.machine.distributed import World
from dida.models.stochastic_depth import StochasticDepth


def over_all_processes(network: nn.Module, world: World) -> None:
    """Replace, in place, what looks at its own images only. Parameters, buffers and their names stay.

    Raises ValueError for a module whose draws or statistics it does not know.
    """
    drawn_for_all(network, world)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, BatchNormOverAll(child, world))


def drawn_for_all(network: nn.Module, world: World) -> None:
    """The same for draws alone; of a network whose draws were of another world, too."""
    for name, child in network.named_children():
        if isinstance(child, StochasticDepth | DrawnForAll):
            child.world = world
        elif isinstance(child, DropPath):  # of timm's encoders
            setattr(network, name, DrawnForAll(child, 1, world))
        elif isinstance(child, nn.Dropout2d):
            setattr(network, name, DrawnForAll(child, 2, world))
        elif isinstance(child, nn.modules.dropout._DropoutNd) and child.p > 0:
            raise ValueError(
                f"{type(child).__name__} of this backbone cannot be drawn for several processes, or parts of a batch"
            )
        else:
            drawn_for_all(child, world)


class DrawnForAll(nn.Module):
    """A module that hides parts of images, drawn for the images of all processes, of which this one uses its own."""

    def __init__(self, dropout: nn.Module, dims: int, world: World) -> None:
        """`dims`: of a map [B, ...], how many of its first dimensions a draw tells apart."""
        super().__init__()
        self.dropout, self.dims, self.world = dropout, dims, world

    def forward(self, x: Tensor) -> Tensor:
        if not self.dropout.training:
            return x
        shape = (self.world.size * len(x), *x.shape[1 : self.dims], *(1 for _ in x.shape[self.dims :]))
        return x * self.world.mine(self.dropout(x.new_ones(shape)))


class BatchNormOverAll(nn.BatchNorm2d):
    """Batch norm over the images of all processes, in plain PyTorch: nn.SyncBatchNorm refuses a CPU, and shapes without
    numbers, so nothing that can be tested without several GPUs would have said how they train.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, world: World) -> None:
        """Takes over parameters, running averages, mode and activation of `norm`.

        Raises ValueError for one that lacks any but the last, or does more.
        """
        known = type(norm) is nn.BatchNorm2d or (type(norm) is BatchNormAct2d and type(norm.drop) is nn.Identity)
        if not (known and norm.affine and norm.track_running_stats and norm.momentum is not None):
            raise ValueError(f"{type(norm).__name__} of this backbone cannot be over the images of several processes")
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.act = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()  # timm's norms hold what follows
        self.training, self.world = norm.training, world

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W], of one shape in every process."""
        if not self.training:
            return self.act(super().forward(x))
        wide = x.to(self.weight.dtype)  # of the statistics, whatever the maps are rounded to
        mean_C = _mean_over_processes(wide.mean((0, 2, 3)), self.world)
        centred = wide - mean_C[:, None, None]
        variance_C = _mean_over_processes(centred.square().mean((0, 2, 3)), self.world)
        self._remember(mean_C, variance_C, count=self.world.size * x.numel() // x.shape[1])
        scale_C = self.weight * torch.rsqrt(variance_C + self.eps)
        return self.act((centred * scale_C[:, None, None] + self.bias[:, None, None]).to(x.dtype))

    @torch.no_grad()
    def _remember(self, mean_C: Tensor, variance_C: Tensor, *, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(variance_C * (count / (count - 1)), self.momentum)
        self.num_batches_tracked.add_(1)


class _MeanOverProcesses(torch.autograd.Function):
    """Every process has the mean of all x, and each takes the gradient of its own loss: that of the mean of losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.mean(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.world.mean(gradient), None


def _mean_over_processes(x: Tensor, world: World) -> Tensor:
    return _MeanOverProcesses.apply(x, world)

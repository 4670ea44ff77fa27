"""The DAFormer decode head: context-aware fusion of four stage maps.

Paper: Hoyer et al., "DAFormer: Improving Network Architectures and Training Strategies for Domain-Adaptive
Semantic Segmentation", CVPR 2022, arXiv:2111.14887, Sec. 3.2. State-dict keys are those of its checkpoints.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm_act(
    in_channels: int, out_channels: int, kernel: int, *, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution that keeps the grid, BatchNorm, ReLU."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels), activate=nn.ReLU(inplace=True)))


def _separable(in_channels: int, out_channels: int, *, dilation: int) -> nn.Sequential:
    depthwise = conv_norm_act(in_channels, in_channels, 3, dilation=dilation, groups=in_channels)
    pointwise = conv_norm_act(in_channels, out_channels, 1)
    return nn.Sequential(OrderedDict(depthwise_conv=depthwise, pointwise_conv=pointwise))


class SeparableASPP(nn.Module):
    """Parallel views of one map at several dilations, fused by a 3x3 convolution; without image pooling."""

    def __init__(self, in_channels: int, channels: int, dilations: Sequence[int]):
        super().__init__()
        # dilation 1 looks at the pixel itself
        self.aspp_modules = nn.ModuleList(
            conv_norm_act(in_channels, channels, 1) if d == 1 else _separable(in_channels, channels, dilation=d)
            for d in dilations
        )
        self.bottleneck = conv_norm_act(len(dilations) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, h, w] -> [B, D, h, w], not negative."""
        return self.bottleneck(torch.cat([view(x) for view in self.aspp_modules], dim=1))


class DAFormerHead(nn.Module):
    """Stage maps -> class scores at stride 4 and the fused map they are read from (Sec. 3.2).

    Args:
        in_channels: channels of the stage maps, finest first.
        classes: number of classes C.
        embed_dim: channels D of every embedded stage and of the fused map.
        dropout: chance that a whole channel of the fused map is hidden from the classifier in training.
    """

    def __init__(self, in_channels: Sequence[int], classes: int, embed_dim: int = 256, dropout: float = 0.1):
        super().__init__()
        self.embed_layers = nn.ModuleList(
            nn.Sequential(OrderedDict(proj=nn.Linear(channels, embed_dim))) for channels in in_channels
        )
        self.fuse_layer = self.fusion(len(in_channels) * embed_dim, embed_dim)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(embed_dim, classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        assert self.conv_seg.bias is not None
        nn.init.zeros_(self.conv_seg.bias)

    @staticmethod
    def fusion(in_channels: int, channels: int) -> nn.Module:
        """What makes one map of the embedded stages: parallel views at four dilations; 1 is the pixel itself."""
        return SeparableASPP(in_channels, channels, dilations=(1, 6, 12, 18))

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps [B, C_s, h_s, w_s], finest first -> logits [B, C, h, w] and fused map [B, D, h, w] of the finest grid.

        The fused map is taken before dropout: it is DIDA's instance embedding, which must not lose channels by chance.
        """
        grid = features[0].shape[2:]
        embedded = []
        for stage, (embed, x) in enumerate(zip(self.embed_layers, features, strict=True)):
            x = embed(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # [B, C_s, h_s, w_s] -> [B, D, h_s, w_s]
            # dilated depthwise convolutions are about twice slower on channels-last input (CPU, forward and backward)
            x = x.contiguous()
            # by its number, not its size: a program for any size (export.py) could not tell whether they are equal
            embedded.append(x if stage == 0 else F.interpolate(x, grid, mode="bilinear", align_corners=False))
        fused = self.fuse_layer(torch.cat(embedded, dim=1))
        return self.conv_seg(self.dropout(fused)), fused

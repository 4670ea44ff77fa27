"""The all-MLP decode head of SegFormer: that of DAFormer with a fusion that looks at one pixel alone.

Paper: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
NeurIPS 2021, arXiv:2105.15203, Sec. 3.2. Its "MLP" over channels is a linear layer at every pixel: a 1x1 convolution.
"""

from torch import nn

from dida.models.daformer import DAFormerHead, conv_norm_act


class SegFormerHead(DAFormerHead):
    """Stage maps -> class scores at stride 4 and the fused map they are read from (Sec. 3.2, steps one to four).

    Its keys are those of our DAFormer head; `published.py` renames those of SegFormer's files.
    """

    @staticmethod
    def fusion(in_channels: int, channels: int) -> nn.Module:
        """The third step: the concatenated stages are fused at every pixel."""
        return conv_norm_act(in_channels, channels, 1)

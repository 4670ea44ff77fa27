"""Mix Transformer (MiT), the encoder of SegFormer: overlapping patches, attention over a shortened sequence, and a
feed-forward net whose depthwise convolution takes the place of position codes.

Paper: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
NeurIPS 2021, arXiv:2105.15203, Sec. 3.1. Sizes, state-dict keys and the two LayerNorm epsilons are those of the
published checkpoints, so that they load (see `pretrained.py`). Importing this module registers mit_b0 .. mit_b5
with timm.

Shapes in this file: B images, N = h*w tokens of a stage, M <= N tokens after shortening, C channels of the stage,
G heads. Every map is a channels-last view of its tokens, so going back and forth copies nothing.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models import FeatureInfo, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dida.models.stochastic_depth import StochasticDepth

Grid = tuple[int, int]

# What all six variants share, stage by stage.
KERNELS = (7, 3, 3, 3)
STRIDES = (4, 2, 2, 2)
HEADS = (1, 2, 5, 8)
SHORTENINGS = (8, 4, 2, 1)
EXPANSION = 4

COMPILER = "inductor"
PROGRAMS = 64  # that PyTorch may make of one block: a stage each; in training or not, with a gradient or not

# The published weights were trained with 1e-6 in the blocks and behind the stages, and with PyTorch's 1e-5 in the
# patch embeddings and behind the shortening convolution.
BLOCK_EPS = 1e-6


def _as_map(tokens: Tensor, grid: Grid) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, grid)  # [B, N, C] -> [B, C, h, w]


def _as_tokens(map_: Tensor) -> Tensor:
    return map_.flatten(2).transpose(1, 2)  # [B, C, h, w] -> [B, N, C]


class OverlapPatchEmbed(nn.Module):
    """Strided convolution whose kernel is wider than its stride, then LayerNorm (Sec. 3.1, patch merging)."""

    def __init__(self, in_chans: int, dim: int, *, kernel: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """[B, C_in, H, W] -> tokens [B, N, C] and their grid (h, w)."""
        x = self.proj(x)
        return self.norm(_as_tokens(x)), (x.shape[2], x.shape[3])


class ShortenedAttention(nn.Module):
    """Self-attention whose keys and values come from a map `shortening` times smaller per side (Sec. 3.1)."""

    def __init__(self, dim: int, *, heads: int, shortening: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.shortening = shortening
        if shortening > 1:
            self.sr = nn.Conv2d(dim, dim, shortening, shortening)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Tokens [B, N, C] -> [B, N, C]."""
        short = x
        if self.shortening > 1:
            short = self.norm(_as_tokens(self.sr(_as_map(x, grid))))  # [B, M, C]
        query = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, G, N, C/G]
        # the rows of `kv` hold all keys, then all values
        key, value = self.kv(short).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 2 x [B, G, M, C/G]
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class MixFFN(nn.Module):
    """Two linear layers with a depthwise 3x3 convolution and GELU between them (Sec. 3.1, Mix-FFN)."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = EXPANSION * dim
        self.fc1 = nn.Linear(dim, hidden)
        # nested because the checkpoints name it dwconv.dwconv
        self.dwconv = nn.Sequential(OrderedDict(dwconv=nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)))
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Tokens [B, N, C] -> [B, N, C]."""
        x = _as_tokens(self.dwconv(_as_map(self.fc1(x), grid)))
        return self.fc2(F.gelu(x))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then Mix-FFN, each with a residual and stochastic depth."""

    BRANCHES = 2

    def __init__(self, dim: int, *, heads: int, shortening: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.attn = ShortenedAttention(dim, heads=heads, shortening=shortening)
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.mlp = MixFFN(dim)

    def forward(self, x: Tensor, grid: Grid, kept: Tensor | None = None) -> Tensor:
        """Tokens [B, N, C] -> [B, N, C]. `kept` [2, B, 1, 1]: what stochastic depth multiplies the branches by."""
        if kept is None:
            x = x + self.attn(self.norm1(x), grid)
            return x + self.mlp(self.norm2(x), grid)
        x = x + kept[0] * self.attn(self.norm1(x), grid)
        return x + kept[1] * self.mlp(self.norm2(x), grid)


def compile_blocks(network: nn.Module) -> None:
    """Let every block of a network be compiled, in place, for the shapes that it then sees. What is not one runs as is.

    Raises ValueError for a network without blocks, RuntimeError in its first steps where one is no single program.
    """
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    if not blocks:
        raise ValueError("--compile: only the blocks of mit_* encoders are known to compile; take one, or leave it out")
    torch._dynamo.config.recompile_limit = max(PROGRAMS, torch._dynamo.config.recompile_limit)
    for block in blocks:
        block.compile(backend=COMPILER, dynamic=False, fullgraph=True)


def recompute_blocks(network: nn.Module) -> None:
    """Let every block of a network keep its input alone, and compute all else again in backward. The same numbers.

    Raises ValueError for a network without blocks.
    """
    encoders = [module for module in network.modules() if isinstance(module, MixVisionStages)]
    if not encoders:
        raise ValueError("--checkpoint-activations: only mit_* encoders know how; take one, or leave it out")
    for encoder in encoders:
        encoder.recomputes = True


def _recomputed(block: Block, x: Tensor, grid: Grid, kept: Tensor | None) -> Tensor:
    # A block draws no random numbers, so none have to be kept.
    return checkpoint(block, x, grid, kept, use_reentrant=False, preserve_rng_state=False)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        assert module.bias is not None
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(module.bias)


class MixVisionStages(nn.Module):
    """The four stages that encoder and classifier share, and their maps [B, C_s, H/s, W/s] for s = 4, 8, 16, 32.

    H and W need not be multiples of 32; each stage rounds its half up.

    Args:
        embed_dims: channels C_s of the four stages.
        depths: blocks of the four stages.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first one.
        in_chans: channels of the image.
        out_indices: which stages to return, as timm has it: the last n, or a list of indices.
    """

    def __init__(
        self,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        *,
        drop_path_rate: float = 0.1,
        in_chans: int = 3,
        out_indices: int | list[int] = 4,
    ):
        super().__init__()
        self.recomputes = False  # the maps of a block in backward, where they are not kept, see `recompute_blocks`
        self.out_indices, _ = feature_take_indices(len(depths), out_indices)
        # on the CPU even when the model is built on the meta device, where numbers cannot be read
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.stochastic_depth = StochasticDepth(rates, Block.BRANCHES)
        info, dim_in = [], in_chans
        for s, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            embed = OverlapPatchEmbed(dim_in, dim, kernel=KERNELS[s], stride=STRIDES[s])
            blocks = [Block(dim, heads=HEADS[s], shortening=SHORTENINGS[s]) for _ in range(depth)]
            # numbered from 1, as in the checkpoints
            self.add_module(f"patch_embed{s + 1}", embed)
            self.add_module(f"block{s + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{s + 1}", nn.LayerNorm(dim, eps=BLOCK_EPS))
            info.append({"num_chs": dim, "reduction": math.prod(STRIDES[: s + 1]), "module": f"norm{s + 1}"})
            dim_in = dim
        self.feature_info = FeatureInfo(info, tuple(self.out_indices))
        self.apply(_initialise)

    def stage_maps(self, image: Tensor) -> list[Tensor]:
        """Of an image [B, in_chans, H, W], those of `out_indices`."""
        x, maps = image, []
        drawn = self.stochastic_depth(image)
        kept: Iterator[Tensor | None] = iter(drawn) if drawn is not None else repeat(None)
        run = _recomputed if self.recomputes and torch.is_grad_enabled() else Block.__call__
        for s in range(1, len(self.feature_info) + 1):
            x, grid = getattr(self, f"patch_embed{s}")(x)
            for block in getattr(self, f"block{s}"):
                x = run(block, x, grid, next(kept))
            x = _as_map(getattr(self, f"norm{s}")(x), grid)
            maps.append(x)
        return [maps[i] for i in self.out_indices]


class MixVisionTransformer(MixVisionStages):
    """The encoder: an image [B, 3, H, W] -> the maps of its stages, finest first."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.stage_maps(image)


class MixVisionClassifier(MixVisionStages):
    """MiT with the linear head of its ImageNet pre-training: an image [B, 3, H, W] -> class scores [B, classes]."""

    def __init__(self, embed_dims: Sequence[int], depths: Sequence[int], *, num_classes: int = 1000, **encoder: Any):
        super().__init__(embed_dims, depths, out_indices=1, **encoder)
        self.num_features = embed_dims[-1]
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a fresh one; without classes the pooled features come out."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.head.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor:
        (deepest,) = self.stage_maps(image)
        return self.head(deepest.mean((2, 3)))


default_cfgs = generate_default_cfgs(
    {f"mit_b{i}": {"first_conv": "patch_embed1.proj", "classifier": "head"} for i in range(6)}
)


NARROW = (32, 64, 160, 256)
WIDE = (64, 128, 320, 512)
VARIANTS = {  # channels and blocks of the four stages
    "mit_b0": (NARROW, (2, 2, 2, 2)),
    "mit_b1": (WIDE, (2, 2, 2, 2)),
    "mit_b2": (WIDE, (3, 4, 6, 3)),
    "mit_b3": (WIDE, (3, 4, 18, 3)),
    "mit_b4": (WIDE, (3, 8, 27, 3)),
    "mit_b5": (WIDE, (3, 6, 40, 3)),
}


def _build(name: str, pretrained: bool, *, features_only: bool = False, **kwargs: Any) -> MixVisionStages:
    kwargs["embed_dims"], kwargs["depths"] = VARIANTS[name]
    # timm would wrap the encoder to get at its maps, which would put a prefix before every key
    if features_only:
        return build_model_with_cfg(MixVisionTransformer, name, pretrained, kwargs_filter=("num_classes",), **kwargs)
    return build_model_with_cfg(MixVisionClassifier, name, pretrained, **kwargs)


@register_model
def mit_b0(pretrained: bool = False, **kwargs: Any) -> MixVisionStages:
    """3.3 M parameters."""
    return _build("mit_b0", pretrained, **kwargs)


@register_model
def mit_b1(pretrained: bool = False, **kwargs: Any) -> MixVisionStages:
    """13.2 M parameters."""
    return _build("mit_b1", pretrained, **kwargs)


@register_model
def mit_b2(pretrained: bool = False, **kwargs: Any) -> MixVisionStages:
    """24.2 M parameters."""
    return _build("mit_b2", pretrained, **kwargs)


@register_model
def mit_b3(pretrained: bool = False, **kwargs: Any) -> MixVisionStages:
    """44.1 M parameters."""
    return _build("mit_b3", pretrained, **kwargs)


@register_model
def mit_b4(pretrained: bool = False, **kwargs: Any) -> MixVisionStages:
    """60.8 M parameters."""
    return _build("mit_b4", pretrained, **kwargs)


@register_model
def mit_b5(pretrained: bool = False, **kwargs: Any) -> MixVisionStages:
    """81.4 M parameters, the encoder of DAFormer and DIDA."""
    return _build("mit_b5", pretrained, **kwargs)

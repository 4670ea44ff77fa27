"""The network that is trained: an encoder, a head, and scores at the size of the image."""

import copy
from difflib import get_close_matches

import timm
import torch
import torch.nn.functional as F
from timm.models import FeatureInfo
from torch import Tensor, nn

from dida.batch import Prediction
from dida.models.daformer import DAFormerHead
from dida.models.mit import MixVisionTransformer  # and registers mit_b0 .. mit_b5 with timm
from dida.models.renormalise import as_trained

STRIDES = [4, 8, 16, 32]


class Segmentor(nn.Module):
    """Image [B, 3, H, W] -> `Prediction`: logits [B, C, H, W], embed [B, D, h, w], deepest [B, C4, h', w'].

    Maps are of the weights' dtype, logits of the image's: with weights in bfloat16 the scores are enlarged, and all
    that is made of them, in float32.

    With a mit_* backbone the state-dict keys are those of the published DAFormer checkpoints without their leading
    `model.`.

    Args:
        backbone: mit_b0 .. mit_b5, or a timm model with stage maps at strides 4, 8, 16 and 32.
        classes: number of classes C.
        embed_dim: channels D of the instance embedding.
        drop_path: stochastic depth of the last block of the backbone.
        head: what makes one map of the stages and reads scores from it.

    Raises:
        ValueError: no such backbone, or its maps do not fit the head.
    """

    def __init__(
        self,
        backbone: str,
        classes: int = 19,
        embed_dim: int = 256,
        drop_path: float = 0.1,
        head: type[DAFormerHead] = DAFormerHead,
    ):
        super().__init__()
        self.backbone = build_backbone(backbone, drop_path)
        self.as_trained = as_trained(backbone)
        self.decode_head = head(stage_info(self.backbone).channels(), classes, embed_dim)

    def forward(self, image: Tensor) -> Prediction:
        maps = self.backbone(self.as_trained(image).to(self.decode_head.conv_seg.weight.dtype))
        logits, embed = self.decode_head(maps)
        # [B, C, h, w] -> [B, C, H, W]
        logits = F.interpolate(logits.to(image.dtype), image.shape[2:], mode="bilinear", align_corners=False)
        return Prediction(logits, embed, maps[-1])

    def encoder(self) -> "Encoder":
        """What sees the image: the very modules of this network."""
        return Encoder(self.as_trained, self.backbone)


class Encoder(nn.Module):
    """Normalised image [B, 3, H, W] -> the maps of its stages, of the dtype of the weights."""

    def __init__(self, as_trained: nn.Module, backbone: nn.Module) -> None:
        super().__init__()
        self.as_trained, self.backbone = as_trained, backbone

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.backbone(self.as_trained(image).to(next(self.backbone.parameters()).dtype))


def build_backbone(name: str, drop_path: float) -> nn.Module:
    """An encoder with random weights whose forward gives the maps of strides 4, 8, 16 and 32, finest first.

    Raises:
        ValueError: no such backbone, or its maps do not fit the head.
    """
    if not timm.is_model(name):
        near = get_close_matches(name.lower().split(".")[0], timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() has all names, mit_b5 is the paper's"
        raise ValueError(f"there is no backbone '{name}': {hint}")
    try:
        backbone = timm.create_model(name, features_only=True, out_indices=len(STRIDES), drop_path_rate=drop_path)
    # what timm's models raise when they have fewer stages, none at all, or no stochastic depth
    except (AssertionError, IndexError, RuntimeError, TypeError) as error:
        raise ValueError(f"backbone '{name}' gives no four stage maps ({error}); {_INSTEAD}") from error
    strides = stage_info(backbone).reduction()
    if strides != STRIDES:
        raise ValueError(f"backbone '{name}' gives maps at strides {strides}, the head needs {STRIDES}; {_INSTEAD}")
    if getattr(backbone, "output_fmt", "NCHW") != "NCHW":
        raise ValueError(f"backbone '{name}' gives maps with channels last, the head needs [B, C, h, w]; {_INSTEAD}")
    return backbone


def stage_info(backbone: nn.Module) -> FeatureInfo:
    """What timm says of the stage maps of an encoder from `build_backbone`: channels, strides, which stages."""
    info = backbone.feature_info
    assert isinstance(info, FeatureInfo)  # all that nn.Module knows is that it could be a Tensor or a Module
    return info


def require_any_size(backbone: nn.Module, name: str, side: int) -> None:
    """Raise ValueError for an encoder that sees squares of `side` pixels not at all, or nothing else, as pictures are
    of any size. Asked by shapes, without numbers; MiT sees all."""
    if isinstance(backbone, MixVisionTransformer):
        return
    shapes = copy.deepcopy(backbone).to("meta")
    for height, width in ((side, side), (side, side + 32)):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                shapes(torch.empty(2, 3, height, width, device="meta"))
        except (AssertionError, RuntimeError) as error:
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"backbone '{name}' does not see pictures of {width}x{height} ({why}); {_INSTEAD}"
            ) from error


_INSTEAD = "take mit_b5, or another hierarchical one such as pvt_v2_b2, convnext_tiny or resnet101"

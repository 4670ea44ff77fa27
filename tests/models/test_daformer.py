"""The DAFormer head against its published size and keys, and against the paper's operations written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dida.models.daformer import DAFormerHead, SeparableASPP

WIDE = (64, 128, 320, 512)
TINY = (4, 6, 8, 10)


def tiny_features() -> list[Tensor]:
    # odd sizes, so that a wrong alignment of the resized maps shows
    return [torch.randn(2, c, *grid) for c, grid in zip(TINY, [(17, 23), (9, 12), (5, 6), (3, 3)], strict=True)]


def randomised(head: DAFormerHead) -> DAFormerHead:
    """With BatchNorm statistics of a trained net instead of 0 and 1, which would hide a missing or swapped norm."""
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return head


def test_size_is_the_published_one():
    with torch.device("meta"):
        head = DAFormerHead(WIDE, 19)
    assert sum(p.numel() for p in head.parameters()) == 3_712_275


def test_keys_are_those_of_the_checkpoints():
    bn = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv_seg.weight": (19, 256, 1, 1), "conv_seg.bias": (19,)}
    for i, channels in enumerate(WIDE):
        expected |= {f"embed_layers.{i}.proj.weight": (256, channels), f"embed_layers.{i}.proj.bias": (256,)}
    convs = {"aspp_modules.0": (256, 1024, 1, 1), "bottleneck": (256, 1024, 3, 3)}
    for i in (1, 2, 3):
        convs[f"aspp_modules.{i}.depthwise_conv"] = (1024, 1, 3, 3)
        convs[f"aspp_modules.{i}.pointwise_conv"] = (256, 1024, 1, 1)
    for name, shape in convs.items():
        expected[f"fuse_layer.{name}.conv.weight"] = shape
        expected |= {f"fuse_layer.{name}.bn.{k}": () if k == bn[-1] else shape[:1] for k in bn}
    with torch.device("meta"):
        state = DAFormerHead(WIDE, 19).state_dict()
    assert {name: tuple(v.shape) for name, v in state.items()} == expected


def test_agrees_with_the_operations_of_the_paper():
    torch.manual_seed(0)
    head = randomised(DAFormerHead(TINY, 5, embed_dim=8)).eval()
    p, features = head.state_dict(), tiny_features()

    def conv_bn_relu(x: Tensor, name: str, **options) -> Tensor:
        x = F.conv2d(x, p[f"{name}.conv.weight"], **options)
        bn = [p[f"{name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *bn, eps=1e-5))

    embedded = []
    for i, x in enumerate(features):
        x = torch.einsum("bchw,dc->bdhw", x, p[f"embed_layers.{i}.proj.weight"])
        x = x + p[f"embed_layers.{i}.proj.bias"][:, None, None]
        embedded.append(F.interpolate(x, (17, 23), mode="bilinear", align_corners=False))
    x = torch.cat(embedded, dim=1)
    branches = [conv_bn_relu(x, "fuse_layer.aspp_modules.0")]
    for i, d in enumerate((6, 12, 18), start=1):
        name = f"fuse_layer.aspp_modules.{i}"
        y = conv_bn_relu(x, f"{name}.depthwise_conv", dilation=d, padding=d, groups=32)
        branches.append(conv_bn_relu(y, f"{name}.pointwise_conv"))
    fused = conv_bn_relu(torch.cat(branches, dim=1), "fuse_layer.bottleneck", padding=1)

    with torch.no_grad():
        logits, embed = head(features)
    torch.testing.assert_close(embed, fused)
    torch.testing.assert_close(logits, F.conv2d(fused, p["conv_seg.weight"], p["conv_seg.bias"]))
    assert (embed >= 0).all()


def test_embedding_is_taken_before_dropout():
    torch.manual_seed(0)
    head = DAFormerHead(TINY, 5, embed_dim=8, dropout=0.999999).train()
    logits, embed = head(tiny_features())
    assert (logits == 0).all()  # every channel dropped, and the bias starts at zero
    assert (embed.amax(dim=(2, 3)) > 0).any(dim=1).all()


def test_dropout_hides_whole_channels_only_in_training():
    torch.manual_seed(0)
    head = DAFormerHead(TINY, 5, embed_dim=8, dropout=0.5)
    features = tiny_features()
    assert isinstance(head.dropout, nn.Dropout2d)
    head.train()
    logits, embed = head(features)
    assert not torch.equal(logits, head.conv_seg(embed))
    head.eval()
    logits, embed = head(features)
    torch.testing.assert_close(logits, head.conv_seg(embed))


def test_number_of_branches_follows_the_dilations():
    fuse = SeparableASPP(12, 8, dilations=(1, 2))
    assert fuse.bottleneck.conv.in_channels == 16
    assert fuse(torch.randn(2, 12, 17, 23)).shape == (2, 8, 17, 23)


def test_initial_weights():
    torch.manual_seed(0)
    state = DAFormerHead(WIDE, 19).state_dict()
    for name, std in {
        "conv_seg.weight": 0.01,
        "fuse_layer.bottleneck.conv.weight": math.sqrt(2 / (256 * 9)),
        "fuse_layer.aspp_modules.0.conv.weight": math.sqrt(2 / 256),
        "fuse_layer.aspp_modules.1.depthwise_conv.conv.weight": math.sqrt(2 / (1024 * 9)),
        "embed_layers.3.proj.weight": math.sqrt(1 / (3 * 512)),  # PyTorch's own
    }.items():
        assert state[name].std().item() == pytest.approx(std, rel=0.05), name
    assert (state["conv_seg.bias"] == 0).all()

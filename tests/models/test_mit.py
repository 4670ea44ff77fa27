"""The MiT encoder against its published sizes and keys, and against the SegFormer encoder of transformers."""

import math
import re

import pytest
import timm
import torch
from torch import nn

from dida.models.mit import Block
from dida.models.pretrained import load_backbone
from dida.models.stochastic_depth import StochasticDepth

# name: parameters without head, tensors without head
SIZES = {
    "mit_b0": (3_319_392, 176),
    "mit_b1": (13_151_424, 176),
    "mit_b2": (24_196_288, 332),
    "mit_b3": (44_072_128, 572),
    "mit_b4": (60_842_688, 832),
    "mit_b5": (81_443_008, 1052),
}


def meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **options)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_size_is_the_published_one(name):
    encoder = meta(name, features_only=True)
    assert (parameters(encoder), len(encoder.state_dict())) == SIZES[name]


def test_keys_of_one_block_per_stage():
    state = meta("mit_b5", features_only=True).state_dict()
    for s, dim, shortening, dim_before, kernel in [
        (1, 64, 8, 3, 7), (2, 128, 4, 64, 3), (3, 320, 2, 128, 3), (4, 512, 1, 320, 3)
    ]:  # fmt: skip
        expected = {
            f"patch_embed{s}.proj.weight": (dim, dim_before, kernel, kernel),
            f"patch_embed{s}.norm.bias": (dim,),
            f"norm{s}.weight": (dim,),
            f"block{s}.2.norm1.weight": (dim,),
            f"block{s}.2.norm2.weight": (dim,),
            f"block{s}.2.attn.q.weight": (dim, dim),
            f"block{s}.2.attn.kv.weight": (2 * dim, dim),
            f"block{s}.2.attn.kv.bias": (2 * dim,),
            f"block{s}.2.attn.proj.weight": (dim, dim),
            f"block{s}.2.mlp.fc1.weight": (4 * dim, dim),
            f"block{s}.2.mlp.dwconv.dwconv.weight": (4 * dim, 1, 3, 3),
            f"block{s}.2.mlp.fc2.weight": (dim, 4 * dim),
        }
        if shortening > 1:
            expected[f"block{s}.2.attn.sr.weight"] = (dim, dim, shortening, shortening)
            expected[f"block{s}.2.attn.norm.weight"] = (dim,)
        assert {name: tuple(state[name].shape) for name in expected} == expected
    assert not [name for name in state if re.match(r"block4\.\d+\.attn\.(sr|norm)", name)]


def test_classifier_adds_only_a_head():
    encoder, classifier = meta("mit_b1", features_only=True), meta("mit_b1")
    assert classifier.state_dict().keys() - encoder.state_dict().keys() == {"head.weight", "head.bias"}
    assert classifier.head.weight.shape == (1000, 512)
    assert parameters(meta("mit_b1", num_classes=0)) == SIZES["mit_b1"][0]


def test_classifier_scores_follow_num_classes():
    image = torch.randn(2, 3, 64, 64)
    classifier = timm.create_model("mit_b0", num_classes=7)
    assert classifier(image).shape == (2, 7)
    classifier.reset_classifier(0)
    assert classifier(image).shape == (2, 256)


@pytest.mark.parametrize(
    ("size", "grids"),
    [((64, 96), [(16, 24), (8, 12), (4, 6), (2, 3)]), ((65, 97), [(17, 25), (9, 13), (5, 7), (3, 4)])],
)
def test_four_maps_at_strides_4_to_32(size, grids):
    encoder = timm.create_model("mit_b0", features_only=True)
    maps = encoder(torch.randn(2, 3, *size))
    assert [tuple(m.shape) for m in maps] == [
        (2, dim, *grid) for dim, grid in zip((32, 64, 160, 256), grids, strict=True)
    ]
    assert encoder.feature_info.reduction() == [4, 8, 16, 32]
    assert encoder.feature_info.channels() == [32, 64, 160, 256]


def test_stages_can_be_chosen_as_in_timm():
    encoder = timm.create_model("mit_b0", features_only=True, out_indices=(1, 3))
    assert encoder.feature_info.channels() == [64, 256]
    assert [m.shape[1] for m in encoder(torch.randn(1, 3, 64, 64))] == [64, 256]


@pytest.mark.parametrize("name", ["mit_b0", "mit_b5"])
def test_drop_path_grows_linearly_from_none(name):
    encoder = meta(name, features_only=True)
    blocks = [m for m in encoder.modules() if isinstance(m, Block)]
    assert encoder.stochastic_depth.rates == pytest.approx([0.1 * i / (len(blocks) - 1) for i in range(len(blocks))])


def test_drop_path_can_be_switched_off():
    encoder = meta("mit_b0", features_only=True, drop_path_rate=0.0)
    assert encoder.train().stochastic_depth(torch.zeros(2, 3, 8, 8)) is None


def test_a_branch_that_is_left_out_changes_nothing():
    """And one that is kept counts as much more as it is rarer."""
    torch.manual_seed(0)
    block, x = Block(8, heads=2, shortening=1), torch.randn(3, 16, 8)
    attended = block.attn(block.norm1(x), (4, 4))
    kept = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 1.0]]).view(2, 3, 1, 1)
    seen = block(x, (4, 4), kept)
    torch.testing.assert_close(seen[0], x[0], rtol=0, atol=0)
    torch.testing.assert_close(seen[1], x[1] + 2 * attended[1])
    torch.testing.assert_close(seen[2], block(x, (4, 4))[2])


def test_stochastic_depth_draws_for_every_branch_and_image():
    torch.manual_seed(0)
    depth = StochasticDepth([0.0, 0.5], 2).train()
    kept = depth(torch.zeros(4000, 3, dtype=torch.bfloat16))
    assert kept.shape == (2, 2, 4000, 1, 1)
    assert kept.dtype == torch.bfloat16
    assert (kept[0] == 1).all()
    assert set(kept[1].unique().tolist()) == {0.0, 2.0}
    assert kept[1].float().mean((1, 2, 3)).tolist() == pytest.approx([1, 1], abs=0.1)
    assert not torch.equal(kept[1, 0], kept[1, 1])
    assert depth.eval()(torch.zeros(4, 3)) is None


def test_norm_eps_is_1e_6_except_in_patch_embeddings_and_shortening():
    encoder = meta("mit_b2", features_only=True)
    eps = {name: m.eps for name, m in encoder.named_modules() if isinstance(m, nn.LayerNorm)}
    loose = {name for name in eps if re.fullmatch(r"patch_embed\d\.norm|block\d\.\d+\.attn\.norm", name)}
    assert len(loose) == 4 + 3 + 4 + 6
    assert {eps[name] for name in loose} == {1e-5}
    assert {eps[name] for name in eps.keys() - loose} == {1e-6}


def test_initial_weights():
    torch.manual_seed(0)
    state = timm.create_model("mit_b0", features_only=True).state_dict()
    for name, std in {
        "block4.0.mlp.fc1.weight": 0.02,
        "block3.1.attn.kv.weight": 0.02,
        "patch_embed1.proj.weight": math.sqrt(2 / (7 * 7 * 32)),
        "block2.0.attn.sr.weight": math.sqrt(2 / (4 * 4 * 64)),
        "block4.0.mlp.dwconv.dwconv.weight": math.sqrt(2 / (3 * 3)),
    }.items():
        assert state[name].std().item() == pytest.approx(std, rel=0.05), name
    assert all((v == 0).all() for name, v in state.items() if name.endswith("bias"))
    assert all((v == 1).all() for name, v in state.items() if re.search(r"norm\d?\.weight", name))


@pytest.mark.parametrize(("name", "depths"), [("mit_b0", [2, 2, 2, 2]), ("mit_b2", [3, 4, 6, 3])])
def test_agrees_with_transformers_on_the_same_weights(name, depths, tmp_path):
    """Their model, saved by their library in the hub's format, read by our loader."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    encoder = timm.create_model(name, features_only=True).eval()
    dims = encoder.feature_info.channels()
    config = transformers.SegformerConfig(
        depths=depths, hidden_sizes=dims, num_attention_heads=[1, 2, 5, 8], mlp_ratios=[4, 4, 4, 4]
    )
    theirs = transformers.SegformerForImageClassification(config).eval()
    with torch.no_grad():
        # a fresh model has zero biases, unit norms and almost silent feed-forward nets, which would hide mistakes
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * p[0].numel() ** -0.5 if p.ndim > 1 else p + 0.1 * torch.randn_like(p))
    for path, module in theirs.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5 if "patch_embeddings" in path or "attention" in path else 1e-6
    theirs.save_pretrained(tmp_path)
    load_backbone(encoder, name, str(tmp_path / "model.safetensors"))

    # in double, where rounding is far below what a wrong epsilon or an approximate GELU makes
    image = torch.randn(2, 3, 64, 96).double()
    with torch.no_grad():
        ours = encoder.double()(image)
        expected = theirs.double().segformer(image, output_hidden_states=True).hidden_states[-4:]
    for our_map, their_map in zip(ours, expected, strict=True):
        torch.testing.assert_close(our_map, their_map, rtol=0, atol=1e-6)

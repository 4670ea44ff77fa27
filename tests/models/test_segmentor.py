"""The whole network: shapes, keys, gradients, and what it says of a backbone that cannot be used."""

import pytest
import timm
import torch
import torch.nn.functional as F

from dida.batch import Prediction
from dida.data.transforms import Normalise
from dida.models.segmentor import Segmentor, build_backbone, require_any_size
from dida.precision import in_bfloat16


def test_size_with_b5_is_the_published_one():
    with torch.device("meta"):
        segmentor = Segmentor("mit_b5")
    assert sum(p.numel() for p in segmentor.parameters()) == 85_155_283


def test_keys_are_those_of_a_daformer_checkpoint_without_model():
    with torch.device("meta"):
        names = Segmentor("mit_b5").state_dict().keys()
    assert {"backbone.patch_embed1.proj.weight", "backbone.block3.39.mlp.dwconv.dwconv.bias"} <= names
    assert {"backbone.norm4.bias", "decode_head.conv_seg.bias", "decode_head.embed_layers.3.proj.weight"} <= names
    assert {name.split(".")[0] for name in names} == {"backbone", "decode_head"}


@pytest.mark.parametrize("backbone", ["mit_b0", "pvt_v2_b0"])
def test_prediction_of_an_image_that_is_not_square(backbone):
    prediction = Segmentor(backbone, classes=5, embed_dim=16)(torch.randn(2, 3, 64, 96))
    assert isinstance(prediction, Prediction)
    assert prediction.logits.shape == (2, 5, 64, 96)
    assert prediction.embed.shape == (2, 16, 16, 24)
    assert prediction.deepest.shape == (2, 256, 2, 3)


def test_image_size_need_not_be_a_multiple_of_32():
    prediction = Segmentor("mit_b0", classes=5, embed_dim=16)(torch.randn(2, 3, 65, 97))
    assert prediction.logits.shape == (2, 5, 65, 97)


def test_logits_are_the_heads_enlarged_without_aligned_corners():
    segmentor = Segmentor("mit_b0", classes=5, embed_dim=16).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = segmentor.backbone(image)
        logits, embed = segmentor.decode_head(maps)
        prediction = segmentor(image)
    assert torch.equal(prediction.logits, F.interpolate(logits, (64, 96), mode="bilinear", align_corners=False))
    assert torch.equal(prediction.embed, embed)
    assert torch.equal(prediction.deepest, maps[-1])


def test_every_parameter_learns():
    segmentor = Segmentor("mit_b0", classes=5, embed_dim=16, drop_path=0.0)
    segmentor(torch.randn(2, 3, 64, 64)).logits.square().mean().backward()
    assert [name for name, p in segmentor.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_drop_path_reaches_the_backbone():
    with torch.device("meta"):
        backbone = build_backbone("mit_b0", drop_path=0.3)
    assert backbone.stochastic_depth.rates[-1] == pytest.approx(0.3)


def test_backbone_with_a_finer_first_map_gives_its_last_four():
    with torch.device("meta"):
        assert build_backbone("resnet18", drop_path=0.0).feature_info.reduction() == [4, 8, 16, 32]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilevit_xxs", "tf_efficientnet_b0.ap_in1k"])
def test_a_backbone_sees_pictures_normalised_as_when_its_weights_were_trained(name):
    published = timm.get_pretrained_cfg(name)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (published.mean, published.std))
    assert not torch.allclose(mean, Normalise().mean / 255, atol=0.01)
    segmentor = Segmentor(name, classes=5, embed_dim=16).eval()
    picture = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = segmentor.backbone((picture / 255 - mean) / std)
        stages = segmentor.encoder()(Normalise()(picture))
        deepest = segmentor(Normalise()(picture)).deepest
    torch.testing.assert_close(stages, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(deepest, stages[-1])
    assert {"as_trained.factor", "as_trained.shift"} <= segmentor.state_dict().keys()


def test_weights_that_saw_other_pictures_are_not_taken_for_those_of_a_backbone():
    of_another_tag = Segmentor("tf_efficientnet_b0.ap_in1k", classes=5, embed_dim=16).state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*as_trained\.factor"):
        Segmentor("tf_efficientnet_b0", classes=5, embed_dim=16).load_state_dict(of_another_tag)


def test_pictures_are_normalised_in_float32_for_weights_in_bfloat16():
    segmentor = Segmentor("tf_efficientnet_lite0", classes=5, embed_dim=16).eval()
    cast, image = in_bfloat16(segmentor), torch.randn(1, 3, 64, 64)
    assert torch.equal(cast.as_trained(image), segmentor.as_trained(image))
    with torch.no_grad():
        assert torch.equal(in_bfloat16(segmentor.encoder())(image)[-1], cast(image).deepest)
        assert cast(image).deepest.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["mit_b0", "resnet18", "pvt_v2_b0", "convnext_atto"])
def test_a_backbone_trained_on_imagenets_normalisation_sees_the_very_numbers(name):
    segmentor, image = Segmentor(name, classes=5, embed_dim=16), torch.randn(1, 3, 64, 64)
    assert segmentor.as_trained(image) is image
    assert {key.split(".")[0] for key in segmentor.state_dict()} == {"backbone", "decode_head"}


@pytest.mark.parametrize("typo", ["mitb5", "mit-b5", "MiT_B5", "mit_b5s"])
def test_unknown_name_suggests_the_nearest(typo):
    with pytest.raises(ValueError, match=f"no backbone '{typo}': did you mean mit_b5"):
        Segmentor(typo)


def test_unknown_name_near_nothing():
    with pytest.raises(ValueError, match=r"no backbone 'qqqq': timm\.list_models"):
        Segmentor("qqqq")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_tiny_patch16_224", r"strides \[16, 16, 16, 16\], the head needs \[4, 8, 16, 32\]; take mit_b5"),
        ("swin_tiny_patch4_window7_224", "channels last"),
        ("levit_128", "no four stage maps .*last-n"),
        ("vgg11", "no four stage maps .*drop_path_rate"),
        ("pvt_v2_b0.nonsense", "no four stage maps .*nonsense"),
    ],
)
def test_backbone_that_does_not_fit_is_refused_with_the_reason(name, reason):
    with torch.device("meta"), pytest.raises(ValueError, match=f"backbone '{name}' gives .*{reason}"):
        Segmentor(name)


@pytest.mark.parametrize("side, refused", [(256, "256x256"), (224, "256x224")])
def test_a_backbone_of_one_size_is_refused(side, refused):
    made = build_backbone("maxvit_tiny_tf_224", 0.1)
    with pytest.raises(
        ValueError, match=rf"'maxvit_tiny_tf_224' does not see pictures of {refused} \(.*window.*; take"
    ):
        require_any_size(made, "maxvit_tiny_tf_224", side)


@pytest.mark.parametrize("name", ["pvt_v2_b0", "convnext_atto"])
def test_asking_for_sizes_leaves_a_backbone_and_what_is_drawn_alone(name):
    made, before = build_backbone(name, 0.1), torch.get_rng_state()
    weights = {name: x.clone() for name, x in made.state_dict().items()}
    require_any_size(made, name, 64)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(x, weights[name]) for name, x in made.state_dict().items())
    assert made(torch.zeros(1, 3, 64, 64))[-1].shape[2:] == (2, 2)

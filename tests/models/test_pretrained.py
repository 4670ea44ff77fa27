"""Start weights from the hub, from timm and from files; and every way in which that can go wrong."""

import pathlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import nn

from dida.models import pretrained
from dida.models.pretrained import load_backbone
from tests.models.published_files import State, as_openmmlab, as_transformers, prefixed


def encoder(name: str = "mit_b0") -> nn.Module:
    return timm.create_model(name, features_only=True, out_indices=4)


@pytest.fixture(scope="module")
def published() -> State:
    """A state dict as SegFormer's files have it: every number random, the head of the classifier on top."""
    generator = torch.Generator().manual_seed(0)
    state = timm.create_model("mit_b0").state_dict()
    return {name: torch.randn(v.shape, generator=generator) for name, v in state.items()}


def write(path: pathlib.Path, saved: object) -> str:
    if path.suffix == ".safetensors":
        # safetensors refuses the two views of one kv
        safetensors.torch.save_file({name: v.contiguous().clone() for name, v in saved.items()}, path)
    else:
        torch.save(saved, path)
    return str(path)


def assert_holds(backbone: nn.Module, state: State) -> None:
    for name, v in backbone.state_dict().items():
        assert torch.equal(v, state[name]), name


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("layout", [dict, as_transformers], ids=["segformer", "transformers"])
def test_both_layouts_from_every_kind_of_file(published, layout, suffix, tmp_path):
    backbone = encoder()
    said = load_backbone(backbone, "mit_b0", write(tmp_path / f"weights{suffix}", layout(published)))
    assert_holds(backbone, published)
    assert said == f"mit_b0: 176 tensors from {tmp_path / f'weights{suffix}'}"


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone."])
def test_as_openmmlab_has_them(published, prefix, tmp_path):
    backbone = encoder()
    load_backbone(backbone, "mit_b0", write(tmp_path / "weights.pth", prefixed(prefix, as_openmmlab(published))))
    assert_holds(backbone, published)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "module.backbone."])
def test_what_stands_before_every_name_is_no_part_of_it(published, prefix, tmp_path):
    backbone = encoder()
    load_backbone(backbone, "mit_b0", write(tmp_path / "weights.pth", prefixed(prefix, published)))
    assert_holds(backbone, published)


@pytest.mark.parametrize(
    "meta",
    [np.float64(3), np.zeros(3, np.float32), np.int64(3), {"log": [np.float32(1)]}, np.array(["a"]), np.bool_(True)],
)
def test_numbers_of_numpy_among_the_meta_data_are_read(published, meta, tmp_path):
    backbone = encoder()
    load_backbone(backbone, "mit_b0", write(tmp_path / "weights.pth", {"state_dict": published, "meta": meta}))
    assert_holds(backbone, published)


@pytest.mark.parametrize(
    "change, said",
    [
        (torch.Tensor.char, "of another kind of numbers: .* torch.int8"),
        (torch.Tensor.bool, "of another kind of numbers: .* torch.bool"),
        (lambda v: v.to(torch.complex64), "of another kind of numbers: .* torch.complex64"),
        (torch.Tensor.to_sparse, "holds no state dict"),
        (lambda v: v * float("nan"), "are not finite"),
        (lambda v: v / 0, "are not finite"),
    ],
)
def test_numbers_that_no_weight_can_be_are_refused(published, change, said, tmp_path):
    changed = published | {name: change(published[name]) for name in ("norm1.weight", "norm2.weight")}
    with pytest.raises(ValueError, match=rf"(?s)weights\.pth .*{said}"):
        load_backbone(encoder(), "mit_b0", write(tmp_path / "weights.pth", changed))


@pytest.mark.parametrize("place", [0.2, 0.5, 0.7, 0.9])
def test_a_flipped_bit_is_seen(published, place, tmp_path):
    path = Path(write(tmp_path / "weights.pth", published))
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth is damaged.*download it again"):
        load_backbone(encoder(), "mit_b0", str(path))


@pytest.mark.parametrize("key", ["state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_wrapped_and_prefixed(published, key, prefix, tmp_path):
    backbone = encoder()
    saved = {"meta": {"epoch": 1, "classes": ("road", "sky")}, key: prefixed(prefix, published)}
    load_backbone(backbone, "mit_b0", write(tmp_path / "weights.pth", saved))
    assert_holds(backbone, published)


def whole_model(encoder_state: State, prefix: str = "") -> State:
    """A segmentation network: the encoder without its classifier, and something of a decode head."""
    state = {f"backbone.{name}": v for name, v in encoder_state.items() if not name.startswith("head.")}
    return prefixed(prefix, state | {"decode_head.conv_seg.weight": torch.ones(19, 256, 1, 1)})


def test_of_a_daformer_checkpoint_the_imagenet_part_is_taken(published, tmp_path):
    adapted = {name: torch.zeros_like(v) for name, v in published.items()}
    state = whole_model(adapted, "model.") | whole_model(adapted, "ema_model.") | whole_model(published, "imnet_model.")
    backbone = encoder()
    path = write(tmp_path / "iter_40000.pth", {"meta": {}, "state_dict": state, "optimizer": {}})
    said = load_backbone(backbone, "mit_b0", path)
    assert_holds(backbone, published)
    assert said == f"mit_b0: 176 tensors from {path}, its ImageNet part"


def segmentation_networks(published: State) -> dict[str, object]:
    student = whole_model(published)
    transformers = {name: v for name, v in as_transformers(published).items() if not name.startswith("classifier.")}
    return {
        "DACS": {"state_dict": prefixed("model.", student) | prefixed("ema_model.", student)},
        "SegFormer": {"state_dict": student},
        "transformers": transformers | {"decode_head.classifier.weight": torch.ones(19, 256, 1, 1)},
        "ours": {"format": 1, "config": {"seed": 0}, "student": student, "teacher": student},
    }


@pytest.mark.parametrize("kind", ["DACS", "SegFormer", "transformers", "ours"])
def test_an_encoder_trained_to_segment_is_not_taken_for_imagenets(published, kind, tmp_path):
    backbone = encoder()
    before = {name: v.clone() for name, v in backbone.state_dict().items()}
    path = write(tmp_path / "iter_40000.pth", segmentation_networks(published)[kind])
    with pytest.raises(ValueError, match=r"iter_40000\.pth holds a whole segmentation network.*--weights.*--init"):
        load_backbone(backbone, "mit_b0", path)
    assert_holds(backbone, before)


def test_a_segmentation_network_of_another_backbone_is_refused(tmp_path):
    path = write(tmp_path / "weights.pth", whole_model(encoder("pvt_v2_b0").state_dict()))
    with pytest.raises(ValueError, match="holds a whole segmentation network"):
        load_backbone(encoder("pvt_v2_b0"), "pvt_v2_b0", path)


def test_encoder_alone_as_transformers_saves_it(published, tmp_path):
    state = {name.removeprefix("segformer."): v for name, v in as_transformers(published).items()}
    backbone = encoder()
    load_backbone(backbone, "mit_b0", write(tmp_path / "encoder.safetensors", state))
    assert_holds(backbone, published)


def test_none_keeps_the_random_weights():
    backbone = encoder()
    before = {name: v.clone() for name, v in backbone.state_dict().items()}
    assert load_backbone(backbone, "mit_b0", "none") == "mit_b0: random weights"
    assert_holds(backbone, before)


def test_missing_unexpected_and_misshaped_keys_in_one_message(published, tmp_path):
    state = {name: v for name, v in published.items() if name != "norm3.bias"}
    state |= {"pos_embed": torch.zeros(1), "norm4.weight": torch.zeros(512)}
    with pytest.raises(ValueError, match=r"weights\.pth does not hold the weights of mit_b0") as caught:
        load_backbone(encoder(), "mit_b0", write(tmp_path / "weights.pth", state))
    assert str(caught.value).splitlines()[1:] == [
        "  1 missing: norm3.bias",
        "  1 unexpected: pos_embed",
        "  1 of another shape: norm4.weight [512] instead of [256]",
    ]


def test_another_variant_is_refused_with_ten_examples_of_each(published, tmp_path):
    path = write(tmp_path / "mit_b0.pth", published)
    with torch.device("meta"):
        backbone = encoder("mit_b2")
    with pytest.raises(ValueError, match="does not hold the weights of mit_b2") as caught:
        load_backbone(backbone, "mit_b2", path)
    missing, misshaped = str(caught.value).splitlines()[1:]
    assert missing.startswith("  156 missing: block1.2.attn.kv.bias, ")
    assert misshaped.startswith("  176 of another shape: ")
    assert missing.count(",") == 10
    assert missing.endswith(", ...")


def test_a_file_that_does_not_match_changes_nothing(published, tmp_path):
    backbone = encoder()
    before = {name: v.clone() for name, v in backbone.state_dict().items()}
    state = {name: v for name, v in published.items() if name != "norm4.bias"}
    with pytest.raises(ValueError, match=r"1 missing: norm4\.bias"):
        load_backbone(backbone, "mit_b0", write(tmp_path / "weights.pth", state))
    assert_holds(backbone, before)


def test_key_without_its_value_is_refused(published, tmp_path):
    state = as_transformers(published)
    del state["segformer.encoder.block.1.0.attention.self.value.weight"]
    with pytest.raises(
        ValueError, match=r"1 missing: block2\.0\.attn\.kv\.weight\n  1 unexpected: block2\.0\.attn\.key"
    ):
        load_backbone(encoder(), "mit_b0", write(tmp_path / "weights.pth", state))


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights file at .*absent\.pth: pass the path of a file, 'auto'"):
        load_backbone(encoder(), "mit_b0", str(tmp_path / "absent.pth"))


def test_wrong_kind_of_file(tmp_path):
    path = tmp_path / "mit_b0.zip"
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"mit_b0\.zip .* must end in \.safetensors, \.pth, \.pt or \.bin"):
        load_backbone(encoder(), "mit_b0", str(path))


class Trap:
    """Its unpickling would create a file."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_pickled_code_is_not_run(published, tmp_path):
    sprung = tmp_path / "sprung"
    backbone = encoder()
    load_backbone(backbone, "mit_b0", write(tmp_path / "weights.pth", {"state_dict": published, "hook": Trap(sprung)}))
    assert_holds(backbone, published)
    assert not sprung.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", None], ids=["empty", "html", "half"])
def test_damaged_file(published, content, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    if content is None:
        write(path, published)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.\w+ is .*download it again"):
        load_backbone(encoder(), "mit_b0", str(path))


@pytest.mark.parametrize("saved", [torch.zeros(3), {}, {"epoch": 3}, [torch.zeros(3)]])
def test_file_without_a_state_dict(saved, tmp_path):
    with pytest.raises(ValueError, match=r"weights\.pth holds no state dict"):
        load_backbone(encoder(), "mit_b0", write(tmp_path / "weights.pth", saved))


def raising(error: Exception):
    def fetch(*args, **kwargs):
        raise error

    return fetch


def test_auto_takes_nvidias_file_and_states_its_licence(published, monkeypatch, tmp_path):
    path = write(tmp_path / "model.safetensors", as_transformers(published))
    asked = []
    monkeypatch.setattr(pretrained, "hf_hub_download", lambda repo, file: asked.append((repo, file)) or path)
    backbone = encoder()
    said = load_backbone(backbone, "mit_b0", "auto")
    assert_holds(backbone, published)
    assert asked == [("nvidia/mit-b0", "model.safetensors")]
    assert said.startswith("mit_b0: 176 tensors from https://huggingface.co/nvidia/mit-b0 (NVIDIA Source Code License")
    assert "no commercial use" in said


def test_auto_takes_the_pickled_file_of_a_repository_without_safetensors(published, monkeypatch, tmp_path):
    path = write(tmp_path / "pytorch_model.bin", as_transformers(published))

    def fetch(repo: str, file: str) -> str:
        if file == "model.safetensors":
            raise EntryNotFoundError(f"{repo} has no {file}")
        return path

    monkeypatch.setattr(pretrained, "hf_hub_download", fetch)
    backbone = encoder()
    load_backbone(backbone, "mit_b0", "auto")
    assert_holds(backbone, published)


def test_auto_without_network_takes_the_pickled_file_of_the_cache(published, monkeypatch, tmp_path):
    path = write(tmp_path / "pytorch_model.bin", as_transformers(published))
    monkeypatch.setattr(pretrained, "hf_hub_download", raising(LocalEntryNotFoundError("no network")))
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda repo, file: path)
    backbone = encoder()
    load_backbone(backbone, "mit_b0", "auto")
    assert_holds(backbone, published)


def test_auto_without_network_says_what_to_fetch_and_where_to_put_it(monkeypatch):
    monkeypatch.setattr(pretrained, "hf_hub_download", raising(LocalEntryNotFoundError("no route to host")))
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda repo, file: None)
    with pytest.raises(ConnectionError) as caught:
        load_backbone(encoder(), "mit_b0", "auto")
    assert str(caught.value) == (
        "cannot download the weights of mit_b0: no route to host\n"
        "Fetch model.safetensors (or pytorch_model.bin) from https://huggingface.co/nvidia/mit-b0/tree/main on a "
        "machine with a connection, copy it anywhere here and pass --weights PATH; "
        "--weights none starts from random weights, which want a higher rate: --lr 1e-3 --head-lr-factor 1."
    )


def test_auto_that_fetches_another_model_names_the_page(published, monkeypatch, tmp_path):
    path = write(tmp_path / "model.safetensors", {"norm1.weight": published["norm1.weight"]})
    monkeypatch.setattr(pretrained, "hf_hub_download", lambda repo, file: path)
    with pytest.raises(ValueError, match=r"model\.safetensors of https://huggingface\.co/nvidia/mit-b0 does not hold"):
        load_backbone(encoder(), "mit_b0", "auto")


def test_auto_of_another_backbone_takes_timms_weights(monkeypatch):
    torch.manual_seed(0)
    backbone, donor = encoder("pvt_v2_b0"), encoder("pvt_v2_b0")
    asked = {}
    monkeypatch.setattr(timm, "create_model", lambda name, **options: asked.update(options, name=name) or donor)
    said = load_backbone(backbone, "pvt_v2_b0", "auto")
    assert_holds(backbone, donor.state_dict())
    assert asked["name"] == "pvt_v2_b0"
    assert asked["pretrained"] is True
    assert said == "pvt_v2_b0: timm's weights from https://huggingface.co/timm/pvt_v2_b0.in1k (licence: apache-2.0)"


def test_auto_of_another_backbone_without_network(monkeypatch):
    backbone = encoder("pvt_v2_b0")
    monkeypatch.setattr(timm, "create_model", raising(LocalEntryNotFoundError("no route to host")))
    with pytest.raises(
        ConnectionError,
        match=r"(?s)weights of pvt_v2_b0: no route.*Fetch model\.safetensors from "
        r"https://huggingface\.co/timm/pvt_v2_b0\.in1k/tree/main .*--weights PATH",
    ):
        load_backbone(backbone, "pvt_v2_b0", "auto")


def test_auto_of_a_backbone_that_was_never_published():
    with pytest.raises(ValueError, match=r"timm has no weights for 'resnest14d\.none': pass --weights PATH"):
        load_backbone(nn.Identity(), "resnest14d.none", "auto")


@pytest.mark.parametrize("name", ["pvt_v2_b0", "coat_lite_tiny"])  # one that timm flattens, one that it wraps
def test_timms_published_file_of_another_backbone(name, tmp_path):
    state = timm.create_model(name).state_dict()
    path = write(tmp_path / "model.safetensors", state)
    backbone = encoder(name)
    load_backbone(backbone, name, path)
    image = torch.randn(1, 3, 224, 224)
    whole = timm.create_model(name).eval()
    whole.load_state_dict(state)
    with torch.no_grad():
        expected = whole.forward_intermediates(image, intermediates_only=True)[-4:]
        for ours, theirs in zip(backbone.eval()(image), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_own_state_dict_of_another_backbone(tmp_path):
    saved, backbone = encoder("pvt_v2_b0").state_dict(), encoder("pvt_v2_b0")
    load_backbone(backbone, "pvt_v2_b0", write(tmp_path / "encoder.pth", saved))
    assert_holds(backbone, saved)


def test_deeper_variant_of_another_backbone_is_refused(tmp_path):
    state = timm.create_model("pvt_v2_b0").state_dict()
    state["stages.0.blocks.2.norm1.weight"] = torch.zeros(32)
    with pytest.raises(ValueError, match=r"1 unexpected: stages_0\.blocks\.2\.norm1\.weight"):
        load_backbone(encoder("pvt_v2_b0"), "pvt_v2_b0", write(tmp_path / "weights.pth", state))

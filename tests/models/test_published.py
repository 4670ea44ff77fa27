"""Networks in the layouts of others come out as the networks that they are, bit for bit where the layout is ours."""

import pytest
import torch

from dida.models.published import read_published
from dida.models.segformer import SegFormerHead
from dida.models.segmentor import Segmentor
from tests.models.published_files import (
    SIZE,
    coarsest_first,
    daformer_file,
    mmcv,
    network,
    nvidia_names,
    prefixed,
    transformers_folder,
)

NAMES = tuple(f"class {i}" for i in range(19))


def built(published, name: str = "student") -> Segmentor:
    head = {"daformer": (), "segformer": (SegFormerHead,)}[published.head]
    made = Segmentor(published.backbone, 19, published.embed_dim, 0.0, *head).eval()
    made.load_state_dict(published.weights[name])
    return made


def same(a: Segmentor, b: Segmentor) -> bool:
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        return all(torch.equal(x, y) for x, y in zip(a(image), b(image), strict=True))


def test_of_a_daformer_file_student_teacher_and_source_are_told_apart(tmp_path):
    student, teacher, imagenet = (network(seed) for seed in range(3))
    path = daformer_file(tmp_path / "x.pth", student, teacher, imagenet, config="source=dict(type='GTADataset')")
    found = read_published(path)
    assert (found.family, found.backbone, found.head, found.embed_dim, found.source) == (
        "DAFormer or DIDA", "mit_b0", "daformer", SIZE, "gta5"
    )  # fmt: skip
    assert found.weights.keys() == {"student", "teacher"}
    assert same(built(found), student)
    assert same(built(found, "teacher"), teacher)
    assert not same(built(found, "teacher"), student)


def test_a_file_with_one_network_has_a_student_alone(tmp_path):
    student = network(0)
    found = read_published(mmcv(tmp_path / "x.pth", student.state_dict(), CLASSES=None))
    assert found.weights.keys() == {"student"}
    assert (found.names, found.source) == ((), None)
    assert same(built(found), student)


def test_segformers_two_layouts_are_one_network(tmp_path):
    wanted = network(3, segformer=True)
    state = wanted.state_dict()
    nvidia = read_published(mmcv(tmp_path / "x.pth", nvidia_names(state)))
    hub = read_published(transformers_folder(tmp_path / "hub", state, NAMES) / "model.safetensors")
    for found in (nvidia, hub):
        assert (found.family, found.backbone, found.head, found.embed_dim) == ("SegFormer", "mit_b0", "segformer", SIZE)
        assert same(built(found), wanted)
    assert hub.names == NAMES
    assert nvidia.names[:2] == ("road", "sidewalk")
    assert nvidia.colours[0] == (128, 64, 128)


def test_scores_of_segformer_agree_with_transformers(tmp_path):
    """Their network, saved by their library and read by ours."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        depths=[2, 2, 2, 2], hidden_sizes=[32, 64, 160, 256], num_attention_heads=[1, 2, 5, 8],
        mlp_ratios=[4, 4, 4, 4], decoder_hidden_size=SIZE, id2label=dict(enumerate(NAMES)),
    )  # fmt: skip
    theirs = transformers.SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * p[0].numel() ** -0.5 if p.ndim > 1 else p + 0.1 * torch.randn_like(p))
    for path, module in theirs.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5 if "patch_embeddings" in path or "attention" in path else 1e-6
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    theirs.save_pretrained(tmp_path)
    found = read_published(tmp_path / "model.safetensors")
    ours, image = built(found).double(), torch.randn(1, 3, 64, 96).double()
    with torch.no_grad():
        scores, _ = ours.decode_head(ours.backbone(image))
        torch.testing.assert_close(scores, theirs.double()(image).logits, rtol=0, atol=1e-6)
    assert found.names == NAMES


def test_hrda_and_mic_are_refused_by_name_with_the_reason(tmp_path):
    state = {n.replace("decode_head.", "decode_head.head."): v for n, v in network(0).state_dict().items()}
    state["decode_head.scale_attention.conv_seg.weight"] = torch.ones(1)
    for prefix in ("", "model."):
        path = mmcv(tmp_path / "x.pth", prefixed(prefix, state))
        with pytest.raises(ValueError, match=r"x\.pth holds a network of HRDA or MIC: .* attention between scales"):
            read_published(path)


def test_other_networks_say_what_they_are_not(tmp_path):
    state = network(0).state_dict()
    encoder = {name: value for name, value in state.items() if name.startswith("backbone.")}
    other = encoder | {"decode_head.image_pool.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"holds no decode head.*--weights takes"):
        read_published(mmcv(tmp_path / "x.pth", encoder))
    with pytest.raises(ValueError, match="holds a decode head of image_pool: not a network of DAFormer"):
        read_published(mmcv(tmp_path / "x.pth", other))
    shallow = {name: value for name, value in state.items() if not name.startswith("backbone.block4.1.")}
    with pytest.raises(ValueError, match=r"none of mit_b0 to mit_b5 \(channels .*blocks \(2, 2, 2, 1\)"):
        read_published(mmcv(tmp_path / "x.pth", shallow))


@pytest.mark.parametrize("name, instead", [
    ("decode_head.embed_layers.0.proj.weight", None),
    ("decode_head.embed_layers.0.proj.weight", torch.tensor(1.0)),
    ("backbone.patch_embed1.proj.weight", torch.tensor(1.0)),
    ("decode_head.conv_seg.bias", None),
    ("decode_head.conv_seg.bias", torch.tensor(1.0)),
])  # fmt: skip
def test_a_network_that_lacks_a_part_is_one_message(tmp_path, name, instead):
    state = network(0).state_dict()
    state = {n: v for n, v in state.items() if n != name} | ({} if instead is None else {name: instead})
    with pytest.raises(ValueError, match=r"x\.pth is (not a whole network of DAFormer.*: it lacks|no network of DAF)"):
        read_published(mmcv(tmp_path / "x.pth", state))


def test_a_teacher_alone_is_no_network_to_start_with(tmp_path):
    state = prefixed("ema_model.", network(0).state_dict())
    with pytest.raises(ValueError, match=r"x\.pth holds the teacher of a self-training"):
        read_published(mmcv(tmp_path / "x.pth", state))


def test_the_order_of_stages_is_turned_once():
    weight = torch.arange(8.0).view(1, 8, 1, 1)
    assert coarsest_first(weight).flatten().tolist() == [6, 7, 4, 5, 2, 3, 0, 1]

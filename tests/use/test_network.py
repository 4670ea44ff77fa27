"""What others call: pictures of every kind in, arrays out, folders and a hub between."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dida
import dida_kernels
from dida.config import changed
from dida.data.classes import CITYSCAPES_CLASSES
from dida.use.evaluate import Inference
from dida.use.trained import load_trained
from tests.engine.checkpoints import tiny_config, write_checkpoint
from tests.use.fake_hub import FakeHub

SIZE = (70, 90)  # width, height


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config = changed(tiny_config(folder, tgt_size="64x64"), src=f"gta5+folder:{folder}/a+b/mine", out=folder)
    write_checkpoint(folder / "checkpoints" / "step_000400.pt", config)
    return folder


@pytest.fixture(scope="module")
def network(run):
    return dida.load(run, device="cpu")


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)


def test_a_picture_of_any_kind_is_the_same_picture(run, network, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a.png")
    with load_trained(run, torch.device("cpu")).labeller("student", (64, 64)) as label:
        expected = label(picture)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    for given in (picture, tensor, Image.fromarray(picture), tmp_path / "a.png", str(tmp_path / "a.png")):
        answer = network(given)
        assert answer.dtype == np.uint8
        assert np.array_equal(answer, expected)


@pytest.mark.parametrize("size", [(640, 4), (4, 640), (1, 1)])
def test_pictures_of_any_size_are_answered(network, size):
    """As `dida label` does it: what is smaller than encoders see is continued by its edge."""
    assert network(np.zeros((*size[::-1], 3), np.uint8)).shape == size[::-1]


def test_outputs_belong_together(network, picture):
    labels, probabilities, confidence, colours = network(picture, "labels", "probabilities", "confidence", "colours")
    assert np.array_equal(labels, network(picture))
    assert probabilities.shape == (19, *SIZE[::-1])
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    assert np.array_equal(probabilities.argmax(0), labels)
    np.testing.assert_allclose(probabilities.max(0), confidence)
    assert np.array_equal(colours, CITYSCAPES_CLASSES.palette[labels])
    assert network.classes == CITYSCAPES_CLASSES.names


def test_lists_and_batches_are_answered_one_by_one(run, picture):
    network = dida.load(run, device="cpu", batch_size=2)
    other = picture[:, ::-1][:80]
    answers = network([picture, picture, picture, other, Image.fromarray(picture)])
    assert [answer.shape for answer in answers] == [(90, 70)] * 3 + [(80, 70), (90, 70)]
    for batch in (np.stack([picture, picture]), torch.from_numpy(np.stack([picture] * 2)).permute(0, 3, 1, 2)):
        assert [answer.shape for answer in network(batch)] == [(90, 70)] * 2
    assert (answers[0] == network(picture)).mean() > 0.999  # rounding may differ with the batch
    assert network([]) == []


def test_of_a_long_list_a_batch_is_in_memory_at_a_time(run, picture, monkeypatch):
    network = dida.load(run, device="cpu", batch_size=2)
    read, answered, ahead = 0, 0, []
    answer = network._answers

    def counted_read(path):
        nonlocal read
        read += 1
        ahead.append(read - answered)
        return picture

    def counted_answer(pictures, wanted):
        nonlocal answered
        answered += len(pictures)
        return answer(pictures, wanted)

    monkeypatch.setattr("dida.use.network.read_image", counted_read)
    monkeypatch.setattr(network, "_answers", counted_answer)
    assert len(network(["street.png"] * 7)) == 7
    assert max(ahead) == 2


def test_in_a_program_that_trains_a_picture_has_one_answer(run, picture):
    """A network that is a part of somebody's own module is switched with it."""
    network = dida.load(run, device="cpu")
    expected = network(picture, "probabilities")
    network.train()
    assert np.array_equal(network(picture, "probabilities"), expected)
    assert network.model.training


def test_arguments_change_what_is_said(run, picture):
    plain = dida.load(run, device="cpu")(picture, "probabilities")
    for arguments in (
        {"network": "teacher"}, {"size": "96x96"}, {"window": 40}, {"flip": True}, {"precision": "bf16"}
    ):  # fmt: skip
        other = dida.load(run, device="cpu", **arguments)(picture, "probabilities")
        assert other.dtype == np.float32
        assert not np.array_equal(plain, other), arguments
    assert dida.load(run, device="cpu", window=40, stride=30).inference == Inference(40, 30)


def test_what_makes_no_sense_is_one_message(run, network, picture, tmp_path):
    with pytest.raises(ValueError, match="no output is called 'classes'; there are labels, prob"):
        network(picture, "classes")
    with pytest.raises(ValueError, match=r"got torch.float32 \[3, 4, 4\]; normalising is done here"):
        network(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match=r"x\.png: not a readable image"):
        network(tmp_path / "x.png")
    with pytest.raises(ValueError, match="expected precision fp32 or bf16"):
        dida.load(run, precision="fp64")
    with pytest.raises(ValueError, match=r"^network pupil: .* holds student and teacher alone"):
        dida.load(run, network="pupil")
    for empty in (np.zeros((0, 9, 3), np.uint8), torch.zeros(3, 9, 0, dtype=torch.uint8), Image.new("RGB", (0, 9))):
        with pytest.raises(ValueError, match="pixels has nothing in it"):
            network(empty)
    for deep in (Image.new("I;16", (9, 9)), Image.new("F", (9, 9)), Image.new("I", (9, 9))):
        with pytest.raises(ValueError, match=r"a picture of Pillow: more than 8 bits per channel \(mode [IF]"):
            network(deep)
    for name, value in {"size": (64, 64), "device": 5, "network": 0}.items():
        with pytest.raises(TypeError, match=f"{name}: expected text, got "):
            dida.load(run, **{name: value})
    with pytest.raises(ValueError, match="size: expected WIDTHxHEIGHT"):
        dida.load(run, size="big")
    for window in (None, 0):
        with pytest.raises(ValueError, match=r"^stride 17: .* no window was asked for"):
            dida.load(run, device="cpu", window=window, stride=17)
    with pytest.raises(ValueError, match=r"^device gpu: expected auto"):
        dida.load(run, device="gpu")


def test_a_shared_folder_holds_the_network_and_nothing_of_the_machine(run, network, picture, tmp_path):
    (run / "val.json").write_text(json.dumps(REPORT))
    folder = tmp_path / "shared"
    network.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    for again in (dida.load(folder), dida.Network.from_pretrained(folder)):
        assert np.array_equal(again(picture), network(picture))
        assert again.class_set == network.class_set
    assert str(run.parent) not in (folder / "config.json").read_text() + (folder / "README.md").read_text()
    card = (folder / "README.md").read_text()
    for part in ("gta5+folder:mine", "NVIDIA Source Code License", "| mIoU, 19 classes | 12.34 | 11.00 |", "road, "):
        assert part in card
    with pytest.raises(ValueError, match=r"^network teacher: .* holds student alone"):
        dida.load(folder, network="teacher")
    with pytest.raises(ValueError, match=rf"what it needs stands beside it; name its folder, {folder}$"):
        dida.load(folder / "model.safetensors")  # it has 19 classes, as Cityscapes, and perhaps others
    for lost in ((), ("config.json",), ("config.json", "README.md"), ("model.safetensors",)):  # as a kill leaves it
        for name in lost:
            (folder / name).unlink()
        if "config.json" in lost:
            with pytest.raises(ValueError, match=r"shared: there is no config\.json of this network in it"):
                dida.load(folder)
        network.save_pretrained(folder)  # over what was written so
        assert (folder / "README.md").read_text() == card
        assert np.array_equal(dida.load(folder)(picture), network(picture))
    (run / "config.json").write_text("its options")
    with pytest.raises(ValueError, match="is the folder of a run"):
        network.save_pretrained(run)
    assert (run / "config.json").read_text() == "its options"
    (run / "config.json").unlink()
    (folder / "config.json").write_text('{"dida": {"format": 99}}')
    with pytest.raises(ValueError, match=r"config\.json: expected format 1, found 99"):
        dida.load(folder)


REPORT = {
    "domain": "cityscapes", "toy": False, "split": "val", "images": 3, "size": "64x64", "step": 400,
    "student": {"mIoU": {"19": 12.34}, "IoU": {"road": 50.0, "train": None}},
    "teacher": {"mIoU": {"19": 11.0}, "IoU": {"road": 49.0, "train": None}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [("README.md", "my project"), ("config.json", '{"model_type": "segformer"}'), ("config.json", "not JSON"),
     ("config.json", '{"dida": 3}'), ("README.md", None), ("README.md", ""),
     ("README.md", b"des rues fran\xe7aises, as Latin-1 has them"),
     ("model.safetensors", "of another program")],
)  # fmt: skip
def test_sharing_writes_over_nothing_of_others(network, tmp_path, name, content):
    if content is None:  # a card that was written here, and edited
        network.save_pretrained(tmp_path)
        content = (tmp_path / name).read_text() + "Trained on our own streets.\n"
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: .* would be lost"):
        network.save_pretrained(tmp_path)
    assert (tmp_path / name).read_bytes() == content


def test_a_card_names_the_network_that_a_run_began_with_and_no_place(run, tmp_path):
    folder = tmp_path / "begun"
    config = tiny_config(folder, init=Path("/home/alice/segformer.b5.pth"), cache=Path("/home/alice/cache"))
    write_checkpoint(folder / "checkpoints" / "step_000400.pt", config)
    dida.load(folder, device="cpu").save_pretrained(tmp_path / "shared")
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "Start weights: those of the network in segformer.b5.pth, on whatever terms that has" in card
    assert "random weights" not in card
    assert "alice" not in card + (tmp_path / "shared" / "config.json").read_text()


def test_a_network_goes_to_the_hub_and_comes_back(network, picture, monkeypatch, tmp_path):
    with FakeHub(tmp_path, monkeypatch) as hub:
        network.push_to_hub("me/streets", token="hf_none")
        assert {"README.md", "config.json", "model.safetensors"} <= hub.files("me/streets")
        again = dida.load("me/streets", device="cpu")
        assert np.array_equal(again(picture), network(picture))
        with pytest.raises(
            FileNotFoundError, match=r"me/nothing: no such .* read as a repository of the hub: me/nothing, and nothing"
        ):
            dida.load("me/nothing")


def test_importing_the_package_is_free_and_its_names_are_found():
    program = "import sys, dida; dir(dida); assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert set(dida.__all__) <= set(dir(dida))
    assert all(hasattr(dida, name) for name in set(dida.__all__) - {"__version__"})
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = dida.lod


def test_signatures_can_be_read():
    assert list(inspect.signature(dida.load).parameters)[:3] == ["source", "network", "device"]
    assert list(inspect.signature(dida.Network.__call__).parameters) == ["self", "picture", "outputs"]
    for op in dida_kernels.OPS.values():
        assert op.name in repr(op)
        assert str(inspect.signature(op)) in repr(op)  # which is what help() shows

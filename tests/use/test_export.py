"""A written program says what the network says, and a wrong one is found out."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dida.batch import Prediction
from dida.command import run_export
from dida.config import changed
from dida.models.segmentor import Segmentor
from dida.options import read_command_line
from dida.options.export import ExportConfig
from dida.use.export import INPUT, Agreement, Deployed, compare, drawn_pictures, own_pictures, run_onnx, write_torch
from dida.use.trained import load_trained
from tests.engine.checkpoints import tiny_config, write_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    write_checkpoint(folder / "checkpoints" / "step_000400.pt", changed(tiny_config(folder), tgt_size="96x64"))
    return folder


def export(*args: object) -> None:
    run_export(read_command_line(ExportConfig, [str(arg) for arg in args], "dida export"))


def refusal(*args: object) -> str:
    with pytest.raises(SystemExit) as ended:
        export(*args)
    assert isinstance(ended.value.code, str)
    return ended.value.code


def test_onnx_labels_batches_of_any_size_and_keeps_what_a_program_needs_to_know(run, capsys):
    import onnxruntime

    export(run, "--checks", "8")
    out, meanwhile = capsys.readouterr()
    assert f"{run / 'network.onnx'} is written; checking it on 8 pictures" in meanwhile
    said = out.splitlines()
    assert said[0] == f"{run / 'network.onnx'}: the student of step 400, as onnx"
    assert said[1].startswith("checked against the network on 8 pictures of 4 sizes: ")
    labels = run_onnx(run / "network.onnx")
    program = Deployed(load_trained(run, CPU).networks["student"])
    pictures = torch.randint(0, 256, (3, 3, 77, 131), dtype=torch.uint8)
    found = labels(pictures.numpy())
    assert (found.dtype, found.shape) == (np.uint8, (3, 77, 131))
    assert compare(labels, program, list(pictures.permute(0, 2, 3, 1).numpy())).wrong == 0

    session = onnxruntime.InferenceSession(run / "network.onnx", providers=["CPUExecutionProvider"])
    kept = session.get_modelmeta().custom_metadata_map
    assert json.loads(kept["classes"])[:2] == ["road", "sidewalk"]
    assert json.loads(kept["colours"])[0] == [128, 64, 128]
    assert (kept["size"], json.loads(kept["normalised_inside"])) == ("96x64", True)
    assert [given.name for given in session.get_inputs()] == [INPUT]


def test_a_program_of_torch_export_gives_scores_of_normalised_pictures(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dida.machine.progress.EVERY", 0.0)
    path = tmp_path / "x.pt2"
    export(run, "--format", "torch", "--checks", "3", "--no-normalise", "--no-argmax", "--out", path)
    said = capsys.readouterr()
    assert "every pixel is labelled as the network does it, scores within " in said.out
    assert said.out.splitlines()[-1] == (
        "pictures [B, 3, H, W] float32 RGB, less ImageNet's mean and over its deviation, of 64 or more pixels a side; "
        "scores [B, C, H, W] float32"
    )
    assert "checking: 3 of 3 pictures, " in said.err
    scores = torch.export.load(path).module()(torch.zeros(1, 3, 70, 200))
    assert scores.shape == (1, 19, 70, 200)


def test_a_shared_folder_is_the_network_bit_for_bit(run, capsys):
    export(run, "--format", "safetensors", "--checks", "2", "--network", "teacher")
    assert "every pixel is labelled as the network does it" in capsys.readouterr().out
    assert (run / "shared" / "README.md").exists()


def test_another_program_is_found_out(run):
    trained = load_trained(run, CPU)
    program, pictures = Deployed(trained.networks["student"]), list(drawn_pictures(2, (96, 64)))
    other = Deployed(trained.networks["teacher"]).eval()
    found = compare(lambda batch: other(torch.from_numpy(batch)).numpy(), program, pictures)
    assert found.wrong > found.pixels / 2
    assert "without a tie" in str(found)
    scores = Deployed(trained.networks["student"], argmax=False).eval()
    with torch.no_grad():
        off = compare(lambda batch: scores(torch.from_numpy(batch)).numpy() * 1.01, scores, pictures)
    assert off.largest == pytest.approx(0.01, rel=1e-3)
    assert (off.pictures, off.sizes) == (2, 2)


def test_a_wrong_program_ends_in_a_message(run, monkeypatch):
    wrong = Agreement(pictures=1, sizes=1, pixels=9, tied=0, wrong=3, largest=None)
    monkeypatch.setattr("dida.command.compare", lambda *args: wrong)
    said = refusal(run, "--format", "safetensors")
    assert said.startswith("dida export: ")
    assert "is not the network: 1 pictures of 1 sizes: 3 of 9 pixels have another label, 3 without a tie" in said


def test_small_pictures_are_seen_as_the_network_sees_them_and_not_below_what_a_program_takes(tmp_path):
    sizes = [(200, 30), (80, 70), (300, 400)]
    for i, (width, height) in enumerate(sizes):
        Image.new("RGB", (width, height)).save(tmp_path / f"{i}.png")
    paths = sorted(tmp_path.iterdir())
    for enlarge, expected in ((False, [(200, 64), (80, 70), (150, 200)]), (True, [(200, 64), (171, 150), (150, 200)])):
        found = [picture.shape[1::-1] for picture in own_pictures(paths, (200, 150), enlarge=enlarge)]
        assert found == expected


def test_what_cannot_be_done_is_one_message(run, tmp_path, monkeypatch):
    assert "no such run" in refusal(tmp_path / "nowhere")
    assert "writes weights" in refusal(run, "--format", "safetensors", "--no-argmax")
    assert "no picture there" in refusal(run, "--format", "torch", "--images", tmp_path)
    (tmp_path / "film.mp4").write_bytes(b"")
    assert "no picture to check on, only videos" in refusal(run, "--format", "torch", "--images", tmp_path)
    assert "is the folder of a run" in refusal(run, "--format", "safetensors", "--out", run)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs onnx, onnxscript, onnxruntime: not installed" in refusal(run)


class EvenOnly(nn.Module):
    """As mobilevit and mvitv2 do, it treats some sizes in another way."""

    def forward(self, image):
        scores = image if image.shape[2] % 2 == 0 else image[:, :, 1:]
        return Prediction(scores, image, image)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (partial(Segmentor, "tf_efficientnet_lite0"), "the backbone pads by the size of its picture"),
        (EvenOnly, r"PyTorch cannot trace the backbone for any size \(.*height"),
    ],
    ids=["padding", "rule"],
)
def test_a_backbone_of_which_no_program_can_be_made_is_refused(tmp_path, network, why):
    with pytest.raises(ValueError, match=f"^{why}.* --format safetensors writes what") as refused:
        write_torch(Deployed(network()), tmp_path / "network.pt2")
    assert len(str(refused.value)) < 500
    assert not list(tmp_path.iterdir())

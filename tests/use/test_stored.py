"""Networks that others published, from a file to scores, a start, and answers."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from dida import assemble as assembling
from dida.config import changed
from dida.data.classes import CITYSCAPES_CLASSES
from dida.models import pretrained
from dida.use import stored
from dida.use.evaluate import WHOLE_IMAGE, Inference
from dida.use.stored import hub_name, read_stored
from dida.use.trained import load_trained
from tests.engine.checkpoints import evaluate, refusal, tiny_config, write_checkpoint
from tests.models.published_files import (
    SIZE,
    daformer_file,
    mmcv,
    network,
    nvidia_names,
    prefixed,
    transformers_folder,
)

CPU = torch.device("cpu")
FARM = ("field", "barn", "cow")


@pytest.fixture(scope="module")
def daformer(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "latest.pth"
    return daformer_file(path, *(network(seed) for seed in range(3)), config="source=dict(type='GTADataset')")


@pytest.fixture(scope="module")
def segformer(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "segformer.b0.1024x1024.city.160k.pth"
    return mmcv(path, nvidia_names(network(3, segformer=True).state_dict()))


def test_a_published_file_brings_the_protocol_of_its_paper(daformer, segformer):
    found = read_stored(daformer)
    assert (found.config.data.tgt_size, found.inference) == ("1024x512", WHOLE_IMAGE)
    assert found.weights.keys() == {"student", "teacher"}
    assert [row.title for row in found.printed] == ["DAFormer gta5", "DIDA gta5"]
    found = read_stored(segformer)
    assert (found.config.data.tgt_size, found.inference) == ("2048x1024", Inference(1024, 768))
    assert [(row.title, row.mean_iou) for row in found.printed] == [("SegFormer mit_b0", 76.2)]


def test_classes_are_those_that_the_file_names_or_those_of_cityscapes(tmp_path):
    state = network(0).state_dict()
    assert read_stored(mmcv(tmp_path / "a.pth", state, CLASSES=None)).class_set == CITYSCAPES_CLASSES
    three = network(0, classes=3).state_dict()
    farm = read_stored(mmcv(tmp_path / "b.pth", three, CLASSES=FARM, PALETTE=[[0, 1, 2]] * 3))
    assert (farm.class_set.names, farm.class_set.colours[0], farm.printed) == (FARM, (0, 1, 2), ())
    with pytest.raises(ValueError, match=r"c\.pth: tells 3 classes apart and names none of them"):
        read_stored(mmcv(tmp_path / "c.pth", three, CLASSES=None))
    twice = transformers_folder(
        tmp_path / "twice", network(3, segformer=True).state_dict(), ("a", *"abcdefghijklmnopqr")
    )
    with pytest.raises(ValueError, match=r"twice/model.safetensors: two classes of one set are called 'a'"):
        read_stored(twice)
    names = tuple(f"class {i}" for i in range(19))
    hub = read_stored(transformers_folder(tmp_path / "hub", network(3, segformer=True).state_dict(), names))
    assert (hub.class_set.names, len(set(hub.class_set.colours))) == (names, 19)


def test_scores_stand_beside_what_the_papers_print(daformer, segformer, data, tmp_path, capsys):
    numbers = tmp_path / "x.json"
    evaluate(daformer, "--data-root", data, "--size", "64x32", "--workers", "0", "--json", numbers)
    said = capsys.readouterr().out
    assert "a published network of DAFormer or DIDA, mit_b0 trained on gta5: " in said
    assert next(line for line in said.splitlines() if line.startswith("mIoU (")).split()[-2:] == ["68.3", "71.0"]
    assert next(line for line in said.splitlines() if line.startswith("train ")).split()[-2:] == ["65.1", "73.8"]
    report = json.loads(numbers.read_text())
    assert {"student", "teacher"} <= report.keys()
    assert report["method"] is None
    evaluate(segformer, "--data-root", data, "--size", "64x32", "--workers", "0")
    said = capsys.readouterr().out
    assert "window 1024 every 768" in said
    assert next(line for line in said.splitlines() if line.startswith("mIoU (")).split()[-1] == "76.2"
    assert "teacher" not in said
    assert "holds student alone" in refusal(segformer, "--network", "teacher", "--images", data)


def test_bits_are_those_of_the_network_that_was_written(daformer):
    trained, image = load_trained(daformer, CPU), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for name, seed in (("student", 0), ("teacher", 1)):
            assert torch.equal(trained.networks[name].eval()(image).logits, network(seed)(image).logits)


def test_a_run_starts_from_a_published_student(daformer, segformer, tmp_path, caplog):
    config = changed(tiny_config(tmp_path), weights="none", feature_weight=0.0, init=daformer)
    with caplog.at_level(logging.INFO):
        student, _ = assembling.load_networks(config, CITYSCAPES_CLASSES, CPU)
    assert "19 of 19 classes taken" in caplog.text
    assert torch.equal(student.decode_head.conv_seg.weight, network(0).decode_head.conv_seg.weight)
    config = changed(config, init=segformer)
    with pytest.raises(ValueError, match=f"say --backbone mit_b0 --embed-dim {SIZE} --head segformer to start from it"):
        assembling.load_networks(config, CITYSCAPES_CLASSES, CPU)
    student, _ = assembling.load_networks(changed(config, head="segformer"), CITYSCAPES_CLASSES, CPU)
    assert same_weights(student, network(3, segformer=True))


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def test_what_cannot_be_read_says_why_in_one_message(tmp_path):
    hrda = {n.replace("decode_head.", "decode_head.head."): v for n, v in network(0).state_dict().items()}
    said = refusal(mmcv(tmp_path / "hrda.pth", prefixed("model.", hrda)))
    assert "HRDA or MIC" in said
    torch.save({"a": 1}, tmp_path / "x.pth")
    assert "expected a DIDA checkpoint" in refusal(tmp_path / "x.pth")
    path = write_checkpoint(tmp_path / "ours.pth", tiny_config(tmp_path), format=7)
    assert "format 2, found 7" in refusal(path)
    (tmp_path / "empty").mkdir()
    assert "no checkpoint in" in refusal(tmp_path / "empty")


@pytest.mark.parametrize("name, is_one", [("nvidia/segformer-b0", True), ("tests/nowhere", False), ("a", False),
                                          ("/a/b", False), ("a/b/c", False), ("../a", False), ("./a/b", False),
                                          ("~/a", False), (".a/b", False)])  # fmt: skip
def test_what_may_be_a_name_on_the_hub(name, is_one):
    assert (hub_name(name) is not None) == is_one
    if not is_one:
        with pytest.raises(FileNotFoundError, match=r"no such run folder or checkpoint$"):
            read_stored(name)  # and nothing is asked


def test_without_a_connection_one_file_is_waited_for_and_the_reason_is_told(monkeypatch):
    waited = []

    def without_connection(repo: str, file: str, *, local_files_only: bool = False) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        waited.append(file)
        raise LocalEntryNotFoundError("no route to host")

    monkeypatch.setattr(stored, "hf_hub_download", without_connection)
    monkeypatch.setattr(pretrained, "hf_hub_download", without_connection)
    with pytest.raises(
        FileNotFoundError, match=r"read as a repository of the hub: user/network, .* \(no route to host\)"
    ):
        read_stored(Path("user/network"))
    assert waited == ["config.json"]


def test_arrays_of_a_batch_and_files_are_answered_alike(daformer, tmp_path):
    import dida

    found = dida.load(daformer, size="64x64", device="cpu")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 40, 70, 3), dtype=np.uint8)
    assert [answer.shape for answer in found(pictures)] == [(40, 70)] * 2

"""What others pickle beside weights is neither run nor needed, and what is no weight file says so."""

import pathlib
import pickle

import pytest
import torch
from torch import nn

from dida.models.weight_file import read_weights
from tests.models.published_files import mmcv


class Trap:
    """Its unpickling would create a file."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


class Slotted:
    __slots__ = ("a",)


def full_of_things(sprung: pathlib.Path) -> dict:
    slotted = Slotted()
    slotted.a = 1
    return {"traps": [Trap(sprung), {Trap(sprung)}], "slotted": slotted, "set": {1}, "type": dict}


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_read_past_whatever_lies_beside_them(tmp_path, zipped):
    sprung, weights = tmp_path / "sprung", {"a.weight": torch.randn(2, 3), "b": torch.arange(4)}
    weights["tied"] = weights["a.weight"].t()
    beside = {"meta": {"CLASSES": ("x", "y")} | full_of_things(sprung), "state_dict": weights}
    torch.save(beside, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = read_weights(tmp_path / "x.pth")
    assert found.state.keys() == weights.keys()
    assert all(torch.equal(found.state[name], value) for name, value in weights.items())
    assert found.about["CLASSES"] == ("x", "y")
    assert not sprung.exists()


def test_what_mmcv_writes_is_read(tmp_path):
    found = read_weights(mmcv(tmp_path / "x.pth", {"a": torch.ones(2)}, config="data = dict(type='GTADataset')"))
    assert torch.equal(found.state["a"], torch.ones(2))
    assert "GTADataset" in found.about["config"]


def test_an_object_in_the_place_of_a_weight_is_no_weight(tmp_path):
    sprung = tmp_path / "sprung"
    torch.save({"state_dict": {"a": torch.ones(2), "b": Trap(sprung)}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth holds no state dict"):
        read_weights(tmp_path / "x.pth")
    assert not sprung.exists()


def test_a_program_is_not_loaded(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt is a TorchScript program"):
        read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [pickle.dumps([1]), b"\x80\x02}q\x00.", b"\x80", b"ustar" * 200])
def test_a_pickle_that_is_no_file_of_torch(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pth is damaged, or no file of torch"):
        read_weights(tmp_path / "x.pth")


def test_a_config_beside_the_weights_is_read_with_them(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "x.bin")
    (tmp_path / "config.json").write_text('{"id2label": {"0": "road"}}')
    assert read_weights(tmp_path / "x.bin").about == {"id2label": {"0": "road"}}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: "):
        read_weights(tmp_path / "x.bin")

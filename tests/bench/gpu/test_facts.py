"""What stands in the way is named, with its cure, before anything is measured."""

import json

import torch

from bench import record
from bench.gpu import facts
from bench.gpu.facts import missing_packages, obstacles_here


def test_obstacles_are_named_with_their_cure():
    assert obstacles_here("cuda", [], "0123456789ab", has_cuda=True) == []
    assert obstacles_here("cpu", [], "0123456789ab", has_cuda=False) == []
    (no_gpu,) = obstacles_here("cuda", [], "0123456789ab", has_cuda=False)
    assert "no CUDA device" in no_gpu
    assert "--device cpu" in no_gpu
    (no_commit,) = obstacles_here("cpu", [], "unknown", has_cuda=False)
    assert "set DIDA_COMMIT" in no_commit
    (no_package,) = obstacles_here("cuda", ["pytest"], "0123456789ab", has_cuda=False)
    assert "missing: pytest" in no_package
    assert "--wheels" in no_package


def test_a_missing_package_is_one():
    assert missing_packages(lambda name: None if name in ("timm", "cv2") else True) == [
        "timm",
        "opencv-python-headless",
    ]
    assert missing_packages(lambda name: True) == []


def test_the_stage_says_what_is_here(tmp_path, monkeypatch, capsys):
    arguments = ["--device", "cuda", "--to", str(tmp_path / "facts.json")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(record, "commit", lambda: "unknown")
    monkeypatch.setattr(facts, "LOOK", ())
    assert facts.main(arguments) == 1
    found = json.loads((tmp_path / "facts.json").read_text())
    assert len(found["obstacles"]) == 2
    assert found["header"]["torch"] == torch.__version__
    assert "set DIDA_COMMIT" in capsys.readouterr().out
    monkeypatch.setattr(record, "commit", lambda: "0123456789ab")
    assert facts.main(["--device", "cpu", "--to", str(tmp_path / "facts.json")]) == 0


def test_without_torch_the_stage_still_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "missing_packages", lambda: ["torch"])
    monkeypatch.setattr(facts, "LOOK", ())
    monkeypatch.setenv("DIDA_COMMIT", "0123456789ab")
    assert facts.main(["--device", "cuda", "--to", str(tmp_path / "facts.json")]) == 1
    found = json.loads((tmp_path / "facts.json").read_text())
    assert [line for line in found["obstacles"] if "missing: torch" in line] == found["obstacles"]

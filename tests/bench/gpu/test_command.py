"""The command itself, where there is no GPU."""

import json
import os
import subprocess
import sys

from bench.gpu.ledger import DONE, FAILED, LOGS, NOT_REACHED, RESULTS
from bench.gpu.runner import CHECKOUT


def command(folder, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "bench.gpu", "--out", str(folder / "out"), *arguments]
    return subprocess.run(
        program, cwd=CHECKOUT, env=os.environ | environment, capture_output=True, text=True, timeout=600, check=False
    )


def results(folder) -> dict:
    assert {path.name for path in (folder / "out").iterdir()} == {RESULTS, LOGS}
    return json.loads((folder / "out" / RESULTS).read_text())


def test_it_can_be_tried_without_a_gpu(tmp_path):
    done = command(tmp_path, "--device", "cpu", "--stages", "network-parts", "sanitizer", "--seconds", "600")
    found = results(tmp_path)
    assert {name: stage["outcome"] for name, stage in found["stages"].items()} == {
        "facts": DONE, "network-parts": DONE, "sanitizer": FAILED,
    }  # fmt: skip
    assert done.returncode == 1
    assert found["found"]["facts"]["header"]["device"] == "cpu"
    assert len(found["found"]["network-parts"]["rows"]) == 24
    assert "compute-sanitizer is not on the PATH" in found["stages"]["sanitizer"]["why"]


def test_without_a_gpu_it_says_so_and_measures_nothing(tmp_path):
    done = command(tmp_path, "--stages", "network-parts", "--seconds", "600", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "there is no CUDA device" in done.stdout.splitlines()[-1]
    outcomes = {name: stage["outcome"] for name, stage in results(tmp_path)["stages"].items()}
    assert outcomes == {"facts": FAILED, "network-parts": NOT_REACHED}


def test_what_cannot_be_meant_is_refused(tmp_path):
    assert "no such folder" in command(tmp_path, "--wheels", str(tmp_path / "none")).stderr
    assert "invalid choice" in command(tmp_path, "--stages", "everything").stderr
    assert not (tmp_path / "out").exists()

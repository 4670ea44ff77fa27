"""The other programs, on tiny sizes: operations of the network, a whole run, the loader, the build, the sanitizer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dida_kernels
from bench import clocks
from bench.gpu import (
    build,
    compile_kernels,
    network_parts,
    profile_kernels,
    sanitizer,
    throughput,
    toy_table,
    whole_run,
)
from bench.gpu.runner import CHECKOUT
from bench.gpu.sanitizer import CHECKS, CLEAN, FOUND, WATCHED_OPS, Watched, why_blind
from tests.bench.gpu.stage_files import program
from tests.kernels import sanitized


def arguments(folder, *own: str) -> list[str]:
    return ["--device", "cpu", "--to", str(folder / "stage.json"), *own]


def found_in(folder) -> dict:
    return json.loads((folder / "stage.json").read_text())


def test_parts_of_the_network(tmp_path, monkeypatch):
    monkeypatch.setattr(clocks, "ROUNDS", 2)
    assert network_parts.main(arguments(tmp_path)) == 0
    rows = found_in(tmp_path)["rows"]
    assert len({(row["name"], row["dtype"]) for row in rows}) == len(rows) == 24
    assert all(row["forward"] > 0 and row["backward"] > 0 for row in rows)
    assert network_parts.main(arguments(tmp_path, "--seconds", "1")) == 1  # no time for all of it


def test_a_whole_run_is_stopped_resumed_and_scored(tmp_path):
    assert whole_run.main(arguments(tmp_path, "--seconds", "600")) == 0
    found = found_in(tmp_path)
    assert found["trained"]["steps"] == 6
    assert 3 <= found["stopped"]["after_step"] < 6
    assert found["resumed"] == {"largest_difference_of_a_weight": 0.0}
    assert found["scored"]["images"] == 1
    assert 0 < found["scored"]["mIoU"] < 100


def test_a_run_that_does_not_stop_is_no_success(tmp_path, monkeypatch):
    class Deaf:
        """A run that trains to its end whatever it is told."""

        returncode = whole_run.STOPPED

        def __init__(self, *args, **options): ...
        def __enter__(self):
            return self

        def __exit__(self, *args): ...
        def poll(self):
            return 0

        kill = poll

    config = whole_run.toy_run("cpu", tmp_path, tmp_path / "run")
    monkeypatch.setattr(whole_run.subprocess, "Popen", Deaf)
    monkeypatch.setattr(whole_run, "latest", lambda run: run)
    monkeypatch.setattr(whole_run, "load_checkpoint", lambda path: {"step": config.optim.steps})
    with pytest.raises(RuntimeError, match="told to stop after step 3, it ended with status 143 at step 6"):
        whole_run.stop_half_way(program(tmp_path), config)


def test_loading_and_scoring(tmp_path):
    assert throughput.main(arguments(tmp_path, "--seconds", "600")) == 0
    found = found_in(tmp_path)
    assert [row["workers"] for row in found["loading"]] == [0, 1]
    assert [row["way"] for row in found["scoring"]] == [way.name for way in throughput.WAYS]
    assert all(row["images_per_second"] > 0 for row in found["scoring"])
    assert all(megabytes > 0 for megabytes in found["megabytes"].values())


def test_the_build_says_whether_it_compiled(tmp_path, monkeypatch):
    def compiled(command, *, env, **options):
        assert command[1:] == ["setup.py", "build_ext", "--inplace"]
        assert env["DIDA_BUILD"] == "1"
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(build.subprocess, "run", compiled)
    assert build.main(arguments(tmp_path)) == 3


# ---- compute-sanitizer ---------------------------------------------------------------------------------------------


@pytest.fixture
def tools(monkeypatch):
    """A machine with compute-sanitizer and nvcc; what they say is for the test to decide."""
    monkeypatch.setattr(sanitizer, "tool_path", lambda name: name)
    monkeypatch.setattr(sanitizer, "run_for", lambda command, seconds: Watched(0, ""))


@pytest.mark.parametrize("missed", CHECKS)
def test_a_sanitizer_that_misses_a_planted_mistake_is_not_believed(tools, missed):
    assert why_blind(lambda check, program: Watched(FOUND, "")) is None
    why = why_blind(lambda check, program: Watched(0 if check == missed else FOUND, "Device not there"))
    assert missed in why
    assert "Device not there" in why


def test_without_a_sanitizer_nothing_is_clean(tmp_path, monkeypatch):
    monkeypatch.setattr(sanitizer, "tool_path", lambda name: None)
    assert sanitizer.main(arguments(tmp_path)) == 1
    assert "compute-sanitizer" in found_in(tmp_path)["why"]
    assert found_in(tmp_path)["found"] == {}
    assert "nvcc" in why_blind(lambda check, program: Watched(FOUND, ""))


def test_findings_are_kept_and_what_was_not_watched_is_not_clean(tools, tmp_path, monkeypatch):
    said = {("racecheck", "gather"): Watched(FOUND, "a hazard"), ("memcheck", "scatter"): Watched(None, "ended")}
    monkeypatch.setattr(sanitizer, "why_blind", lambda watch: None)
    monkeypatch.setattr(
        sanitizer, "run_for", lambda command, seconds: said.get((command[2], command[-1]), Watched(0, "fine"))
    )
    assert sanitizer.main(arguments(tmp_path)) == 1
    found = found_in(tmp_path)
    assert {name: x for name, x in found["found"].items() if x != CLEAN} == {"racecheck gather": "a hazard"}
    assert len(found["found"]) == len(CHECKS) * len(WATCHED_OPS) - 1
    assert found["unwatched"] == {"memcheck scatter": "ended"}
    said.clear()
    assert sanitizer.main(arguments(tmp_path)) == 0


def test_what_is_watched_is_given_an_allocation_for_every_tensor():
    command = ["python3", "-c", "import os; print(os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'])"]
    assert sanitizer.run_for(command, 60) == Watched(0, "1\n")
    late = sanitizer.run_for(["python3", "-c", "import time; print('begun', flush=True); time.sleep(60)"], 1)
    assert late.status is None
    assert "ended after 1 s" in late.output


@pytest.mark.parametrize("op", dida_kernels.OPS)
def test_the_sanitizer_has_something_to_watch(op):
    assert sanitized.run(op, "cpu", names=("equation",)) == len(sanitized.WATCHED) * len(sanitized.DTYPES)
    assert set(WATCHED_OPS) == set(dida_kernels.OPS)


def test_the_kernels_of_every_op_are_compiled_beforehand():
    assert set(compile_kernels.OPS) == {name for name, op in dida_kernels.OPS.items() if "triton" in op.backends}


def test_kernels_are_compiled_beforehand_in_processes_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu.compile_kernels", *arguments(tmp_path)],
        cwd=CHECKOUT, env={**os.environ, "TRITON_INTERPRET": "0"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert found_in(tmp_path) == {"compiled": 1}
    assert list((tmp_path / "cache").rglob("*.cubin"))


def test_one_machine_code_is_compiled_once():
    twice = list(compile_kernels.launches_of(("boundary_mask", "boundary_mask"), (300, 3000), (torch.float32,), 90))
    assert len(twice) == 1


def test_the_toys_table_keeps_what_was_scored(tmp_path, monkeypatch):
    """A command stands in for the runs: it leaves two records and does not end by itself."""
    record = {
        "row": "dida",
        "seed": 0,
        "split": "test",
        "minutes": 1.5,
        "digest": "d",
        "student": {"mIoU": {"19": 50.0}},
    }

    def writing(command, **options):
        (results,) = (part.partition("=")[2] for part in command if part.startswith("--results="))
        for seed in (0, 1):
            path = Path(results, "toy/records/d", f"dida_s{seed}_test.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record | {"seed": seed}))
        return real([sys.executable, "-c", "import time; time.sleep(600)"])

    real = subprocess.Popen
    monkeypatch.setattr(toy_table, "generate", lambda *a, **k: None)
    monkeypatch.setattr(toy_table.subprocess, "Popen", writing)
    assert toy_table.main(arguments(tmp_path, "--seconds", "5")) == 0
    scores = found_in(tmp_path)["scores"]
    assert [score["seed"] for score in scores] == [0, 1]
    assert scores[0]["mIoU"] == {"19": 50.0}


CSV = """==PROF== Connected to process 1
"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","_loss_fwd(float *)","Occupancy","Achieved Occupancy","%","58.1"
"0","_loss_fwd(float *)","Occupancy","","",""
"1","_loss_bwd","Launch Statistics","Registers Per Thread","register/thread","96"
"2","_loss_fwd(float *)","Occupancy","Achieved Occupancy","%","57.9"
"""


def test_counters_are_those_of_the_first_launch_of_a_kernel():
    found = profile_kernels.counters(CSV.splitlines())
    assert [(row["kernel"], row["counter"], row["value"]) for row in found] == [
        ("_loss_fwd", "Achieved Occupancy", "58.1"),
        ("_loss_bwd", "Registers Per Thread", "96"),
    ]


def test_a_watched_call_is_one_of_ours(tmp_path):
    assert profile_kernels.main(arguments(tmp_path, "--call", "instance_loss", "--dtype", "float32")) == 0

"""The other programs, on tiny sizes: operations of the network, a whole run, the loader, the build, the sanitizer."""

import json
import subprocess

import pytest

import dida_kernels
from bench import clocks
from bench.gpu import build, network_parts, sanitizer, throughput, whole_run
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

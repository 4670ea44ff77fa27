"""Tests as a stage: outcomes are kept as they come, a red one marks its op and hides no other."""

import json
import subprocess
import sys

import pytest
import torch

import dida_kernels
from bench import record
from bench.gpu import agreement
from bench.gpu.agreement import (
    ON_GPU,
    SELECTIONS,
    doubts,
    needing_a_gpu,
    pytest_arguments,
    workers,
)
from bench.gpu.ledger import FORMAT
from bench.gpu.passed_before import NOTHING, Before, kernels_digest, seen_before
from bench.gpu.runner import AGAIN, CHECKOUT

OPS = tuple(dida_kernels.OPS)
GATHER = "tests/kernels/test_agreement.py::test_agrees_with_the_equation[gather-triton-ordinary-torch.float32]"


def test_only_green_ops_are_trusted():
    doubt = doubts({"tests": {GATHER: "passed"}}, OPS)
    assert doubt("gather", "triton", torch.float32) is None
    assert "no agreement test" in doubt("gather", "triton", torch.bfloat16)
    assert "no agreement test" in doubt("scatter", "triton", torch.float32)
    assert "no agreement test" in doubts({}, OPS)("gather", "triton", torch.float32)
    assert "no agreement test" in doubts({"tests": {GATHER: "skipped"}}, OPS)("gather", "triton", torch.float32)


def test_a_red_test_counts_against_the_ops_in_its_name():
    red = "tests/kernels/test_training_size.py::test_the_corner_at_the_size_of_training[scatter-300-torch.bfloat16]"
    scatter = GATHER.replace("gather", "scatter")
    doubt = doubts({"tests": {GATHER: "passed", scatter: "passed", red: "failed"}}, OPS)
    assert doubt("gather", "triton", torch.float32) is None
    assert "1 red tests" in doubt("scatter", "triton", torch.float32)


def test_a_red_test_of_the_kernels_that_names_no_op_counts_against_all():
    bank = "tests/kernels/test_real_banks.py::test_triton_agrees_on_slots_of_a_real_bank[balanced]"
    assert "1 red tests" in doubts({"tests": {GATHER: "passed", bank: "failed"}}, OPS)(
        "gather", "triton", torch.float32
    )
    loader = "tests/data/test_loader.py::test_batches_arrive_on_the_device"
    assert doubts({"tests": {GATHER: "passed", loader: "failed"}}, OPS)("gather", "triton", torch.float32) is None


def test_labels_have_no_dtype_but_their_own():
    name = GATHER.replace("gather", "boundary_mask")
    assert doubts({"tests": {name: "passed"}}, OPS)("boundary_mask", "triton", torch.bfloat16) is None


def test_every_file_with_a_test_for_a_gpu_is_run():
    words = ("mark.gpu", "device_of(", '"cuda" if torch.cuda.is_available()')
    found = {
        path.relative_to(CHECKOUT).as_posix()
        for folder in ("kernels", "engine", "data", "method", "models", "report", "machine", "options", "run", "use")
        for path in (CHECKOUT / "tests" / folder).glob("test_*.py")
        if any(word in path.read_text() for word in words)
    }
    assert found == {test.partition("::")[0] for test in ON_GPU}
    assert sorted(ON_GPU) == sorted(SELECTIONS["step"].tests + SELECTIONS["rest"].tests)  # each of them once


def test_the_smoke_has_a_scene_of_every_kernel():
    """By the names that the tests have: a keyword that matches nothing would be green."""
    ids = []

    class Collected:
        def pytest_collection_finish(self, session: pytest.Session) -> None:
            ids.extend(item.name for item in session.items)

    smoke = SELECTIONS["smoke"]
    tests = [str(CHECKOUT / test) for test in smoke.tests]
    pytest.main([*tests, "-k", smoke.keyword, "--collect-only", "-p", "no:cacheprovider"], plugins=[Collected()])
    with_triton = {op for op, x in dida_kernels.report().items() if x["triton"] == "yes"}
    assert {op for op in OPS for name in ids if f"[{op}-triton-" in name} == with_triton
    assert len(ids) <= 5 * len(OPS)


def test_what_is_not_installed_is_named():
    rest = SELECTIONS["rest"]
    arguments, otherwise = pytest_arguments(rest, 4)
    assert arguments[: len(rest.tests)] == list(rest.tests)
    assert arguments[arguments.index("--numprocesses") + 1] == "4"
    assert otherwise is None
    arguments, otherwise = pytest_arguments(rest, 4, present=lambda name: None)
    assert "--numprocesses" not in arguments
    assert "one by one" in otherwise


def test_workers_leave_a_small_card_room_for_the_largest_test(monkeypatch):
    monkeypatch.setattr(agreement, "usable_cores", lambda: 16)
    assert workers(80e9) == agreement.WORKERS
    assert workers(24 * 2**30) == 4
    assert workers(4e9) == 1
    assert workers(None) == agreement.WORKERS


def test_tests_that_a_gpu_would_have_run():
    tests = {"a": "skipped", "b": "skipped", "c": "passed"}
    assert needing_a_gpu({"a": "needs a CUDA device", "b": "gather: triton refuses: odd"}, tests) == ["a"]


def outcomes_of(tmp_path, content: str, *, xdist: bool, before: Before = NOTHING) -> tuple[int, dict]:
    """What the stage finds of a file of tests: its status, and outcomes by the names of the tests."""
    (tmp_path / "test_it.py").write_text(content)
    command = f"""
import sys
from bench.gpu.agreement import Before, Selection, run_tests, pytest_arguments
from bench.gpu import agreement
from tests.bench.gpu.stage_files import program
from pathlib import Path
agreement.workers, agreement.SAVE_EVERY = lambda memory: 1, 0
if not {xdist}:
    agreement.pytest_arguments = lambda s, n: pytest_arguments(s, n, present=lambda name: None)
sys.exit(run_tests(program(Path({str(tmp_path)!r})), Selection(({str(tmp_path / "test_it.py")!r},)), {before!r}))
"""
    done = subprocess.run([sys.executable, "-c", command], cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
    found = json.loads((tmp_path / "stage.json").read_text())
    return done.returncode, found | {"short": {name.partition("::")[2]: x for name, x in found["tests"].items()}}


def test_outcomes_are_kept_as_they_come(tmp_path):
    """A red test hides no other, and a crash takes nothing that came before it."""
    status, found = outcomes_of(
        tmp_path,
        "import os, pytest\n"
        "def test_seed(): assert len(os.environ['DIDA_SEED']) == 8\n"
        "def test_threads(): assert int(os.environ['OMP_NUM_THREADS']) == len(os.sched_getaffinity(0))\n"
        "def test_red(): assert 1 == 2, 'off by 1'\n"
        "def test_skipped(): pytest.skip('it refuses')\n"
        "@pytest.fixture\n"
        "def broken():\n    yield\n    raise RuntimeError('behind it')\n"
        "def test_teardown(broken): pass\n"
        "def test_last(): pass\n"
        "def test_crash(): os.abort()\n",
        xdist=False,
    )
    assert status == -6
    assert found["short"] == {
        "test_seed": "passed", "test_threads": "passed", "test_red": "failed", "test_skipped": "skipped",
        "test_teardown": "failed", "test_last": "passed",
    }  # fmt: skip
    why = {name.partition("::")[2]: said for name, said in found["why"].items()}
    assert "off by 1" in why["test_red"]
    assert why["test_skipped"] == "it refuses"
    assert len(found["seed"]) == 8
    assert found["status"] is None  # it did not come to its end


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """A file of results, with what their stage of agreement found; it is what the command was given."""

    def results(tests: dict[str, str], **found) -> None:
        header = record.header("cpu") | {"commit": "abc"}
        agreement = {"tests": tests, "why": {"tests/kernels/a": "off by 1"}, "kernels": kernels_digest()} | found
        content = {
            "format": FORMAT,
            "stages": {"facts": {"outcome": "done"}, "agreement": {"outcome": "failed"}},
            "found": {"facts": {"header": header | found.pop("header", {})}, "agreement": agreement},
        }
        (tmp_path / "results.json").write_text(json.dumps(content))
        monkeypatch.setenv(AGAIN, str(tmp_path / "results.json"))

    return results


def test_what_passed_on_these_kernels_and_this_machine_counts(earlier):
    assert seen_before("cpu") == NOTHING
    tests = {f"tests/kernels/{name}": outcome for name, outcome in (("a", "failed"), ("b", "passed"), ("c", "skipped"))}
    earlier(tests | {"tests/data/d": "passed"}, before={"tests": 1, "commit": "old"})
    before = seen_before("cpu")
    assert before.passed == ["tests/kernels/b"]  # what was skipped, and what needs more than kernels, runs again
    assert before.failed == {"tests/kernels/a": "off by 1"}
    assert before.commits == "old, abc"
    earlier(tests, kernels="others")
    assert seen_before("cpu").passed == []
    assert "other kernels" in seen_before("cpu").note
    earlier(tests, header={"torch": "1.0"})
    assert seen_before("cpu").passed == []
    assert "torch" in seen_before("cpu").note


@pytest.mark.parametrize("xdist", [False, True])
@pytest.mark.parametrize(
    "now, status, outcomes",
    [
        ((0, 1, 0), 0, {"test_one": "passed", "test_two": "passed", "test_three": "passed"}),
        ((1, 0, 1), 1, {"test_one": "passed", "test_two": "failed", "test_three": "passed"}),
    ],
)
def test_what_has_passed_before_is_not_run_again(tmp_path, xdist, now, status, outcomes):
    """The first and the third passed: whatever they would do now, they do not run. The second was red."""
    if xdist:
        pytest.importorskip("xdist")
    names = ("one", "two", "three")
    tests = "".join(f"def test_{name}(): assert {value}\n" for name, value in zip(names, now, strict=True))
    _, first = outcomes_of(tmp_path, tests, xdist=xdist)
    one, two, three = sorted(first["tests"], key=lambda name: names.index(name.rpartition("_")[2]))
    before = Before([one, three], {two: "off by 1"}, "abc")
    got, found = outcomes_of(tmp_path, tests, xdist=xdist, before=before)
    assert got == status
    assert {name.rpartition("::")[2]: outcome for name, outcome in found["tests"].items()} == outcomes
    assert found["before"] == {"tests": 2, "commit": "abc"}


def test_nothing_left_to_run_is_no_failure(tmp_path):
    status, found = outcomes_of(tmp_path, "", xdist=False, before=Before(["tests/kernels/a"], {}, "abc"))
    assert status == found["status"] == 0
    assert found["tests"] == {"tests/kernels/a": "passed"}


def test_what_was_red_is_red_until_it_has_run_again(tmp_path):
    red = Before([], {"tests/kernels/a": "off by 1"}, "abc")
    status, found = outcomes_of(tmp_path, "def test_one(): pass\n", xdist=False, before=red)
    assert status == 1
    assert found["tests"]["tests/kernels/a"] == "failed"
    assert found["why"] == {"tests/kernels/a": "off by 1"}


def test_a_lost_context_ends_its_process_and_reddens_one_test(tmp_path):
    """As CUDA has it: after an illegal access every later call of the process fails. Another process is well."""
    pytest.importorskip("xdist")
    status, found = outcomes_of(
        tmp_path,
        "import pytest\n"
        "from bench.gpu import fresh_worker\n"
        "lost = []\n"
        "fresh_worker.context_is_lost = lambda: bool(lost)\n"
        "def call():\n    assert not lost, 'CUDA error: an illegal memory access was encountered'\n"
        "def test_before(): call()\n"
        "def test_red(): assert False, 'wrong, and the context is well'\n"
        "def test_loses():\n    lost.append(1)\n    call()\n"
        "def test_after(): call()\n"
        "def test_last(): call()\n",
        xdist=True,
    )
    assert status == found["status"] == 1
    assert {name: outcome for name, outcome in found["short"].items() if outcome != "passed"} == {
        "test_red": "failed", "test_loses": "failed",
    }  # fmt: skip
    assert len(found["short"]) == 5

"""`make gpu-check` as far as it goes without a GPU: what it asks for, what it leaves out, and how it reads what ran."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import dida_kernels
from bench import gpu_check, gpu_report, kernels, record
from bench.gpu_check import Done
from tests.kernels import sanitized

ROOT = Path(__file__).parents[2]


def without(*modules: str):
    return lambda name: None if name in modules else True


def report(path: Path, **outcomes: str) -> Path:
    """A JUnit report; name -> "" (passed), "failure", or the reason for which it was skipped."""
    cases = []
    for name, said in outcomes.items():
        inner = f"<{said}/>" if said in ("failure", "error") else f'<skipped message="{said}"/>' if said else ""
        cases.append(f'<testcase classname="tests.kernels.test_agreement" name="{name}">{inner}</testcase>')
    path.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return path


def test_it_says_what_is_missing_before_it_starts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(record, "commit", lambda: "unknown")
    lines = gpu_check.obstacles(without("pytest", "setuptools"))
    assert "pytest, setuptools: pip install pytest setuptools" in lines[0]
    assert "no CUDA device" in lines[1]
    assert "DIDA_COMMIT" in lines[2]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(record, "commit", lambda: "0123456789ab")
    assert gpu_check.obstacles() == []


def test_tests_whose_packages_are_missing_are_named():
    tests, left_out = gpu_check.runnable_tests(without("hypothesis"))
    assert "tests/kernels/test_fuzz.py" not in tests
    assert left_out == ["tests/kernels/test_fuzz.py: left out, hypothesis is not installed"]
    assert gpu_check.runnable_tests(without()) == (list(gpu_check.TESTS), [])


def test_every_file_with_a_test_for_a_gpu_is_run():
    words = ("mark.gpu", "device_of(", '"cuda" if torch.cuda.is_available()')
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("kernels", "engine", "data", "method", "models")
        for path in (ROOT / "tests" / folder).glob("test_*.py")
        if any(word in path.read_text() for word in words)
    }
    assert found == {test.partition("::")[0] for test in gpu_check.TESTS}


def test_it_runs_with_what_a_gpu_machine_has():
    """Neither the command line library nor what only training and development need is imported."""
    program = """
import sys
for name in ("tyro", "tensorboard", "matplotlib", "hypothesis", "transformers", "xdist"):
    sys.modules[name] = None
import bench.gpu_check, bench.gpu_report, bench.kernels, bench.step
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_outcomes_of_a_report(tmp_path):
    found = gpu_check.outcomes(report(tmp_path / "r.xml", a="", b="failure", c="no CUDA device", d="it refuses", e=""))
    assert found["passed"] == 2
    assert found["failed"] == ["tests.kernels.test_agreement::b"]
    assert found["skipped"] == {"no CUDA device": 1, "it refuses": 1}
    assert gpu_check.needing_a_gpu(found["skipped"]) == {"no CUDA device": 1}


GATHER = "test_agrees_with_the_equation[gather-triton-ordinary-torch.float32]"


def test_only_what_agreed_is_timed(tmp_path):
    wrong = kernels.disagreement_in(report(tmp_path / "green.xml", **{GATHER: ""}))
    assert wrong("gather", "triton", torch.float32) is None
    assert "no agreement test" in wrong("gather", "triton", torch.bfloat16)
    assert "no agreement test" in wrong("scatter", "triton", torch.float32)
    red = {GATHER: "", "test_corner[gather-300]": "failure"}
    assert "1 tests failed" in kernels.disagreement_in(report(tmp_path / "red.xml", **red))(
        "gather", "triton", torch.float32
    )
    skipped = kernels.disagreement_in(report(tmp_path / "skipped.xml", **{GATHER: "it refuses"}))
    assert "no agreement test" in skipped("gather", "triton", torch.float32)


@pytest.mark.parametrize("missed", gpu_check.TOOLS)
def test_a_sanitizer_that_misses_a_planted_mistake_is_not_believed(monkeypatch, missed):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: name)
    monkeypatch.setattr(gpu_check, "command", lambda *args, **options: Done(0, "", 0.0))  # nvcc
    assert gpu_check.blind(lambda kind, program: Done(gpu_check.FOUND, "", 0.0)) is None
    why = gpu_check.blind(lambda kind, program: Done(0 if kind == missed else gpu_check.FOUND, "Device not there", 0.0))
    assert missed in why
    assert "Device not there" in why


def test_without_a_sanitizer_nothing_is_clean(monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: None)
    found = gpu_check.sanitizer(10)
    assert found["found"] == {}
    assert "compute-sanitizer" in found["why"]


def test_a_finding_of_the_sanitizer_is_kept(monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: name)
    monkeypatch.setattr(gpu_check, "blind", lambda watch: None)

    def command(arguments, seconds, **environment):
        assert environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        ended = {("racecheck", "gather"): Done(gpu_check.FOUND, "a hazard", 1.0)}
        ended[("memcheck", "scatter")] = Done(None, "ended after 10 s", 10.0)
        return ended.get((arguments[2], arguments[-1]), Done(0, "", 1.0))

    monkeypatch.setattr(gpu_check, "command", command)
    said = gpu_check.sanitizer(10)
    found = said["found"]
    assert {what: said for what, said in found.items() if said != "clean"} == {"racecheck gather": "a hazard"}
    assert len(found) == len(gpu_check.TOOLS) * len(dida_kernels.OPS) - 1
    assert said["why"] == "memcheck scatter was not watched to its end: ended after 10 s"  # no finding, and not clean
    assert gpu_report._dirty(said) == 1
    assert gpu_report._dirty({"why": said["why"], "found": {}}) is None


@pytest.mark.parametrize("op", dida_kernels.OPS)
def test_the_sanitizer_has_something_to_watch(op):
    assert sanitized.run(op, "cpu", names=("equation",)) == len(sanitized.WATCHED) * len(sanitized.DTYPES)
    assert set(gpu_check.OPS) == set(dida_kernels.OPS)


def test_an_op_whose_bench_crashes_takes_no_other_with_it(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "header", lambda device: {"device": device})
    asked = []

    def command(arguments, seconds, **environment):
        op, path = (arguments[arguments.index(name) + 1] for name in ("--op", "--json"))
        asked.append(op)
        if op != "gather":
            found = {"header": {}, "ceilings": {}, "rows": [{"op": op}], "counted": []}
            Path(path).write_text(json.dumps(found))
        return Done(1 if op == "gather" else 0, "illegal memory access", 1.0)

    monkeypatch.setattr(gpu_check, "command", command)
    merged = gpu_check.benches(tmp_path / "agreement.xml", tmp_path, time.monotonic() + 100)
    assert asked == list(gpu_check.OPS)
    assert {row["op"] for row in merged["rows"]} == set(gpu_check.OPS) - {"gather"}
    assert merged["not_measured"] == {"gather": "illegal memory access"}


def test_a_command_that_takes_too_long_is_ended():
    """And so is what it started: communicate() would wait for a grandchild that holds the pipe."""
    sleep = "import time; time.sleep(60)"
    sleeper = f"import subprocess; print('begun', flush=True); subprocess.run(['{sys.executable}', '-c', '{sleep}'])"
    done = gpu_check.command([sys.executable, "-c", sleeper], 5)
    assert done.status is None
    assert "begun" in done.output
    assert done.seconds < 30


def test_agreement_runs_tests_on_fresh_numbers(monkeypatch, tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import os, pytest\n"
        "def test_seed(): assert len(os.environ['DIDA_SEED']) == 8\n"
        "def test_gpu(): pytest.skip('needs a CUDA device')\n"
    )
    monkeypatch.setattr(gpu_check, "TESTS", {str(tmp_path / "test_it.py"): ()})
    found = gpu_check.agreement(tmp_path / "r.xml", 300, present=without("xdist"))
    assert (found["green"], found["passed"], found["failed"]) == (True, 1, [])
    assert found["skipped"] == {"needs a CUDA device": 1}
    assert "one after the other" in found["left_out"][0]
    (tmp_path / "test_it.py").write_text("def test_red(): assert False\n")
    found = gpu_check.agreement(tmp_path / "r.xml", 300, present=without("xdist"))
    assert not found["green"]
    assert len(found["failed"]) == 1


@pytest.fixture
def stages(monkeypatch, tmp_path):
    """The command with every stage replaced by what it may find; what it is given, and what it returns."""
    agreement = {"green": True, "passed": 5, "failed": [], "skipped": {"it refuses": 2}, "left_out": [], "why": None}
    found = {
        "build": {"passed": True, "why": None},
        "agreement": agreement,
        "sanitizer": {"why": None, "found": {"memcheck gather": "clean"}},
        "benches": {"header": {"gpu": "Some GPU"}, "rows": [], "counted": [], "not_measured": {}},
    }
    monkeypatch.setattr(gpu_check, "obstacles", lambda: [])
    monkeypatch.setattr(record, "header", lambda device: {"gpu": "Some GPU", "device": device})
    monkeypatch.setattr(record, "machine_name", lambda device: "some-gpu")
    for name in ("build", "sanitizer", "benches"):
        monkeypatch.setattr(gpu_check, name, lambda *args, name=name: found[name])

    def tested(path, seconds):
        if found["agreement"]["passed"]:
            report(path, a="")
        return found["agreement"]

    monkeypatch.setattr(gpu_check, "agreement", tested)

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["gpu_check", "--results", str(tmp_path), *arguments])
        return gpu_check.main()

    return found, run, tmp_path / "some-gpu"


def test_the_whole_command(stages, capsys):
    _, run, folder = stages
    assert run() == 0
    assert json.loads((folder / "check.json").read_text())["agreement"]["skipped_for_want_of_a_gpu"] == {}
    assert (folder / "kernels.json").exists()
    said = capsys.readouterr().out
    assert "5 passed, 0 failed" in said
    assert "skipped 2: it refuses" in said
    assert "not measured" in said


@pytest.mark.parametrize(
    "stage, change",
    [
        ("build", {"passed": False, "why": "no compiler"}),
        ("agreement", {"green": False, "failed": ["test_x"], "why": "1 failed"}),
        ("agreement", {"skipped": {"no CUDA device": 1}}),
        ("sanitizer", {"why": "compute-sanitizer is not there", "found": {}}),
        ("sanitizer", {"found": {"memcheck gather": "Invalid write"}}),
    ],
)
def test_a_stage_that_fails_or_cannot_run_fails_the_command(stages, capsys, stage, change):
    found, run, _ = stages
    found[stage] |= change
    assert run() == 1
    said = capsys.readouterr().out
    for value in change.values():
        if isinstance(value, str):
            assert value in said


def test_what_is_skipped_by_hand_is_not_passed(stages):
    _, run, folder = stages
    assert run("--skip", "agreement", "sanitizer") == 1
    assert not (folder / "kernels.json").exists()  # no speed without agreement
    assert json.loads((folder / "check.json").read_text())["agreement"]["green"] is None

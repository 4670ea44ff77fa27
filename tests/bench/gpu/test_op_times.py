"""The benches as a stage: a row is on disk as soon as it is measured, and says whether its op is to be trusted."""

import json

import pytest

from bench import clocks, kernels
from bench.gpu import op_times
from bench.gpu.op_times import is_broken
from bench.gpu.watching import host_functions
from tests.cases import MAIN

GREEN = "tests/kernels/test_agreement.py::test_agrees_with_the_equation[gather-chunked-ordinary-torch.bfloat16]"


def arguments(folder, *own: str) -> list[str]:
    return ["--device", "cpu", "--to", str(folder / "bench.json"), *own]


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(clocks, "ROUNDS", 2)


def test_a_row_for_every_k_dtype_and_way(tmp_path):
    assert op_times.main(arguments(tmp_path, "--op", "class_similarity", "--slots", "300", "3000")) == 0
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [(row["K"], row["dtype"], row["way"]) for row in rows] == [
        (k, dtype, way) for k in (30, 300) for dtype in ("bfloat16", "float32") for way in ("chunked", "equation")
    ]
    assert all(row["median"] > 0 for row in rows)
    assert {row["doubt"] for row in rows if row["way"] == "chunked"} == {
        "no agreement test of it passed in torch.bfloat16", "no agreement test of it passed in torch.float32",
    }  # fmt: skip


def test_what_the_tests_said_marks_the_rows(tmp_path, monkeypatch):
    name = GREEN.replace("gather", "class_similarity")
    (tmp_path / "agreement.json").write_text(json.dumps({"tests": {name: "passed"}}))
    monkeypatch.setattr(op_times, "DTYPES", op_times.DTYPES[:1])
    op_times.main(arguments(tmp_path, "--op", "class_similarity", "--slots", "300"))
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert {row["doubt"] for row in rows} == {None}


def test_a_crash_at_a_large_k_loses_no_smaller_one(tmp_path, monkeypatch):
    measure = kernels.bench_cpu

    def crashes(op, dtype, scene, doubt, compiled):
        if scene.K > 100:
            raise SystemExit("ended")
        return measure(op, dtype, scene, doubt, compiled)

    monkeypatch.setattr(kernels, "bench_cpu", crashes)
    with pytest.raises(SystemExit):
        op_times.main(arguments(tmp_path, "--op", "boundary_mask", "--slots", "300", "100000"))
    assert {row["K"] for row in json.loads((tmp_path / "bench.json").read_text())["rows"]} == {30}


def test_only_a_kernel_of_ours_that_fails_is_a_failure():
    row = kernels.empty_row("gather", op_times.DTYPES[0], MAIN, "triton", "launched")
    assert not is_broken(row | {"median": 1.0})
    assert not is_broken(row | {"why": "does not fit"})
    assert is_broken(row | {"why": "RuntimeError: an illegal memory access"})
    assert not is_broken(row | {"way": "torch.compile", "why": "SyntaxError: generated code"})


def test_where_the_hosts_time_goes_is_told_by_function():
    def busy() -> int:
        return sum(range(20_000))

    (name, microseconds, calls), *_ = host_functions(busy)
    assert "sum" in name
    assert microseconds > 0
    assert calls == 1

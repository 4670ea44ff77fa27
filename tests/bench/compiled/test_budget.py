"""The budget: every launched kernel is in it, and a kernel that became worse fails with both numbers."""

import ast
import json
import sys

import pytest

pytest.importorskip("triton")

from bench.compiled import budget
from bench.compiled.budget import BudgetRow

FUSED = budget.CUDA_SOURCES.parent / "dida_kernels" / "fused"

MEASURED = {
    "registers": 128,
    "shared_bytes": 0,
    "ctas_per_sm": 4,
    "hot_loop": 116,
    "predicted_us": 83.0,
    "hmma": 0,
    "hgmma": 32,
    "fma_in_hot_loop": 48,
    "spills_in_loops": 0,
    "spills_in_inner_loops": 0,
    "shuffles_in_hot_loop": 0,
    "barriers_in_hot_loop": 0,
    "float_atomics": 0,
    "fp64": 0,
    "ex2_in_hot_loop": 16,
    "bound": "MUFU",
}


def row(**changed) -> BudgetRow:
    return BudgetRow("_loss_fwd", budget.MAIN_LOSS, 1, "sm_90", {}, MEASURED | changed)


def launched_kernels() -> set[str]:
    """Jitted functions that stand in front of a grid, `name[grid](...)`: found in the source, not by running it."""
    names, jitted = set(), set()
    for path in FUSED.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                names.add(ast.unparse(node.func.value))
            if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in node.decorator_list):
                jitted.add(node.name)
    return names & jitted


def test_every_kernel_that_is_launched_has_a_budget():
    launched = launched_kernels()
    assert launched
    assert {job.launch.name for job in budget.jobs(90)} == launched
    assert {path.stem for path in budget.BUDGETS.glob("*.json")} == launched


def test_hopper_and_ampere_are_given_the_tiles_chosen_for_them():
    tiles = {}
    for capability in (86, 90):
        found = [job.launch for job in budget.jobs(capability) if job.launch.name == "_rows_loss"]
        tiles[capability] = found[0].bound()["BLOCK_N"]
    assert tiles[86] < tiles[90]


def test_the_budgets_hold_no_atomics_and_no_double_precision():
    rows = budget.read_budgets(budget.BUDGETS).values()
    assert not [r.place for r in rows if r.measured["float_atomics"]]
    # One program adds some hundred partial sums: a count of pixels, which float32 would lose.
    assert {r.kernel for r in rows if r.measured["fp64"]} == {"_weighted_mean"}


@pytest.mark.parametrize(
    "change, line",
    [
        ({"registers": 160}, "registers 128 -> 160 (+25 %)"),
        ({"hot_loop": 145}, "hot_loop 116 -> 145 (+25 %)"),
        ({"ctas_per_sm": 3}, "ctas_per_sm 4 -> 3 (-25 %)"),
        ({"spills_in_inner_loops": 1}, "spills_in_inner_loops 0 -> 1"),
        ({"float_atomics": 1}, "float_atomics 0 -> 1"),
        ({"hgmma": 0}, "hgmma 32 -> 0 (-100 %)"),
        ({"fma_in_hot_loop": 24}, "fma_in_hot_loop 48 -> 24 (-50 %)"),
    ],
)
def test_a_regression_is_reported_with_both_numbers(change, line):
    assert budget.regressions(MEASURED, MEASURED | change) == [line]


def test_a_few_registers_more_are_allowed():
    assert budget.regressions(MEASURED, MEASURED | {"registers": 134, "hot_loop": 121}) == []


def test_rows_without_a_budget_and_budgets_without_a_row_fail():
    assert "has no budget" in budget.exceeded([row()], {})[0]
    assert "is launched no more" in budget.exceeded([], {row().place: row()})[0]
    assert budget.exceeded([], {row().place: row()}, only="_fold") == []


def test_budgets_survive_the_disk_one_line_a_row(tmp_path):
    budget.write_budgets([row(), row()._replace(arch="sm_86")], tmp_path)
    text = (tmp_path / "_loss_fwd.json").read_text()
    assert len(json.loads(text)["rows"]) == 2
    assert len(text.splitlines()) == 4
    assert budget.read_budgets(tmp_path)[row().place] == row()


def test_a_doctored_budget_fails_the_check(tmp_path, monkeypatch, capsys):
    budget.write_budgets([row(hot_loop=100)], tmp_path)
    monkeypatch.setattr(budget, "BUDGETS", tmp_path)
    monkeypatch.setattr(budget, "compile_all", lambda only: [row(stack_bytes=0)])
    monkeypatch.setattr(sys, "argv", ["budget", "--check", "--kernel", "_loss_fwd"])
    assert budget.main() == 1
    assert "hot_loop 100 -> 116 (+16 %)" in capsys.readouterr().out


def test_an_older_triton_is_held_to_its_exceptions_and_otherwise_to_the_budget(tmp_path, monkeypatch, capsys):
    budget.write_budgets([row(), row(hot_loop=100)._replace(arch="sm_86")], tmp_path)
    monkeypatch.setattr(budget, "BUDGETS", tmp_path)
    monkeypatch.setattr(budget.triton, "__version__", "3.6.1")
    compiled = [row(registers=160, stack_bytes=0), row(hot_loop=101, stack_bytes=0)._replace(arch="sm_86")]
    monkeypatch.setattr(budget, "compile_all", lambda only: compiled)
    monkeypatch.setattr(budget, "check_cuda", list)
    monkeypatch.setattr(sys, "argv", ["budget", "--check"])
    assert budget.main() == 1
    monkeypatch.setattr(sys, "argv", ["budget", "--except"])
    assert budget.main() == 0
    excepted = json.loads((tmp_path / "triton-3.6" / "_loss_fwd.json").read_text())["rows"]
    assert [(r["arch"], r["measured"]["registers"]) for r in excepted] == [("sm_90", 160)]
    other = tmp_path / "triton-3.6" / "_gather.json"  # of a kernel that is not asked for
    other.write_text('{"rows": []}')
    monkeypatch.setattr(sys, "argv", ["budget", "--except", "--kernel", "_loss_fwd"])
    assert budget.main() == 0
    assert other.exists()
    monkeypatch.setattr(sys, "argv", ["budget", "--check"])
    assert budget.main() == 0
    monkeypatch.setattr(budget.triton, "__version__", "3.9.0")
    assert budget.main() == 1
    assert "registers 128 -> 160" in capsys.readouterr().out


def test_goals_are_told_apart_from_budgets():
    assert budget.goals(row()) == "met"
    assert budget.goals(row(hot_loop=145)) == "missed: hot_loop 145 <= 122"
    assert budget.goals(row()._replace(kernel="_fold")) == ""


def test_an_nvcc_report_is_read():
    report = """ptxas info    : Compiling entry function '_Z3sumPf' for 'sm_86'
ptxas info    : Function properties for _Z3sumPf
    0 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 19608 bytes smem"""
    assert budget.nvcc_rows(report) == [("_Z3sumPf", 32, 20)]

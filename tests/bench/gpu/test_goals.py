"""Targets: met by full results, missed by one worse number, not measured where there is none."""

from collections.abc import Callable

import pytest

from bench.gpu import report
from bench.gpu.goals import GOALS, MET, MISSED, NOT_MEASURED, judged
from bench.gpu.ledger import TIMED_OUT
from bench.gpu.measurements import Measurements
from bench.gpu.report import tables, whole_report
from tests.bench.gpu.full_results import full_results


def words(content: dict) -> dict[str, str]:
    return {line[0]: line[-1].partition(" (")[0] for line in judged(Measurements(content))}


def test_full_results_meet_every_target():
    assert len(words(full_results())) == len(GOALS)  # no two have one name
    assert set(words(full_results()).values()) == {MET}


def in_rows(content: dict, field: str, value, **wanted) -> None:
    rows = [row for found in content["found"].values() for row in found.get("rows", [])]
    chosen = [row for row in rows if all(row.get(name) == x for name, x in wanted.items())]
    assert chosen
    for row in chosen:
        row[field] = value


def slower(median: float, op: str, slots: int, way: str, how: str) -> Callable[[dict], None]:
    return lambda content: in_rows(content, "median", median, op=op, dtype="bfloat16", K=slots, way=way, how=how)


def slower_branch(content: dict) -> None:
    """Ours and the others alike, so that only the time misses."""
    for way, median in (("triton", 0.235), ("equation", 30.0), ("torch.compile", 10.0)):
        slower(median, "class_similarity", 300, way, "replayed")(content)


PREDICTED = "the GPU's time of a step in {} over its prediction"
# A change of one number, by the target that it misses.
WORSE: dict[str, Callable[[dict], None]] = {
    "agreement tests that fail": lambda c: c["found"]["agreement"]["tests"].update({"t::x[gather]": "failed"}),
    "tests skipped though a GPU is there": lambda c: c["found"]["agreement"].update(skipped_for_want_of_a_gpu=["t::x"]),
    "tests of the step that fail": lambda c: c["found"]["no-waiting"]["tests"].update({"t::nothing_waits": "failed"}),
    "runs of compute-sanitizer with a finding": lambda c: c["found"]["sanitizer"]["found"].update({"racecheck x": "!"}),
    "instance_loss + class_similarity, K = 300": slower_branch,
    "... eager takes, both replayed": slower(4.2, "instance_loss", 300, "equation", "replayed"),
    "... eager takes, both launched": slower(4.2, "instance_loss", 300, "equation", "launched"),
    "... torch.compile takes, both replayed": slower(1.2, "instance_loss", 300, "torch.compile", "replayed"),
    "... torch.compile takes, both launched": slower(1.2, "instance_loss", 300, "torch.compile", "launched"),
    "... K = 3 000": slower(2.1, "instance_loss", 3000, "triton", "replayed"),
    "... memory of a call, K = 100 000": lambda c: in_rows(
        c, "peak_bytes", 401_000_000, op="instance_loss", K=100_000, dtype="float32", way="triton"
    ),
    "boundary_mask": lambda c: in_rows(c, "median", 0.0061, op="boundary_mask"),
    "bank_update, K = 300": lambda c: in_rows(c, "median", 0.0251, op="bank_update"),
    "DIDA's step over DAFormer's, K = 300: time": lambda c: in_rows(
        c, "more_time_percent", 5.1, method="dida", K=300, precision="fp32"
    ),
    "DIDA's step over DAFormer's, K = 300: memory": lambda c: in_rows(
        c, "more_bytes", 301_000_000, method="dida", K=300, precision="bf16"
    ),
    "DIDA's step over DAFormer's, K = 3 000: time": lambda c: in_rows(
        c, "more_time_percent", 15.1, method="dida", K=3000, precision="bf16", compiled=True
    ),
    "launching a float32 step, of the host": lambda c: in_rows(c, "host_ms", 84.0, name="float32"),
    "precisions whose step is off by more than they may": lambda c: in_rows(
        c, "holds", False, precision="tf32", gradient_cosine=1.0
    ),
    PREDICTED.format("TF32"): lambda c: in_rows(c, "device_ms", 40.0, name="TF32"),
    PREDICTED.format("bfloat16"): lambda c: in_rows(c, "device_ms", 30.0, name="bfloat16"),
    "the GPU's time over the host's, bfloat16 (at most 1: the host is the limit)": lambda c: in_rows(
        c, "host_ms", 50.0, name="bfloat16"
    ),
}


def test_every_target_with_a_limit_can_be_missed():
    limited = {goal.text for goal in GOALS if goal.low is not None or goal.high is not None}
    assert limited == set(WORSE)


@pytest.mark.parametrize("target", WORSE)
def test_a_worse_number_misses_its_target_and_no_other(target):
    content = full_results()
    WORSE[target](content)
    assert {name for name, word in words(content).items() if word == MISSED} == {target}


def test_with_nothing_measured_every_target_says_so():
    assert {line[-1] for line in judged(Measurements({}))} == {NOT_MEASURED}
    text = "\n\n".join(tables(Measurements({})))
    assert "Nothing has been measured on a GPU." in text
    assert len([line for line in text.splitlines() if NOT_MEASURED in line]) == len(GOALS)


def test_every_stage_that_is_missing_leaves_the_rest_readable():
    for stage in full_results()["found"]:
        content = full_results()
        del content["found"][stage]
        content["stages"][stage] = {"outcome": TIMED_OUT, "seconds": 60.0, "why": "it hung"}
        measured = Measurements(content)
        assert "it hung" in whole_report(measured)
        without = {line[0]: line[-1] for line in judged(measured)}
        of_stage = {goal.text for goal in GOALS if stage in goal.stages}
        assert MISSED not in without.values()
        if stage != "facts":
            assert of_stage == {name for name, word in without.items() if word.startswith(NOT_MEASURED)}
            assert all(f"{stage}: timed out" in without[name] for name in of_stage)


def test_a_number_in_doubt_meets_nothing():
    content = full_results()
    in_rows(content, "doubt", "2 red tests, such as test_x", op="class_similarity", K=300, way="triton")
    lines = {line[0]: line[-1] for line in judged(Measurements(content))}
    assert lines["instance_loss + class_similarity, K = 300"] == f"{NOT_MEASURED} (2 red tests, such as test_x)"
    assert "2 red tests" in report.ops_table(Measurements(content))
    assert lines["... K = 3 000"] == MET

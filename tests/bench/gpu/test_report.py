"""Targets, tables and the figure: from full results, from some, from none."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.gpu import report
from bench.gpu.goals import BRANCH, GOALS, MET, MISSED, NOT_MEASURED, judged
from bench.gpu.ledger import DONE, FORMAT, NOT_REACHED, TIMED_OUT
from bench.gpu.measurements import Measurements
from bench.gpu.report import tables, whole_report, why_no_record, with_floors
from bench.gpu.runner import CHECKOUT
from bench.gpu.stages import STAGES
from bench.record import replaced
from bench.step import STAGES as STEP_STAGES
from dida.precision import PRECISIONS

HEADER = {
    "commit": "0123456789ab", "digest": "feedfacefeedface", "date": "2026-11-26 10:00 UTC", "device": "cuda",
    "gpu": "NVIDIA H100 80GB HBM3", "torch": "2.11.0", "triton": "3.6.0", "cuda": "13.0",
    "clocks": "1980 MHz, 2619 MHz, 1980 MHz",
}  # fmt: skip
BRANCH_MS = {300: 0.22, 3000: 1.8, 30_000: 18.0, 100_000: 60.0}  # of each of the two calls, all just good enough


def op_row(op: str, dtype: str, slots: int, way: str, how: str, median: float | None) -> dict:
    shape = {"op": op, "dtype": dtype, "K": slots, "scene": f"main-K{slots}", "way": way, "how": how}
    why = None if median else "does not fit"
    numbers = {"median": median, "low": median, "high": median, "peak_bytes": 399_000_000, "speedup": None}
    return shape | numbers | {"why": why, "doubt": None}


def op_rows(op: str, slots: tuple[int, ...]) -> list[dict]:
    rows = []
    for k in slots:
        for how in ("launched", "replayed"):
            for dtype in ("bfloat16", "float32"):
                ours = BRANCH_MS[k]
                rows.append(op_row(op, dtype, k, "triton", how, ours))
                rows.append(op_row(op, dtype, k, "equation", how, 20.5 * ours if k < 30_000 else None))
                if k < 30_000:
                    rows.append(op_row(op, dtype, k, "torch.compile", how, 7.5 * ours))
    return rows


def small_rows(op: str, way: str, median: float) -> list[dict]:
    return [op_row(op, dtype, 300, way, how, median)
            for how in ("launched", "replayed") for dtype in ("bfloat16", "float32")]  # fmt: skip


def cost_row(method: str, slots: int, precision: str, *, compiled: bool = False) -> dict:
    more = {0: 0.0, 300: 4.75, 3000: 14.5}[slots]
    return {
        "method": method, "K": slots, "precision": precision, "compiled": compiled, "steps": 20, "images": 4,
        "images_per_second": 17.25,
        "step_ms": 231.5, "low": 230.0, "high": 233.0, "stages": dict.fromkeys(STEP_STAGES, 25.0),
        "peak_bytes": 12_345_000_000, "more_time_percent": more, "more_bytes": 290_000_000 if slots else 0,
    }  # fmt: skip


def precision_row(precision: str) -> dict:
    losses = {"source": 2.75, "feature": 0.125, "target": 1.5, "instance": 2.875}
    return {
        "precision": precision, "losses": losses, "off": dict.fromkeys(losses, 0.0), "gradient_cosine": 1.0,
        "gradient_norm": 3.125, "holds": True,
    }  # fmt: skip


def variant_row(name: str, device_ms: float) -> dict:
    return {
        "name": name, "why": None, "wall_ms": 120.0, "host_ms": 110.0, "stream_ms": 115.0, "images_per_second": 34.8,
        "peak_bytes": 15_000_000_000, "device_ms": device_ms, "launches": 8600, "kernels": [["a | kernel", 9.5, 48]],
    }  # fmt: skip


def full_results() -> dict:
    """Everything measured, every target met."""
    found = {
        "facts": {"header": HEADER, "obstacles": [], "capability": 90},
        "no-waiting": {"tests": {"tests/engine/test_step_on_gpu.py::test_nothing_waits": "passed"}, "status": 0},
        "agreement": {"tests": {"t::a[gather-triton]": "passed"}, "status": 0, "skipped_for_want_of_a_gpu": []},
        "bench-boundary_mask-300": {"rows": small_rows("boundary_mask", "triton", 0.0055)},
        "bench-bank_update-300": {"rows": small_rows("bank_update", "cuda", 0.0245)},
        "step-cost": {
            "rows": [cost_row(method, k, precision) for precision in PRECISIONS for method, k in CONTENDERS],
        },
        "step-cost-compiled": {"rows": [cost_row(method, k, "bf16", compiled=True) for method, k in CONTENDERS]},
        "step-precision": {"rows": [precision_row(precision) for precision in PRECISIONS]},
        "step-variants": {
            "rows": [
                variant_row("float32", 101.0), variant_row("TF32", 74.0), variant_row("bfloat16", 60.0),
                variant_row("bfloat16, compiled blocks", 50.0),
                {"name": "encoder as a graph", "why": None, "eager_stream_ms": 50.0, "graph_stream_ms": 30.0},
            ],
        },
        "network-parts": {"rows": [{"name": "cross entropy", "dtype": "float32", "forward": 0.5, "backward": 0.75}]},
        "whole-run": {
            "trained": {"steps": 40, "seconds": 12.5}, "stopped": {"after_step": 20},
            "resumed": {"largest_difference_of_a_weight": 0.00125}, "scored": {"images": 4, "mIoU": 31.25},
        },
        "throughput": {
            "loading": [{"workers": 4, "ms_per_batch": 45.5}],
            "scoring": [{"way": "student, TF32", "images_per_second": 21.5}],
        },
        "sanitizer": {"found": {"memcheck gather": "clean"}, "unwatched": {}, "why": None},
    }  # fmt: skip
    for op in BRANCH:
        found[f"bench-{op}-300-3000"] = {"rows": op_rows(op, (300, 3000))}
        found[f"bench-{op}-30000-100000"] = {"rows": op_rows(op, (30_000, 100_000))}
    stages = {stage.name: {"outcome": DONE, "seconds": 12.5, "why": None} for stage in STAGES}
    floors = [
        {"op": op, "dtype": "bfloat16", "K": k, "floor_ms": 0.8 * ms} for op in BRANCH for k, ms in BRANCH_MS.items()
    ]
    return {"format": FORMAT, "asked": {}, "seconds": 500.0, "stages": stages, "found": found, "floors": floors}


def with_outcome(content: dict, stage: str, outcome: str, **header) -> dict:
    """The same, that stage alone, of a source of its own."""
    made = copy.deepcopy(content)
    made["found"]["facts"]["header"] |= header
    for name, entry in made["stages"].items():
        entry["outcome"] = outcome if name in (stage, "facts") else NOT_REACHED
    made["found"] = {name: made["found"][name] for name in ("facts", stage)}
    return made


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


CONTENDERS = (("daformer", 0), ("dida", 300), ("dida", 3000))
PREDICTED = "the GPU's time of a step in {} over its prediction"
# A change of one number, by the target that it misses.
WORSE: dict[str, Callable[[dict], None]] = {
    "agreement tests that fail": lambda c: c["found"]["agreement"]["tests"].update({"t::x[gather]": "failed"}),
    "tests skipped though a GPU is there": lambda c: c["found"]["agreement"].update(skipped_for_want_of_a_gpu=["t::x"]),
    "tests of a step that waits for nothing that fail": lambda c: c["found"]["no-waiting"]["tests"].update(
        {"t::nothing_waits": "failed"}
    ),
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


def test_stages_that_were_not_reached_are_told():
    content = full_results()
    content["stages"]["sanitizer"] = {"outcome": NOT_REACHED, "seconds": 0.0, "why": "12 s were left, and it needs 40"}
    content["found"].pop("sanitizer")
    text = whole_report(Measurements(content))
    assert f"{NOT_MEASURED} (sanitizer: not reached)" in text
    assert "12 s were left" in text


def test_tables_take_every_number_from_the_results():
    text = whole_report(Measurements(full_results()))
    numbers = (
        "NVIDIA H100", "0123456789ab", "0.2200", "80", "20.5", "7.5", "399.0", "100 000", "231.5", "12,345", "34.8",
        "8,600", "a / kernel", "0.7500", "45.5 ms", "21.5 images/s", "after step 20", "0.00125", "30.0 ms",
    )  # fmt: skip
    for part in numbers:
        assert part in text, part
    assert MISSED not in text
    assert "does not fit" in text


# ---- floors and the figure -----------------------------------------------------------------------------------------


def test_floors_are_calculated_once_by_the_source_that_was_measured(monkeypatch):
    content = full_results()
    del content["floors"]
    assert "floors" not in with_floors(Measurements(content)).content  # of another digest
    monkeypatch.setattr(report, "source_digest", lambda tree: HEADER["digest"])
    content["found"] = {name: content["found"][name] for name in ("facts", "bench-instance_loss-300-3000")}
    measured = with_floors(Measurements(content))
    floors = {(x["op"], x["dtype"], x["K"]): x["floor_ms"] for x in measured.content["floors"]}
    assert set(floors) == {("instance_loss", dtype, k) for dtype in ("bfloat16", "float32") for k in (300, 3000)}
    assert floors["instance_loss", "bfloat16", 3000] > 5 * floors["instance_loss", "bfloat16", 300] > 0
    assert with_floors(measured) is measured
    content["found"]["facts"]["header"] = HEADER | {"gpu": "Some Other GPU"}
    assert "floors" not in with_floors(Measurements(content)).content


def test_the_figure_is_per_cent_of_the_floor_over_k(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    assert report.plot_floors(Measurements(full_results()), tmp_path / "floor.png")
    (figure,) = drawn
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert set(lines) == {"instance_loss, bfloat16", "class_similarity, bfloat16"}
    assert list(lines["instance_loss, bfloat16"].get_xdata()) == list(BRANCH_MS)
    assert list(lines["instance_loss, bfloat16"].get_ydata()) == pytest.approx([80.0] * 4)
    assert not report.plot_floors(Measurements({}), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


# ---- where it goes -------------------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch, tmp_path):
    """The program with these arguments on these results."""

    def run(content: dict | None, *arguments: str) -> int:
        file = tmp_path / "out" / "results.json"
        file.parent.mkdir(exist_ok=True)
        if content is not None:
            file.write_text(json.dumps(content))
        monkeypatch.setattr("sys.argv", ["report", *([str(file)] if content is not None else []), *arguments])
        return report.main()

    return run


def page(folder: Path) -> Path:
    path = folder / "performance.md"
    path.write_text("before\n<!-- results:gpu -->\nold\n<!-- /results -->\nafter\n")
    return path


def test_results_are_kept_in_the_folder_of_their_gpu(told, tmp_path, capsys):
    assert told(full_results(), "--results", str(tmp_path / "results")) == 0
    folder = tmp_path / "results" / "nvidia-h100-80gb-hbm3"
    assert {path.name for path in folder.iterdir()} == {"results.json", "report.md", "floor.png"}
    assert (folder / "report.md").read_text() == (tmp_path / "out" / "report.md").read_text()
    assert Measurements.read(folder / "results.json").content == full_results()
    assert "instance_loss + class_similarity" in capsys.readouterr().out


def test_a_page_gets_its_block(told, tmp_path):
    path = page(tmp_path)
    told(full_results(), "--page", str(path))
    text = path.read_text()
    assert text.startswith("before\n<!-- results:gpu -->\n| target")
    assert text.endswith("<!-- /results -->\nafter\n")
    assert "old" not in text
    assert "0123456789ab" in text
    told(None, "--page", str(path))
    assert path.read_text().count(NOT_MEASURED) == len(GOALS)
    path.write_text("no block\n")
    with pytest.raises(SystemExit, match="expected one line"):
        told(full_results(), "--page", str(path))
    assert path.read_text() == "no block\n"


def test_the_page_shows_what_is_kept():
    """python -m bench.gpu.report [bench/results/<gpu>/results.json] --page docs/performance.md"""
    page = (CHECKOUT / "docs" / "performance.md").read_text()
    kept = [Measurements.read(path) for path in sorted((CHECKOUT / "bench" / "results").glob("*/results.json"))]
    shown = [replaced(page, report.BLOCK, "\n\n".join(tables(one))) for one in kept or [Measurements({})]]
    assert page in shown


def test_stages_that_did_not_end_well_are_its_exit_status(told):
    content = full_results()
    content["stages"]["sanitizer"]["outcome"] = TIMED_OUT
    assert told(content) == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"commit": "unknown"}, "unknown is no commit"),
        ({"commit": "0123456789ab+changes"}, "is no commit"),
        ({"gpu": None, "device": "cpu"}, "not measured on a GPU"),
    ],
)
def test_what_is_no_record_is_shown_and_not_kept(told, tmp_path, capsys, change, message):
    content = copy.deepcopy(full_results())
    content["found"]["facts"]["header"] = HEADER | change
    told(content)
    assert "instance_loss" in capsys.readouterr().out
    assert message in why_no_record(Measurements(content))
    for arguments in (("--results", str(tmp_path / "results")), ("--page", str(page(tmp_path)))):
        with pytest.raises(SystemExit, match=message):
            told(content, *arguments)
    assert not (tmp_path / "results").exists()


def test_a_file_that_is_none_of_ours_is_refused(told):
    for content in ({"format": 99}, [1]):
        with pytest.raises(SystemExit, match="expected results of format"):
            told(content)


# ---- several files -------------------------------------------------------------------------------------------------


def saved(folder: Path, name: str, content: dict) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


def test_a_later_file_has_the_word_on_what_it_reached(tmp_path):
    first = full_results()
    later = with_outcome(first, "step-cost", DONE, digest="0123012301230123", commit="ba9876543210")
    later["found"]["step-cost"]["rows"][1]["more_time_percent"] = 50.0
    measured = Measurements.read(saved(tmp_path, "first", first), saved(tmp_path, "later", later))
    assert measured.rows("step-cost")[1]["more_time_percent"] == 50.0
    assert measured.rows("step-variants") == first["found"]["step-variants"]["rows"]
    assert measured.source_of("step-cost")["digest"] == "0123012301230123"
    assert measured.source_of("step-variants")["digest"] == HEADER["digest"]
    assert f"of commit {HEADER['commit']}, digest {HEADER['digest']}" in whole_report(measured)
    again = Measurements.read(saved(tmp_path, "both", measured.content), saved(tmp_path, "later", later))
    assert again.content["stages"] == measured.content["stages"]


def test_results_of_two_machines_are_kept_apart(tmp_path):
    other = with_outcome(full_results(), "step-cost", DONE, gpu="NVIDIA H200")
    with pytest.raises(ValueError, match="its gpu differ from those of"):
        Measurements.read(saved(tmp_path, "first", full_results()), saved(tmp_path, "other", other))


def test_kernels_of_a_call_counters_and_the_toys_table_are_shown(monkeypatch, tmp_path):
    content = full_results()
    content["found"]["bench-boundary_mask-300"]["parts"] = [
        {
            "op": "boundary_mask",
            "dtype": "bfloat16",
            "K": 300,
            "way": "triton",
            "kernels": [["_boundary_mask", 0.005, 1]],
        }
    ]
    content["found"]["profile"] = {
        "rows": [{"op": "boundary_mask", "K": 300, "kernel": "_boundary_mask", "counter": "Achieved Occupancy",
                  "section": "Occupancy", "unit": "%", "value": "58.125"}]
    }  # fmt: skip
    scores = [{"row": "dida", "seed": seed, "mIoU": {"19": 60.0 + seed}} for seed in (0, 1)]
    content["found"]["toy-table"] = {"scores": scores}
    record = {"digest": "d", "environment": {"trained": {"gpu": None}}, "student": {"mIoU": {"19": 59.5}}}
    path = tmp_path / "toy/records/d/dida_s0_test.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    monkeypatch.setattr(report.record, "RESULTS_FOLDER", tmp_path)
    shown = whole_report(Measurements(content))
    assert "0.0050" in shown
    assert "58.125" in shown
    (line,) = (line for line in shown.splitlines() if line.startswith("| dida ") and "60.50" in line)
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["2", "60.50", "1", "59.50", "+0.50"]

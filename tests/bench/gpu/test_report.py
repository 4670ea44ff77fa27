"""Tables, the figure, and where they go: from full results, from some, from several files."""

import copy
import json
from pathlib import Path

import pytest

from bench.gpu import report
from bench.gpu.goals import GOALS, MISSED, NOT_MEASURED
from bench.gpu.ledger import DONE, NOT_REACHED, TIMED_OUT
from bench.gpu.measurements import Measurements
from bench.gpu.report import tables, whole_report, why_no_record, with_floors
from bench.gpu.runner import CHECKOUT
from bench.record import replaced
from tests.bench.gpu.full_results import BRANCH_MS, HEADER, full_results, with_outcome


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


@pytest.mark.parametrize("text", [b"", b"[" * 50_000, b"\xff\xfe", b'{"a": '])
def test_a_file_that_is_no_json_is_named(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=f"{path}: not JSON"):
        Measurements.read(path)


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

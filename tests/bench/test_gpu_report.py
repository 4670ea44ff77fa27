"""Targets and the README's table, from records made up in a temporary folder."""

import copy
import json
from pathlib import Path

import pytest

from bench import gpu_report
from bench.step import STAGES

HEADER = {
    "commit": "0123456789ab", "gpu": "NVIDIA H200", "torch": "2.11.0", "triton": "3.6.0", "cuda": "13.0",
    "clocks": "1980 MHz, 3201 MHz, 1980 MHz",
}  # fmt: skip
# Milliseconds, all just good enough; loss and similarity share the branch's time.
BRANCH_MS = {300: 0.225, 3000: 1.9, 100_000: 60.0}


def kernel_row(
    op: str, dtype: str, slots: int, way: str, how: str, median: float | None, peak: int = 100_000_000
) -> dict:
    shape = {"op": op, "dtype": dtype, "K": slots, "scene": f"main-K{slots}", "way": way, "how": how}
    why = "does not fit" if median is None else None
    return shape | {"median": median, "low": median, "high": median, "peak_bytes": peak, "speedup": None, "why": why}


def good_records() -> dict:
    rows = []
    for op in gpu_report.BRANCH:
        for slots, ms in BRANCH_MS.items():
            for dtype in ("float32", "bfloat16"):
                rows += [
                    kernel_row(op, dtype, slots, "triton", how, ms, 399_000_000) for how in ("launched", "replayed")
                ]
        rows.append(kernel_row(op, "float32", 300, "equation", "launched", 20.5 * 0.225))
        rows.append(kernel_row(op, "bfloat16", 300, "torch.compile", "launched", 7.25 * 0.225))
        rows.append(kernel_row(op, "bfloat16", 100_000, "equation", "launched", None))
    rows.append(kernel_row("boundary_mask", "float32", 300, "triton", "replayed", 0.0055))
    rows.append(kernel_row("bank_update", "bfloat16", 300, "cuda", "replayed", 0.0245))
    steps = [
        {
            "method": "dida" if slots else "daformer", "K": slots, "dtype": dtype, "images_per_second": 17.25,
            "step_ms": 231.5, "stages": dict.fromkeys(STAGES, 25.0), "peak_bytes": 12_345_000_000,
            "more_time_percent": {0: 0.0, 300: 4.75, 3000: 14.5}[slots], "more_bytes": 290_000_000 if slots else 0,
        }
        for dtype in ("float32", "bfloat16")
        for slots in (0, 300, 3000)
    ]  # fmt: skip
    agreement = {
        "green": True, "passed": 1234, "failed": [], "skipped": {}, "skipped_for_want_of_a_gpu": {}, "left_out": [],
    }  # fmt: skip
    counted = {"op": "instance_loss", "dtype": "bfloat16", "K": 300, "device": "H200", "floor_ms": 0.18}
    return {
        "check": {
            "header": HEADER,
            "build": {"passed": True},
            "agreement": agreement,
            "sanitizer": {"why": None, "found": {"memcheck gather": "clean"}},
        },
        "kernels": {"header": HEADER, "rows": rows, "counted": [counted]},
        "step": {"header": HEADER, "setting": {"backbone": "mit_b5", "crop": 512}, "rows": steps},
    }


def written(records: dict, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in records.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def words(records: dict) -> dict[str, str]:
    return {line[0]: line[-1] for line in gpu_report.judged(records)}


def test_good_records_meet_every_target(tmp_path):
    found = gpu_report.records(written(good_records(), tmp_path / "gpu"))
    assert set(words(found).values()) == {"met"}
    assert gpu_report.right(found["check"])


def set_rows(records: dict, value: float, field: str, **wanted) -> None:
    rows = [row for part in ("kernels", "step") for row in records[part]["rows"]]
    chosen = [row for row in rows if all(row.get(name) == x for name, x in wanted.items())]
    assert chosen
    for row in chosen:
        row[field] = value


WORSE = {
    "agreement tests that fail": lambda r: r["check"]["agreement"]["failed"].append("test_x"),
    "tests skipped though a GPU is there": lambda r: r["check"]["agreement"].update(
        skipped_for_want_of_a_gpu={"needs a CUDA device": 1}
    ),
    "sanitizer runs with a finding": lambda r: r["check"]["sanitizer"]["found"].update({"racecheck gather": "hazard"}),
    "instance_loss + class_similarity, K = 300, bfloat16": lambda r: set_rows(
        r, 0.23, "median", op="class_similarity", K=300, dtype="bfloat16", how="replayed"
    ),
    "... eager float32 takes so many times as long": lambda r: set_rows(
        r, 4.0, "median", op="instance_loss", K=300, way="equation"
    ),
    "... torch.compile bfloat16": lambda r: set_rows(r, 1.0, "median", op="instance_loss", way="torch.compile"),
    "... K = 3 000": lambda r: set_rows(r, 2.0, "median", op="instance_loss", K=3000, how="replayed"),
    "... memory of a call, K = 100 000": lambda r: set_rows(
        r, 401_000_000, "peak_bytes", op="instance_loss", K=100_000, dtype="float32", way="triton"
    ),
    "boundary_mask": lambda r: set_rows(r, 0.0061, "median", op="boundary_mask"),
    "bank_update, K = 300, bfloat16": lambda r: set_rows(r, 0.0251, "median", op="bank_update"),
    "DIDA's step over DAFormer's, K = 300: time": lambda r: set_rows(
        r, 5.1, "more_time_percent", method="dida", K=300, dtype="float32"
    ),
    "DIDA's step over DAFormer's, K = 300: memory": lambda r: set_rows(
        r, 301_000_000, "more_bytes", method="dida", K=300, dtype="bfloat16"
    ),
    "DIDA's step over DAFormer's, K = 3 000: time": lambda r: set_rows(
        r, 15.1, "more_time_percent", method="dida", K=3000, dtype="bfloat16"
    ),
}


@pytest.mark.parametrize("target", [target.text for target in gpu_report.TARGETS])
def test_a_worse_number_misses_its_target_and_no_other(target):
    records = good_records()
    WORSE[target](records)
    assert {name for name, word in words(records).items() if word == "MISSED"} == {target}


def test_what_was_not_measured_is_neither_met_nor_missed(tmp_path):
    assert set(words({}).values()) == {"not measured"}
    records = good_records()
    set_rows(records, None, "median", op="instance_loss", K=300, dtype="bfloat16", how="replayed")
    changed = words(records)
    for target in ("instance_loss + class_similarity, K = 300, bfloat16", "... torch.compile bfloat16"):
        assert changed[target] == "not measured"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda check: check["build"].update(passed=False),
        lambda check: check["agreement"].update(green=False),
        lambda check: check["agreement"].update(green=None),
        lambda check: check["agreement"].update(skipped_for_want_of_a_gpu={"no CUDA device": 1}),
        lambda check: check["sanitizer"].update(why="not there", found={}),
        lambda check: check["sanitizer"]["found"].update({"memcheck gather": "Invalid write"}),
    ],
)
def test_nothing_unchecked_passes_for_right(spoil):
    check = copy.deepcopy(good_records()["check"])
    spoil(check)
    assert not gpu_report.right(check)


def test_the_block_takes_every_number_from_the_records(tmp_path):
    text = gpu_report.block(written(good_records(), tmp_path / "gpu"))
    for part in ("NVIDIA H200", "0123456789ab", "0.225", "80 %", "399", "17.2", "231.5", "12,345", "100 000"):
        assert part in text, part
    assert "MISSED" not in text


def test_the_readme_gets_the_block_where_its_lines_stand(tmp_path, monkeypatch, capsys):
    folder, readme = written(good_records(), tmp_path / "gpu"), tmp_path / "README.md"
    readme.write_text("before\n<!-- results:gpu -->\nold\n<!-- /results -->\nafter\n")
    monkeypatch.setattr("sys.argv", ["gpu_report", str(folder), "--readme", str(readme)])
    gpu_report.main()
    assert readme.read_text().startswith("before\n<!-- results:gpu -->\n### On a GPU: NVIDIA H200")
    assert readme.read_text().endswith("<!-- /results -->\nafter\n")
    assert "old" not in readme.read_text()
    assert "instance_loss + class_similarity" in capsys.readouterr().out
    readme.write_text("no block\n")
    with pytest.raises(SystemExit, match="needs its two lines"):
        gpu_report.main()
    assert readme.read_text() == "no block\n"


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda r: r["check"]["agreement"].update(green=False), "speed without agreement"),
        (lambda r: r["kernels"].update(header=HEADER | {"commit": "unknown"}), "unknown is no commit"),
        (lambda r: r["step"].update(header=HEADER | {"commit": "0123456789ab+changes"}), "is no commit"),
        (lambda r: r.pop("kernels"), "no kernels.json"),
    ],
)
def test_records_that_may_not_be_shown(tmp_path, spoil, message):
    records = good_records()
    spoil(records)
    with pytest.raises(ValueError, match=message):
        gpu_report.block(written(records, tmp_path / "gpu"))


def test_another_gpu_is_named_beside_the_targets(tmp_path):
    records = good_records()
    for content in records.values():
        content["header"] = HEADER | {"gpu": "NVIDIA H100 80GB HBM3"}
    assert "this is an NVIDIA H100 80GB HBM3" in gpu_report.verdict(written(records, tmp_path / "gpu"))

"""dida report from its command line to the file: what it says is what was measured, and it needs nothing beside it."""

import json
import re
import shutil

import pytest

from dida.cli import report_command
from dida.data.classes import ClassSet
from tests.engine.checkpoints import evaluate, tiny_config, write_checkpoint
from tests.report.scenes import checkpoint_of, report_of

LARGEST = 5_000_000  # bytes
SECTIONS = ["What was run", "Curves", "By class", "Confusion", "Pictures", "Calibration and boundaries",
            "What needs no label", "Environment"]  # fmt: skip


def sections(text: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", text)


def row(text: str, name: str) -> list[str]:
    """The cells of the first row with this head, without marks."""
    (cells,) = re.findall(rf'<tr><th scope="row">(?:<span><i[^>]*></i>)?{re.escape(name)}.*?</tr>', text)[:1]
    return [re.sub("<.*?>", "", cell) for cell in re.findall("<td.*?</td>", cells)]


def refused(*args: object) -> str:
    with pytest.raises(SystemExit) as ended:
        report_of(*args)
    assert "Traceback" not in str(ended.value.code)
    return str(ended.value.code)


def test_one_file_has_it_all_and_needs_nothing_else(report):
    assert sections(report) == SECTIONS
    assert len(report.encode()) < LARGEST
    assert "<script" not in report
    assert "<link" not in report
    assert {address[:11] for address in re.findall(r'(?:src|href)="([^"]*)"', report)} == {"data:image/"}
    assert "url(" not in report
    assert "@import" not in report


def test_the_scores_are_those_of_eval(report, runs, tmp_path):
    scores = []
    for run in runs:
        evaluate(run, "--json", tmp_path / "x.json")
        scores.append(json.loads((tmp_path / "x.json").read_text())["student"])
    first, second = (values["mIoU"]["19"] for values in scores)
    assert row(report, "mIoU (19)")[:2] == [f"{first:.1f}", f"{second:.1f}"]
    assert row(report, "mIoU (19)")[2].replace("−", "-") == f"{first - second:+.1f}"
    assert row(report, "mIoU (19) near boundaries")[0] == f"{scores[0]['band']['mIoU']['19']:.1f}"
    cards = dict(re.findall("<div><b>(.*?)</b><span>(.*?)</span></div>", report))
    assert cards[f"{first:.1f}"] == "mIoU, percent, 19 classes"
    assert "of pixels: student and teacher agree" in cards.values()
    assert cards[f"{scores[0]['band']['mIoU']['19']:.1f}"] == "mIoU within 3 pixels of a boundary"
    assert row(report, "pixels right")[:2] == [f"{values['aAcc']:.1f}" for values in scores]
    assert row(report, "road")[0] == f"{scores[0]['IoU']['road']:.1f}"


def test_it_says_what_was_run_and_how_the_runs_differ(report):
    assert row(report, "method") == ["dida", "source"]
    assert row(report, "command") == ["train.py --method dida", "train.py --method source"]
    assert row(report, "torch") == ["2.0", "2.1"]
    heads = set(re.findall('<th scope="row">(.*?)</th>', report))
    assert "save_every" in heads
    assert not heads & {"out", "data_root", "cache", "config", "resume", "new_data", "debug"}


def test_terms_that_are_always_zero_have_no_curve(report):
    captions = re.findall("<figcaption><b>(.*?)</b>", report)
    assert captions[:2] == ["source", "target"]
    assert "feature" not in captions


def test_every_picture_is_drawn_before_and_after_with_its_differences(report):
    captions = re.findall("<figcaption>([^<]*)</figcaption>", report)
    assert captions[:5] == ["picture", "truth", "before: source", "after: dida", "dida against source"]
    assert "Largest gains" in report
    assert "Worst pictures" in report
    keys = re.findall("<i [^>]*></i>([^<]*)", report)
    assert "differ, only dida is right" in keys, keys


def test_the_terminal_shows_the_gain_by_class(report, runs, capsys):
    report_of(*runs, "--pictures", "0")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["IoU", "source", "dida", "gain"]
    (mean,) = (line.split() for line in lines if line.startswith("mIoU"))
    ours, theirs, difference = row(report, "mIoU (19)")[:3]
    assert mean[-3:] == [theirs, ours, difference]
    assert len(lines) == 19 + 3
    assert lines[-1].startswith(f"report: {runs[0] / 'report.html'} (")


def test_one_run_is_reported_alone(runs, capsys):
    text = report_of(runs[0])
    assert capsys.readouterr().out.startswith("report: ")
    assert sections(text) == SECTIONS
    assert "Largest gains" not in text
    assert "where it is wrong" in text


def test_without_labels_only_what_needs_none_is_reported(runs):
    text = report_of(*runs, "--no-labels", "--split", "train", "--pictures", "1")
    assert sections(text) == ["What was run", "Curves", "Pictures", "What needs no label", "Environment"]
    assert "mIoU" not in text
    assert "--no-labels reports what needs none" in refused(*runs, "--split", "train")


def test_a_checkpoint_that_lies_alone_is_reported_without_its_log(runs, tmp_path):
    alone = shutil.copy(checkpoint_of(runs[0]), tmp_path / "alone.pt")
    report_command([str(alone), "--pictures", "0"])
    text = (tmp_path / "report.html").read_text()
    assert "No metrics.jsonl lies beside these checkpoints." in text
    assert "<img" not in text


def test_what_cannot_be_reported_is_refused_in_one_line(runs, tmp_path):
    assert "name at least one run" in refused()
    assert "no such run folder" in refused(tmp_path / "nowhere")
    farm = ClassSet(("field", "barn"), ((0, 200, 0), (120, 60, 0)), (), (7, 8))
    other = write_checkpoint(tmp_path / "farm.pt", tiny_config(tmp_path), class_set=farm)
    assert "cannot be set side by side" in refused(runs[0], other)
    assert "--out" in refused(runs[0], "--out", runs[0] / "metrics.jsonl" / "x.html")

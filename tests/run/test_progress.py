"""How far a run is: lines in a file, and a bar that fits where there is a terminal."""

import io
import re

import pytest

from dida.run.progress import StepProgress, fitting, progress_line
from dida.run.terms import TERMS

SCALARS = {
    "loss/source": 0.25, "loss/feature": 0.0, "loss/target": 1.5, "loss/instance": 0.0, "pseudo_coverage": 0.43,
    "lr": 6e-5, "lr_head": 6e-4, "steps_per_second": 2.0, "data_wait": 0.02, "memory_gib": 8.12, "bank_fill": 0.0,
}  # fmt: skip


def test_a_line_has_what_is_on_and_nothing_else():
    assert progress_line(50, 40000, SCALARS) == (
        "step    50/40000  source 0.2500  target 1.5000  confident 43%  lr 6.00e-05  it/s 2.00  mem 8.1 GiB  wait 2%  "
        "ETA 5:32:55"
    )
    later = progress_line(50, 40000, SCALARS | {"loss/instance": 0.5, "bank_fill": 0.75})
    assert "instance 0.5000" in later
    assert "bank 75%" in later


def test_lines_explain_a_term_when_it_is_shown_first(capsys):
    with StepProgress(100, 0) as progress:
        progress.say(10, SCALARS)
        progress.say(20, SCALARS | {"loss/instance": 0.5})
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("step")] == [lines[7], lines[9]]
    meaning = TERMS["loss/source"][1]
    assert lines[0] == f"  source      {meaning}"
    assert lines[8].split()[0] == "instance"
    assert sum(meaning in line for line in lines) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [50, 80, 200])
def test_a_bar_fits_its_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "24")
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    with StepProgress(40000, 12340) as progress:
        progress.say(12341, SCALARS)
    drawn = re.split(r"[\r\n]", terminal.getvalue())
    bars = [line for line in drawn if "/40000" in line]
    assert bars
    assert max(map(len, bars)) <= columns
    assert "12341/40000" in bars[-1]
    assert ("source 0.2500" in bars[-1]) == (columns >= 80)
    assert ("wait 2%" in bars[-1]) == (columns >= 200)
    assert not any("ETA" in line for line in drawn)


def test_what_does_not_fit_is_left_out_from_the_end():
    assert fitting(["source 1", "target 2"], 18) == "source 1  target 2"
    assert fitting(["source 1", "target 2"], 17) == "source 1"
    assert fitting(["source 1"], -3) == ""

"""dida COMMAND does what the scripts do, and says so at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dida import cli
from dida.options import program
from tests.options.test_help import SLOW, answer, imported

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", [("--help",), ("train", "--help"), ("eval", "--help"), ("export", "--help"),
                                     ("doctor", "--help"), ("nonsense",)], ids=" ".join)  # fmt: skip
def test_nothing_slow_is_imported(command):
    assert not imported("-m", "dida", *command) & SLOW


@pytest.mark.parametrize("typed", [("--help",), ()], ids=str)
def test_help_names_every_command_in_less_than_two_seconds(typed):
    done, seconds = answer("-m", "dida", *typed)
    assert seconds < 2
    assert all(f"\n    {name} " in done.stdout for name in cli.COMMANDS)


def test_a_command_that_is_not_there_suggests_the_nearest():
    done, _ = answer("-m", "dida", "trian")
    assert done.returncode == 2
    assert "no command 'trian'; did you mean train?" in done.stderr


def test_a_message_names_the_command_that_was_typed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "dida", "eval", str(tmp_path / "gone")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"dida eval: {tmp_path / 'gone'}: no such run")


@pytest.mark.parametrize("command", [("eval", "run"), ("doctor",)], ids=" ".join)
def test_what_the_environment_says_wrongly_is_one_message(command):
    done = subprocess.run(
        [sys.executable, "-m", "dida", *command],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"DIDA_BACKEND": "nope"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "DIDA_BACKEND='nope': only" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_of_check_data_is_about_checking(capsys):
    with pytest.raises(SystemExit):
        cli.main(["check-data", "--help"])
    assert capsys.readouterr().out.startswith("usage: dida check-data --src NAME --tgt NAME")


def test_label_is_scoring_without_labels(monkeypatch):
    asked = []
    monkeypatch.setattr("dida.command.run_evaluation", asked.append)
    cli.main(["label", "run", "pictures", "--out", "drawn"])
    assert (asked[0].run, asked[0].images, asked[0].out) == (Path("run"), Path("pictures"), Path("drawn"))
    with pytest.raises(SystemExit, match="dida label RUN PICTURES"):
        cli.main(["label", "run", "--out", "drawn"])


@pytest.mark.parametrize(
    "started, name, line",
    [
        ("train.py", "train.py", "python train.py"),
        ("/x/bin/dida", "dida train", "dida train"),
        ("/x/site-packages/dida/__main__.py", "dida train", "dida train"),
        ("/x/pytest/__main__.py", "train.py", "python train.py"),
    ],
)
def test_a_program_knows_what_it_was_started_as(monkeypatch, started, name, line):
    monkeypatch.setattr(sys, "argv", [started])
    assert (program.program_name("train"), program.command_line("train")) == (name, line)
    assert program.program_name("export") == "dida export"

"""dida COMMAND does what the scripts do, and says so at once."""

import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from dida import cli
from dida.data.toy import Outcome
from dida.data.toy.weather import Weather
from dida.options import program
from dida.options.toy import ToyOptions
from tests.options.test_help import SLOW, answer, imported

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", [("--help",), ("train", "--help"), ("eval", "--help"), ("export", "--help"),
                                     ("label", "--help"), ("toy", "--help"), ("doctor", "--help"),
                                     ("nonsense",)], ids=" ".join)  # fmt: skip
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


def test_errors_of_check_data_are_its_own(tmp_path):
    with pytest.raises(SystemExit, match=r"^dida check-data: "):
        cli.main(["check-data", "--src", f"folder:{tmp_path / 'gone'}", "--tgt", f"folder:{tmp_path / 'gone'}"])
    with pytest.raises(SystemExit, match=r"^dida check-data: --crop: expected "):
        cli.main(["check-data", "--crop", "3"])


@pytest.mark.parametrize(
    "typed", ["run a b --out drawn", "run --out drawn a b", "--out drawn run a b", "--flip --out drawn run a b"]
)
def test_label_takes_pictures_behind_a_run_and_options_anywhere(monkeypatch, typed):
    asked = []
    monkeypatch.setattr("dida.command.run_labelling", lambda *given: asked.append(given))
    cli.main(["label", *typed.split()])
    ((config, pictures, program),) = asked
    assert program == "dida label"
    assert (config.run, config.out, pictures) == (Path("run"), Path("drawn"), (Path("a"), Path("b")))


def test_errors_of_label_are_its_own(tmp_path):
    with pytest.raises(SystemExit, match=r"^dida label: which pictures"):
        cli.main(["label", "run", "--out", "drawn"])
    gone = tmp_path / "gone"
    with pytest.raises(SystemExit, match=f"^dida label: {gone}: no such run"):
        cli.main(["label", str(gone), str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^dida label: --window 5: expected 0, or at least 32"):
        cli.main(["label", "run", "a", "--window", "5"])


def test_help_of_label_is_about_pictures(capsys):
    for help in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            cli.main(["label", help])
        said = capsys.readouterr().out
        assert said.startswith("usage: dida label ")
        assert "PICTURES" in said
        assert "--out" in said
        assert not any(word in said for word in ("--json", "--split", "--tgt ", "--alone", "--images"))


def test_the_toy_is_drawn_by_a_command_and_by_its_module(monkeypatch, capsys):
    drawn = []

    def generate(root, *, weather, jobs):
        drawn.append((root, weather, jobs))
        return Outcome(root / "toy", "abc", 3, written=len(drawn) - 1)

    monkeypatch.setattr("dida.command.generate", generate)
    cli.main(["toy", "--data-root", "here", "--weather", "day", "fog", "--jobs", "2"])
    assert drawn == [(Path("here"), "day", 2), (Path("here"), "fog", 2)]
    said = capsys.readouterr().out
    assert "all 3 pictures are there and right, nothing to do: here/toy" in said
    assert "wrote 1 of 3 pictures" in said
    done, _ = answer("-m", "dida.data.toy", "--help-all")
    assert done.returncode == 0
    assert "usage: python -m dida.data.toy" in done.stdout
    assert typing.get_args(Weather) == typing.get_args(typing.get_args(typing.get_type_hints(ToyOptions)["weather"])[0])


@pytest.mark.parametrize(
    "started, name, line",
    [
        ("train.py", "train.py", "python train.py"),
        ("/x/bin/dida", "dida train", "dida train"),
        ("/x/site-packages/dida/__main__.py", "dida train", "dida train"),
        ("/x/pytest/__main__.py", "train.py", "python train.py"),
        ("/x/dida/data/toy/__main__.py", "train.py", "python train.py"),
    ],
)
def test_a_program_knows_what_it_was_started_as(monkeypatch, started, name, line):
    monkeypatch.setattr(sys, "argv", [started])
    assert (program.program_name("train"), program.command_line("train")) == (name, line)
    assert program.program_name("export") == "dida export"

"""--help and a mistyped option are answered at once: nothing that takes seconds to import is imported."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dida import recipes
from dida.config import Config, flat
from dida.options import everyday_help, flag, read_command_line
from dida.options.evaluation import EvalConfig

ROOT = Path(__file__).parents[2]
SLOW = {"torch", "numpy", "cv2", "timm", "triton"}


def answer(*command: str) -> tuple[subprocess.CompletedProcess, float]:
    """How a script answered, and the seconds of processor time that it took, whatever else the machine did."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def imported(*command: str) -> set[str]:
    """The packages that a script imports."""
    done, _ = answer("-X", "importtime", *command)
    lines = [line.split("|") for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {columns[2].strip().partition(".")[0] for columns in lines}


def test_what_is_imported_is_seen():
    assert imported("-c", "import numpy") >= {"numpy"}


@pytest.mark.parametrize(
    "command",
    [("train.py", "--help"), ("train.py", "--help-all"), ("train.py", "--crop", "3"), ("eval.py", "--help"),
     ("eval.py", "run", "--window", "-1")],
    ids=" ".join,
)  # fmt: skip
def test_nothing_slow_is_imported(command):
    found = imported(*command)
    assert "dida" in found
    assert not found & SLOW


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_takes_less_than_two_seconds_of_a_processor(script):
    done, seconds = answer(script, "--help")
    assert done.returncode == 0
    assert seconds < 2


@pytest.mark.parametrize("columns", ["1", "2", "39", "0", "-5"])
def test_a_narrow_terminal_gets_the_help_of_a_wider_one(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        read_command_line(EvalConfig, ["--help-all"], "eval.py")
    assert "--save-predictions" in capsys.readouterr().out


def test_help_of_training_is_complete():
    shown = answer("train.py", "--help-all")[0].stdout
    for name in flat(Config()):
        assert flag(name) in shown
    assert shown.count("(default") == len(flat(Config()))


def test_help_of_scoring_is_complete():
    shown = answer("eval.py", "--help-all")[0].stdout
    for name in set(vars(EvalConfig(Path("run")))) - {"run"}:
        assert flag(name) in shown


@pytest.mark.parametrize("kind, default", [(Config, Config()), (EvalConfig, None)])
def test_help_shows_what_people_need_and_where_the_rest_is(kind, default):
    shown = everyday_help(kind, "x.py", default)
    options = re.findall(r"^  (--[a-z-]+)", shown, re.MULTILINE)
    assert options == [*(flag(name) for name in kind.EVERYDAY if name != "run"), "--help-all"]
    assert 12 <= len(options) <= 15
    assert all(len(line) <= 100 for line in shown.splitlines())


def test_help_shows_the_defaults_of_what_was_asked_for(capsys):
    for args, steps in (["--help"], 40000), (["--src", "toy-gta5", "--help"], 1000), (["-h", "--steps", "7"], 7):
        with pytest.raises(SystemExit) as ended:
            recipes.from_command_line(args)
        assert not ended.value.code
        assert f"Optimizer steps of the whole run. (default: {steps})" in capsys.readouterr().out

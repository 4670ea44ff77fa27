"""The doctor says what is there, and nothing that is missing makes it fail."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dida_kernels
from dida.data.classes import CITYSCAPES_CLASSES
from dida.doctor import diagnosis, main
from dida.options.doctor import DoctorOptions
from tests.data.factories import make_cityscapes, make_gta

REPOSITORY = Path(__file__).parents[2]


def test_what_runs_is_the_list_of_the_kernels(tmp_path):
    lines = [line.strip() for line in diagnosis(tmp_path)]
    for line in dida_kernels.choice_lines(torch.device("cpu"), classes=len(CITYSCAPES_CLASSES)):
        assert line in lines


def test_the_switch_is_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("DIDA_BACKEND", "equation")
    lines = [line.split() for line in diagnosis(tmp_path)]
    assert ["DIDA_BACKEND", "equation"] in lines
    assert ["bank_update", "equation", "on", "cpu"] in lines


def test_data_sets_are_counted_and_their_absence_is_no_error(tmp_path):
    make_gta(tmp_path, 2)
    make_cityscapes(tmp_path, train=3, val=2, labelled=("val",))
    lines = {line.split()[0]: line for line in diagnosis(tmp_path) if line.strip()}
    assert lines["gta5"].endswith("train 2 images, 2 labelled")
    assert lines["cityscapes"].endswith("train 3 images, no labels; val 2 images, 2 labelled")
    assert lines["synthia"].endswith("not there")


def test_a_compiler_may_be_called_through_another_program(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "env c++")
    (line,) = (line for line in diagnosis(tmp_path) if "C++ compiler" in line)
    assert (
        line.split(maxsplit=2)[2]
        == subprocess.run(["c++", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    )


def test_a_program_that_hangs_is_said(monkeypatch, tmp_path):
    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    monkeypatch.setenv("CXX", "sh")
    assert any(line.endswith("sh does not answer") for line in diagnosis(tmp_path))


def test_a_place_that_cannot_be_looked_at_is_one_message():
    with pytest.raises(SystemExit, match=r"dida doctor: .*File name too long"):
        main(DoctorOptions(data_root=Path("n" * 300)))


def test_the_command_exits_with_success(tmp_path):
    command = [sys.executable, "-m", "dida.doctor", "--data-root", str(tmp_path / "no such folder")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for heading in ("versions", "hardware", "building kernels", "backend of each operation", "data sets in"):
        assert heading in done.stdout
    assert torch.__version__.split("+")[0] in done.stdout

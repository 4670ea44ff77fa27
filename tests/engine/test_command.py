"""Errors that a user can put right end a program with one message; others keep their traceback."""

import pytest
import torch
from huggingface_hub.utils import logging as hub_logging

from dida.command import USER_ERRORS, say_what_is_logged, told_in_one_line
from dida.data.image_file import ImageFileError
from dida.data.workers import WorkerDied
from dida.errors import NonFinite, UserError
from dida.run.claim import Claimed
from tests.processes import Child


def test_an_error_that_is_named_ends_the_program_with_what_it_says():
    with pytest.raises(SystemExit) as ended, told_in_one_line("train.py", OSError, ValueError):
        raise FileNotFoundError("no such run")
    assert ended.value.code == "train.py: no such run"


def test_any_other_error_is_a_fault_of_the_program_and_keeps_its_traceback():
    with pytest.raises(KeyError), told_in_one_line("train.py", OSError, ValueError):
        raise KeyError("student")


def test_debug_shows_the_traceback_too(capsys):
    with pytest.raises(SystemExit) as ended, told_in_one_line("train.py", OSError, debug=True):
        raise FileNotFoundError("no such run")
    assert ended.value.code == "train.py: no such run"
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_notes_are_said_too():
    error = OSError("disk full")
    error.add_note("stopped after step 3")
    with (
        pytest.raises(SystemExit, match=r"^train.py: disk full\nstopped after step 3$"),
        told_in_one_line("train.py", OSError),
    ):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        UserError("x"), NonFinite("x"), WorkerDied("x"), Claimed("x"), ImageFileError("x"), FileExistsError("x"),
        PermissionError("x"), OSError(28, "x"),
    ],
)  # fmt: skip
def test_what_a_user_can_put_right_has_no_traceback_anywhere(error):
    assert isinstance(error, USER_ERRORS)


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), RuntimeError("x"), AssertionError("x")])
def test_in_a_step_these_are_faults_of_the_program(error):
    assert not isinstance(error, USER_ERRORS)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("Unable to allocate 93.1 GiB for an array"),
    ],
)
def test_lack_of_memory_says_what_takes_less(error):
    with pytest.raises(SystemExit, match=r"^train\.py: out of memory; lower --crop$"):
        with told_in_one_line("train.py", less="lower --crop"):
            raise error


def test_lack_of_memory_of_the_host_is_one_too():
    with pytest.raises(SystemExit, match="out of memory"), told_in_one_line("train.py"):
        torch.empty(1 << 60, dtype=torch.uint8)


def warn_as_the_hub_does() -> None:
    say_what_is_logged()
    hub_logging.get_logger("huggingface_hub.utils._http").warning("no connection")


def test_a_warning_of_the_hub_is_said_once(tmp_path):
    child = Child(tmp_path / "said.txt", warn_as_the_hub_does)
    assert child.wait() == 0
    assert child.said().count("no connection") == 1

"""Errors that a user can put right end a program with one message; others keep their traceback."""

import pytest
import torch

from dida.command import reason, told_in_one_line


def test_an_error_that_is_named_ends_the_program_with_what_it_says():
    with pytest.raises(SystemExit) as ended, told_in_one_line("train.py", OSError, ValueError, debug=False):
        raise FileNotFoundError("no such run")
    assert ended.value.code == "train.py: no such run"


def test_any_other_error_is_a_fault_of_the_program_and_keeps_its_traceback():
    with pytest.raises(KeyError), told_in_one_line("train.py", OSError, ValueError, debug=False):
        raise KeyError("student")


def test_the_traceback_of_a_named_error_is_shown_when_it_is_asked_for(capsys):
    with pytest.raises(SystemExit), told_in_one_line("train.py", OSError, debug=True):
        raise FileNotFoundError("no such run")
    assert "Traceback" in capsys.readouterr().err


def test_what_an_error_notes_is_said_below_it():
    error = OSError("the disk is full")
    error.add_note("stopped after step 7")
    with pytest.raises(SystemExit) as ended, told_in_one_line("train.py", OSError, debug=False):
        raise error
    assert ended.value.code == "train.py: the disk is full\nstopped after step 7"


def test_a_device_that_is_full_says_what_takes_less():
    said = reason(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. More words."), "lower --crop")
    assert said == "the device is out of memory; lower --crop (CUDA out of memory)"
    assert reason(ValueError("expected: here\n  found: there"), "") == "expected: here\n  found: there"

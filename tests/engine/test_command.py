"""Errors that a user can put right end a program with one message; others keep their traceback."""

import pytest

from dida.command import reason, told_in_one_line


def test_an_error_that_is_named_ends_the_program_with_what_it_says():
    with pytest.raises(SystemExit) as ended, told_in_one_line("train.py", OSError, ValueError):
        raise FileNotFoundError("no such run")
    assert ended.value.code == "train.py: no such run"


def test_any_other_error_is_a_fault_of_the_program_and_keeps_its_traceback():
    with pytest.raises(KeyError), told_in_one_line("train.py", OSError, ValueError):
        raise KeyError("student")


def test_of_an_error_out_of_a_loading_process_the_last_line_counts():
    assert reason(ValueError("Caught ValueError in worker 0.\nOriginal Traceback:\n  File x\nValueError: a.png\n")) == (
        "ValueError: a.png"
    )
    assert reason(ValueError("expected: here\n  found: there")) == "expected: here\n  found: there"

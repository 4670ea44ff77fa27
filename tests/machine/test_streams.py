"""Streams that are closed, unread, full, or that spell little: of programs as a shell starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRINTS = "print('a line\\n' * 9)"
OPENS = "import os, sys; number = os.open('own', os.O_WRONLY | os.O_CREAT); print('for', 'nobody', file=sys.stderr)"


def program(work: str, **how) -> subprocess.CompletedProcess[str]:
    source = f"import sys\nfrom dida.machine.streams import standard_streams\nwith standard_streams():\n    {work}\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""} | how.pop("env", {})
    return subprocess.run([sys.executable, "-c", source], text=True, stderr=subprocess.PIPE, env=environment, **how)


@pytest.fixture
def unread():
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize(
    "work", [PRINTS, "print('x' * 100_000)", "print('x', flush=True)", f"{PRINTS}; raise BrokenPipeError"]
)
def test_without_a_reader_it_ends_as_sigpipe_ends_others(unread, work):
    done = program(work, stdout=unread)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("command", [("--help",), ("train", "--help"), ("--version",), ("doctor", "--help")])
def test_commands_without_a_reader(unread, command):
    done = subprocess.run([sys.executable, "-m", "dida", *command], cwd=ROOT, stdout=unread, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_device_is_said_once():
    with open("/dev/full", "w") as full:
        done = program(PRINTS, stdout=full)
    assert (done.returncode, done.stderr) == (1, "what was printed is not all there: No space left on device\n")


def test_a_message_is_not_lost_with_the_output(unread):
    done = program(f"{PRINTS}; sys.exit('what to put right')", stdout=unread)
    assert (done.returncode, done.stderr) == (1, "what to put right\n")


@pytest.mark.parametrize("closed", [(1,), (2,), (1, 2), (0, 1, 2)])
def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path, closed):
    done = program(
        f"{OPENS}; print('for nobody either', flush=True); sys.exit(number)",
        cwd=tmp_path,
        preexec_fn=lambda: [os.close(number) for number in closed],
    )
    assert done.returncode > 2
    assert (tmp_path / "own").read_text() == ""


def test_what_a_stream_cannot_spell_is_escaped():
    done = program("print('Straße 🌾')", stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout) == (0, "Stra\\xdfe \\U0001f33e\n")

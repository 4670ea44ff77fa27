"""The device that is asked for: there and able to run something, or refused by name before anything is read."""

import subprocess
import sys

import pytest
import torch

from dida.machine.device import find_device


@pytest.mark.parametrize("name", ["meta", "mps", "xpu", "nope", "", "cuda:x", "cpu:x", "cuda:99", "CPU"])
def test_a_device_that_nothing_runs_on_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"^device {name}: "):
        find_device(name)


@pytest.mark.parametrize("error", ["CUDA error: no kernel image is available\nmore", "busy"])
def test_a_gpu_that_cannot_run_is_told_at_the_start(monkeypatch, error):
    def zeros(*args, **options):
        raise RuntimeError(error)

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(ValueError, match=f"^device cuda: {error.splitlines()[0]}$"):
        find_device("cuda")


def test_windows_is_refused_in_one_line():
    program = "import signal; del signal.SIGHUP; import dida.machine.signals"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "DIDA runs on Linux, and on the CPU of a Mac; on Windows, use its Subsystem for Linux\n"

"""What setup.py does where the extension cannot or must not be built: it says so, and fails only if it was told to."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
NO_COMPILER = {"CXX": "/nowhere/c++"}


def setup(**environment: str) -> subprocess.CompletedProcess:
    """Describes the package, for which setup.py has to decide about the extension but compiles nothing."""
    command = [sys.executable, "setup.py", "--name"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, text=True, capture_output=True)


@pytest.mark.parametrize(
    "environment, reason", [(NO_COMPILER, "no C++ compiler"), ({"DIDA_BUILD": "0"}, "DIDA_BUILD=0")]
)
def test_the_package_installs_without_the_extension_and_says_so(environment, reason):
    result = setup(**environment)
    assert result.returncode == 0
    assert "dida_kernels._C is NOT built" in result.stderr
    assert reason in result.stderr


def test_without_torch_it_says_how_to_build_later(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('not here')")
    result = setup(PYTHONPATH=str(tmp_path))
    assert result.returncode == 0
    assert "python setup.py build_ext --inplace" in result.stderr


def test_a_build_that_was_asked_for_does_not_pass_silently():
    result = setup(DIDA_BUILD="1", **NO_COMPILER)
    assert result.returncode != 0
    assert "no C++ compiler" in result.stderr


@pytest.mark.skipif(not (shutil.which("nvcc") and torch.version.cuda), reason="needs nvcc and a PyTorch with CUDA")
def test_an_architecture_that_nvcc_does_not_know_is_named():
    result = setup(DIDA_CUDA_ARCHS="90 7")
    assert result.returncode != 0
    assert "DIDA_CUDA_ARCHS" in result.stderr
    assert result.stderr.rstrip().endswith("got 7")


@pytest.mark.skipif(not (shutil.which("g++") and shutil.which("nm")), reason="needs GNU's tools")
def test_a_static_libstdcpp_stays_inside(tmp_path, monkeypatch):
    """On a machine with such a compiler what the extension exported of it met torch's own, and every error crashed."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["setup.py", "--name"])
    monkeypatch.setenv("DIDA_BUILD", "0")  # it has nothing to look for
    flags = runpy.run_path("setup.py")["LINK_FLAGS"]
    source = tmp_path / "prints.cpp"
    source.write_text(
        '#include <sstream>\nextern "C" int said(long x) { return (std::ostringstream() << x).good(); }\n'
    )

    found = subprocess.run(["g++", "-print-file-name=libstdc++.a"], check=True, capture_output=True, text=True)
    if not Path(found.stdout.strip()).is_absolute():
        pytest.skip("this compiler has no static libstdc++")

    def exported(*flags: str) -> set[str]:
        library = str(tmp_path / "prints.so")
        subprocess.run(["g++", "-shared", "-fPIC", "-static-libstdc++", *flags, str(source), "-o", library], check=True)
        listed = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True)
        return {line.split()[-1] for line in listed.stdout.splitlines()}

    numbers = "num_put"  # how a stream prints one
    assert any(numbers in name for name in exported())  # this compiler can do it
    assert not any(numbers in name for name in exported(*flags))
    assert "said" in exported(*flags)


def test_no_message_is_printed_to_a_stream():
    """PyTorch's macros do that with what is given to them in parts."""
    checks = re.findall(r"TORCH_CHECK\w*\((.*?)\);", (ROOT / "csrc/ops.cpp").read_text(), flags=re.S)
    assert len(checks) > 10
    for check in checks:
        before, said, _ = check.partition("said(")
        assert said, check
        assert before.count('"') == 0, check

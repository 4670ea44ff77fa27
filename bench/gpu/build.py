"""Compile the C++/CUDA extension in place, with the Python at hand and for the card at hand."""

import os
import subprocess
import sys
from collections.abc import Sequence

from bench.gpu.program import begin, stage_parser
from bench.gpu.runner import CHECKOUT


def main(arguments: Sequence[str] | None = None) -> int:
    program, _ = begin(stage_parser(__doc__), arguments)
    wanted = {"DIDA_BUILD": "1"} | ({"DIDA_CUDA_ARCHS": card()} if program.device == "cuda" else {})
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=CHECKOUT, env=os.environ | wanted, check=False).returncode


def card() -> str:
    """The compute capability, such as 90."""
    asked = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0].replace(".", "")


if __name__ == "__main__":
    sys.exit(main())

"""Compile the C++/CUDA extension in place, with the Python at hand."""

import os
import subprocess
import sys
from collections.abc import Sequence

from bench.gpu.program import begin, stage_parser
from bench.gpu.runner import CHECKOUT


def main(arguments: Sequence[str] | None = None) -> int:
    begin(stage_parser(__doc__), arguments)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=CHECKOUT, env=os.environ | {"DIDA_BUILD": "1"}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

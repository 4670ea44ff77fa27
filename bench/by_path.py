"""`python bench/kernels.py` is `python -m bench.kernels`, from any folder and without an installation.

Given a script by its path, Python looks for modules beside it: here in bench/, where there is neither `bench` nor
`dida`. So a script that may be started by its path asks to be started again, as a module of its checkout.
"""

import os
import sys
from pathlib import Path
from typing import NoReturn


def start_again(script: str) -> NoReturn:
    """Become `python -m bench.<script>` with the same arguments; the checkout comes before what is installed."""
    path = Path(script).resolve()
    folders = [str(path.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    of_python = sys.orig_argv[1 : -len(sys.argv)]
    os.execve(
        sys.executable,
        [sys.executable, *of_python, "-m", f"bench.{path.stem}", *sys.argv[1:]],
        os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
    )

"""A stage's program as a test gives it one."""

import time
from pathlib import Path

from bench.gpu.program import Program


def program(folder: Path, name: str = "stage", seconds: float = 600.0) -> Program:
    return Program("cpu", folder / f"{name}.json", time.monotonic() + seconds)

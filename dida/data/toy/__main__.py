"""Writes the toy benchmark: python -m dida.data.toy --data-root data"""

import os
import time
from pathlib import Path

import tyro

from .benchmark import generate


def main(data_root: Path = Path("data"), jobs: int = os.cpu_count() or 1) -> None:
    """Draw the toy benchmark, two domains of procedural streets, into DATA_ROOT/toy.

    Args:
        data_root: folder of all datasets
        jobs: processes that draw
    """
    start = time.perf_counter()
    outcome = generate(data_root, jobs=jobs, progress=show)
    seconds = time.perf_counter() - start
    if outcome.written:
        print(f"wrote {outcome.written} of {outcome.pictures} pictures in {seconds:.0f} s: {outcome.folder}")
    else:
        print(f"all {outcome.pictures} pictures are there and right, nothing to do: {outcome.folder}")
    print(f"pixels verified, sha256 {outcome.digest}")


def show(done: int, total: int) -> None:
    if done % 100 == 0 or done == total:
        print(f"{done} of {total} pictures", flush=True)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m dida.data.toy")

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
        print(f"{outcome.folder}: {outcome.written} of {outcome.pictures} pictures written in {seconds:.0f} s")
    else:
        print(f"{outcome.folder}: all {outcome.pictures} pictures are there and right, nothing to do")
    print(f"pixels verified, sha256 {outcome.digest}")


def show(done: int, total: int) -> None:
    if done % 20 == 0 or done == total:
        print(f"\rdrawing {done}/{total}", end="\n" if done == total else "", flush=True)


if __name__ == "__main__":
    tyro.cli(main)

"""Writes the toy benchmark: python -m dida.data.toy --data-root data"""

import os
import time
from pathlib import Path

import tyro

from .benchmark import generate
from .weather import Weather


def main(
    data_root: Path = Path("data"), weather: tuple[Weather, ...] = ("day",), jobs: int = os.cpu_count() or 1
) -> None:
    """Draw the toy benchmark, two domains of procedural streets, into DATA_ROOT/toy.

    Args:
        data_root: folder of all datasets
        weather: day is the benchmark; night and fog draw the target's streets again, as toy-night and toy-fog
        jobs: processes that draw
    """
    for part in weather:
        draw(data_root, part, jobs)


def draw(data_root: Path, weather: Weather, jobs: int) -> None:
    start = time.perf_counter()
    outcome = generate(data_root, weather=weather, jobs=jobs, progress=show)
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

"""What can go wrong, tried: bad inputs of every kind, and kills, signals and full disks at random moments.

    python -m tests.faults                                  about 2000 inputs, 30 kills, 16 signals, 8 disks
    python -m tests.faults --inputs none --kills 100 --signals 40 --disks 20
    python -m tests.faults --inputs checkpoints weights --kills 0 --signals 0 --disks 0
    python -m tests.faults --inputs none --kills 0 --signals 0 --disks 0 --step-pairs 16        what a step pays for it

Tables of what was tried go into docs/reliability.md. Exit status 1 if an input ended in a traceback, was taken
silently, hung or got a message that does not name it; or if a run was lost or differs, or a file is torn. Disks are
mounted, which takes root; without it they are left out, and the table says so.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from tests.faults import inputs, moments, step_cost
from tests.page_block import write_block

PAGE = "reliability.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", nargs="+", choices=("none", *inputs.ROOMS), default=list(inputs.ROOMS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="inputs that are tried at a time")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--signals", type=int, default=16)
    parser.add_argument("--disks", type=int, default=8)
    parser.add_argument("--step-pairs", type=int, default=0, help="steps that are timed beside what watches them")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        wrong = _inputs(Path(folder), [room for room in options.inputs if room != "none"], options.jobs)
        if options.step_pairs:
            write_block(PAGE, "step", step_cost.told_of(step_cost.pairs_of(Path(folder) / "steps", options.step_pairs)))
        return int(wrong | _moments(Path(folder), options))


def _inputs(folder: Path, rooms: list[str], jobs: int) -> bool:
    counts = inputs.tried_in(rooms, folder / "inputs", jobs)
    if rooms:
        write_block(PAGE, "inputs", inputs.table(counts))
    return any(count.wrong for count in counts)


def _moments(folder: Path, options: argparse.Namespace) -> bool:
    kinds: list[tuple[Callable[[moments.Trials, int], Iterable[tuple[str, moments.Row]]], int]] = [
        (moments.kills, options.kills),
        (moments.signals, options.signals),
        (moments.disks, options.disks if os.geteuid() == 0 else 0),
    ]
    if not any(count for _, count in kinds):
        return False
    rows: list[tuple[str, moments.Row]] = []
    (folder / "moments").mkdir()
    trials = moments.Trials(folder / "moments", options.seed)
    for kind, count in kinds:
        for name, row in kind(trials, count):
            rows.append((name, row))
            print(f"{name}: {row.tried} times", *row.faults, sep="\n  ", flush=True)
    write_block(PAGE, "moments", moments.table([(name, row) for name, row in rows if row.tried]))
    return any(row.faults for _, row in rows)


if __name__ == "__main__":
    sys.exit(main())

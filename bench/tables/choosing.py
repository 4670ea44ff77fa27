"""What picks a checkpoint, or one of several runs, where the target has no labels?

    python -m bench.tables --options="--eval-every 80 --eval-target-labels" ...     trains, and records keep the looks
    python -m bench.tables.choosing                                                 makes the table from those records

A look is what a run says of itself on the way (dida/run/watch.py). Every signal is turned so that more of it should be
better, which was settled before anything was measured. Two choices are made with each: of a run's looks, by how good
the student was then on the target's val pictures, which no training sees; and of a seed's runs at their last look, by
the score that is reported of them. *Regret* is by how many points of mIoU the best choice is better than this one.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from bench import record
from bench.record import NONE, table
from bench.tables.rows import BENCHMARKS, WARM, Benchmark
from bench.tables.seeds import Paired, paired
from dida.options import read_command_line

BLOCK = "choosing"
Look = Mapping[str, float]
Signal = Callable[[Look], float | None]  # None: this look has none


@dataclass(frozen=True)
class ChoosingOptions:
    """Which label-free signal picks the best checkpoint, and the best run: a table from the looks in records."""

    data: str = "toy"
    """The benchmark, as bench.tables has it."""
    digest: str | None = None
    """The source whose records are read; by default the one with most looks."""
    results: Path = record.RESULTS_FOLDER
    """Folder of records and rendered tables."""
    pages: tuple[Path, ...] = ()
    """Files whose block <!-- results:toy-choosing --> is replaced."""


class Looked(NamedTuple):
    """A run and what it saw of itself."""

    row: str
    seed: int
    looks: tuple[Look, ...]
    scored: float  # mIoU that is reported of it, in percent


class Judged(NamedTuple):
    """A choice by a signal."""

    correlation: float | None  # of the ranks of signal and mIoU, in [-1, 1]; None where one of them is constant
    regret: float  # points of mIoU


def signals(benchmark: Benchmark) -> dict[str, Signal]:
    """By the words that the table has for them."""
    return {
        "mIoU on the source's val pictures": lambda look: look[f"{benchmark.own_val}_val/student"],
        "student and teacher agree": lambda look: look["agreement"],
        "teacher confident": lambda look: look["confident"],
        "student's entropy, low": lambda look: -look["entropy"],
        "classes in effect": lambda look: look["classes"],
        "drift of the classes' shares, low": lambda look: -look["drift"] if "drift" in look else None,
        "the newest": lambda look: look["step"],
    }


def judge(means: Sequence[float], told: Sequence[float | None]) -> Judged | None:
    """How well what a signal told of each chooses between them, given their mIoU in percent; None where it told no two
    apart."""
    known = [(value, mean) for value, mean in zip(told, means, strict=True) if value is not None]
    if len({value for value, _ in known}) < 2:
        return None
    chosen = max(known, key=lambda pair: pair[0])[1]
    return Judged(rank_correlation(*zip(*known, strict=True)), max(means) - chosen)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's: Pearson's correlation of the ranks, equal values sharing the mean of theirs."""
    a, b = _ranks(one), _ranks(other)
    if a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values)
    below, equal = (array[:, None] > array).sum(1), (array[:, None] == array).sum(1)
    return below + (equal - 1) / 2


def at_random(means: Sequence[float]) -> float:
    """The regret to expect of one that is drawn."""
    return max(means) - fmean(means)


def looked_runs(options: ChoosingOptions) -> tuple[str, list[Looked]]:
    """The digest, and every run with looks but for the shared starts. Raises ValueError if there is none."""
    records = options.results / options.data / "records"
    found: dict[str, list[Looked]] = {}
    for path in sorted(records.glob(f"{options.digest or '*'}/*.json"), key=lambda path: (len(path.name), path)):
        content = json.loads(path.read_text())
        if content["row"] == WARM.name:
            continue
        looks = tuple(look for look in content.get("looks", ()) if _truth_name(BENCHMARKS[options.data]) in look)
        runs = found.setdefault(content["digest"], [])
        if looks and all((run.seed, run.looks) != (content["seed"], looks) for run in runs):  # two rows may be one run
            runs.append(Looked(content["row"], content["seed"], looks, _reported(content)))
    found = {digest: runs for digest, runs in found.items() if runs}
    if not found:
        raise ValueError(
            f'no record in {records} has looks: bench.tables --options="--eval-every N --eval-target-labels" trains '
            "such runs, with a --work and --results of their own where rows are there already"
        )
    digest = max(found, key=lambda key: len(found[key]))
    return digest, sorted(found[digest], key=lambda run: (run.seed, run.row))


def _reported(content: Mapping[str, Any]) -> float:
    return content["student"]["mIoU"][str(BENCHMARKS[content["benchmark"]].classes)]


def _truth_name(benchmark: Benchmark) -> str:
    return f"{benchmark.tgt}_val/student"


def choices(name: str, digest: str, runs: Sequence[Looked]) -> str:
    """The table, with what it is of."""
    benchmark = BENCHMARKS[name]
    then = _truth_name(benchmark)
    by_seed = {seed: list(of_seed) for seed, of_seed in groupby(runs, key=lambda run: run.seed)}
    lines = [
        [label, *_cells(by_seed, then, lambda means, looks, told=told: judge(means, [told(look) for look in looks]))]
        for label, told in signals(benchmark).items()
    ]
    drawn = _cells(by_seed, then, lambda means, looks: Judged(None, at_random(means)))
    head = ["chosen by", "of a run's looks: rank correlation", "regret", "worst", "of a seed's runs: rank correlation",
            "regret", "worst"]  # fmt: skip
    rows = ", ".join(sorted({run.row for run in runs}))
    counts = sorted({len(run.looks) for run in runs})
    text = (
        f"{benchmark.title}: {len(runs)} runs ({rows}) of {len(by_seed)} seeds, "
        f"{' or '.join(map(str, counts))} looks each. Looks are judged by the student's mIoU on the target's val "
        f"pictures, runs by that on its {benchmark.reported} pictures. Means over seeds, with 95 % t intervals. "
        f"Source {digest}."
    )
    return f"{text}\n\n{table(head, [*lines, ['a draw', *drawn]])}"


def _cells(
    by_seed: Mapping[int, Sequence[Looked]], then: str, judged: Callable[[list[float], list[Look]], Judged | None]
) -> list[str]:
    within = {
        seed: [judged([100 * look[then] for look in run.looks], list(run.looks)) for run in runs]
        for seed, runs in by_seed.items()
    }
    among = {
        seed: [judged([run.scored for run in runs], [run.looks[-1] for run in runs])] for seed, runs in by_seed.items()
    }
    return [cell for found in (within, among) for cell in _three(found)]


def _three(judged: Mapping[int, Sequence[Judged | None]]) -> Iterator[str]:
    """Correlation and regret, each as a mean over seeds of the mean of a seed; and the worst regret."""
    known = {seed: [choice for choice in of_seed if choice] for seed, of_seed in judged.items()}
    correlations = {seed: [x for choice in of_seed if (x := choice.correlation) is not None]
                    for seed, of_seed in known.items()}  # fmt: skip
    regrets = {seed: [choice.regret for choice in of_seed] for seed, of_seed in known.items()}
    yield _interval(correlations)
    yield _interval(regrets)
    yield f"{max(worst):.2f}" if (worst := [x for values in regrets.values() for x in values]) else NONE


def _interval(by_seed: Mapping[int, Sequence[float]]) -> str:
    means = {seed: fmean(values) for seed, values in by_seed.items() if values}
    found: Paired | None = paired(means, dict.fromkeys(means, 0.0))
    if found is None:
        return NONE
    return f"{found.mean:.2f}" + (f" [{found.low:.2f}, {found.high:.2f}]" if found.n > 1 else "")


def main(options: ChoosingOptions) -> None:
    """Write the table beside the records' other tables and into its block of the pages. Raises ValueError."""
    if options.data not in BENCHMARKS:
        raise ValueError(f"--data {options.data}: expected one of {', '.join(BENCHMARKS)}")
    digest, runs = looked_runs(options)
    text = choices(options.data, digest, runs)
    record.write(options.results / options.data / f"{BLOCK}.md", text + "\n")
    for page in options.pages:
        page.write_text(record.replaced(page.read_text(), f"{options.data}-{BLOCK}", text))


def choosing_command(args: list[str]) -> None:
    try:
        main(read_command_line(ChoosingOptions, args, "bench.tables.choosing"))
    except ValueError as error:
        sys.exit(f"bench.tables.choosing: {error}")


if __name__ == "__main__":
    choosing_command(sys.argv[1:])

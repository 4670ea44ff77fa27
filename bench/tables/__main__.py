"""Run the rows of the paper's tables over several seeds, and render what came out.

python -m bench.tables --seeds 100-103 --jobs 2             all methods; choices are made on val, with seeds from 100
python -m bench.tables --table 3 --split test               what is finished is not run again, what stopped goes on
python -m bench.tables --table 3 --split test --render      write bench/results/toy/3.md, 3.csv and the README's block
python -m bench.tables --table 7 --data real --device cuda  the same rows with the paper's data and schedule

On the toy all rows of a seed branch off one shared source-only run and see the same draws, so that differences paired
by seed are resolved with few seeds. Every number is that of the last checkpoint.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from bench.record import RESULTS_FOLDER, replaced, write
from bench.tables.comparison import collect, rows_of
from bench.tables.curve import draw_curve
from bench.tables.jobs import Jobs, Signals
from bench.tables.render import as_csv, page, summary
from bench.tables.rows import BENCHMARKS, Row
from bench.tables.trainings import Setting, plan

NUMBERS = {"1": "methods", "2": "methods"}  # Tables I and II have the same rows


@dataclass(frozen=True)
class Options:
    """Run the rows of the paper's tables over several seeds, and render what came out (--render)."""

    table: tuple[Literal["methods", "1", "2", "3", "4", "5", "regeneration", "6", "7", "8a", "8b"], ...] = ("methods",)
    """Tables to run: methods is Tables I and II, regeneration the rows of Table V over DAFormer, 8a sweeps the size of
    the bank, 8b the steps between its updates."""
    data: Literal["toy", "real"] = "toy"
    """The toy benchmark, or GTA5 (SYNTHIA for Table 2) to Cityscapes."""
    seeds: str = "0-7"
    """Seeds, such as 0-7 or 100,102."""
    split: Literal["val", "test"] = "val"
    """What is scored: val to make choices, test to report."""
    rows: tuple[str, ...] = ()
    """Names of the rows to run; by default all."""
    jobs: int = 1
    """Trainings side by side."""
    threads: int = 1
    """Threads of each of them."""
    warm_steps: int | None = None
    """Steps of the shared source-only start; 0 has none."""
    branch_steps: int | None = None
    """Steps of every row after it."""
    options: str = ""
    """More options of train.py for every run, as in --options="--lr 1e-3"; a row's own options win over them."""
    work: Path = Path("runs/tables")
    """Folder for the runs."""
    results: Path = RESULTS_FOLDER
    """Folder for records and rendered tables."""
    data_root: Path = Path("data")
    """Folder that holds the data sets."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    render: bool = False
    """Run nothing; write the tables of what is there."""
    readme: Path | None = Path("README.md")
    """File whose blocks <!-- results:toy-methods --> ... <!-- /results --> are replaced by what is reported: the test
    split of the toy, val on real data. None is no file."""


def main(options: Options) -> int:
    """The exit status: 0, 1 if something failed, 130 if it was asked to stop.

    Raises ValueError for options that mean nothing, and for a README without the block of a table.
    """
    seeds = parse_seeds(options.seeds)
    tables = [(NUMBERS.get(name, name), setting(options, name)) for name in options.table]
    if options.render:
        for name, where in tables:
            write_table(name, where, seeds, options.readme)
        return 0
    wanted = [(where, row) for name, where in tables for row in rows_of(name, where)]
    tasks = plan(chosen(wanted, options.rows), seeds)
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    signals = Signals()
    jobs = Jobs(tasks, options.jobs, threads)
    print(f"{jobs.total} things to do for seeds {options.seeds}; runs in {options.work}", flush=True)
    try:
        failed = jobs.run(signals)
    finally:
        signals.restore()
    if signals.caught:
        print(f"{signals.caught.name}: stopped; the same command goes on from here")
        return 130
    if failed:
        print(f"{len(failed)} failed: {', '.join(failed)}")
    return 1 if failed else 0


def setting(options: Options, table: str) -> Setting:
    """What the runs of one table share."""
    name = "toy" if options.data == "toy" else "synthia" if table == "2" else "gta5"
    benchmark = BENCHMARKS[name]
    given = {"warm_steps": options.warm_steps, "branch_steps": options.branch_steps}
    benchmark = benchmark._replace(**{name: steps for name, steps in given.items() if steps is not None})
    if name != "toy" and options.split == "test":
        raise ValueError("--split test: the labels of Cityscapes' test split are not public; its val split is reported")
    return Setting(
        name=name,
        benchmark=benchmark,
        split=options.split,
        work=options.work,
        results=options.results,
        data_root=options.data_root,
        device=options.device,
        extra=options.options,
    )


def chosen(rows: list[tuple[Setting, Row]], names: tuple[str, ...]) -> list[tuple[Setting, Row]]:
    """The rows of these names, all if there are none. Raises ValueError for a name that no row has."""
    known = dict.fromkeys(row.name for _, row in rows)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--rows {' '.join(unknown)}: the rows are {', '.join(known)}")
    return [(where, row) for where, row in rows if not names or row.name in names]


def parse_seeds(text: str) -> tuple[int, ...]:
    """ "0-2,7" -> (0, 1, 2, 7). Raises ValueError."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"--seeds {text}: expected numbers and ranges such as 0-7 or 100,102")
        seeds += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(seeds))


def write_table(name: str, where: Setting, seeds: tuple[int, ...], readme: Path | None) -> None:
    """Write a table as Markdown and CSV, and what is reported into its block of the README."""
    found = collect(name, where, seeds)
    target = where.results / where.name / found.file
    write(target.with_name(f"{found.file}.md"), page(found))
    write(target.with_name(f"{found.file}.csv"), as_csv(found))
    if found.table.sweeps:
        draw_curve(found, target.with_name(f"{found.file}.png"))
    print(f"{target}.*")
    if readme is None or not found.reported:
        return
    try:
        text = replaced(readme.read_text(), f"{where.name}-{name}", summary(found))
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{readme}: {error}; --readme None leaves it alone") from error
    readme.write_text(text)
    print(f"{readme}: block {where.name}-{name}")


def cli(args: list[str]) -> None:
    """`main` of a command line. What a user can put right ends in one message."""
    options = tyro.cli(Options, prog="bench.tables", args=args)
    try:
        status = main(options)
    except ValueError as error:
        sys.exit(f"bench.tables: {error}")
    sys.exit(status)


if __name__ == "__main__":
    cli(sys.argv[1:])

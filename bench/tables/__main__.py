"""Run the rows of the paper's tables over several seeds, and render what came out.

python -m bench.tables --seeds 100-103 --jobs 2             all methods; choices are made on val, with seeds from 100
python -m bench.tables --table 3 --split test               what is finished is not run again, what stopped goes on
python -m bench.tables --table 3 --split test --render      write bench/results/toy/3.md, 3.csv and blocks of pages
python -m bench.tables --table 7 --data real --device cuda  the same rows with the paper's data and schedule

On the toy all rows of a seed branch off one shared source-only run and see the same draws, so that differences paired
by seed are resolved with few seeds. Every number is that of the last checkpoint.

Run it from a clone that nobody edits: what a changed tree trained could not be trained again, so it is refused, and a
source that changes while its trainings go on leaves no record.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from bench import record
from bench.tables.comparison import Comparison, collect, rows_of
from bench.tables.curve import draw_curve
from bench.tables.jobs import Jobs
from bench.tables.render import as_csv, filled, page
from bench.tables.rows import BENCHMARKS, Row
from bench.tables.trainings import Setting, plan, this_source
from dida.machine.signals import Signals
from dida.options import COUNT, COUNT_OR_NONE, read_command_line

MOST_SEEDS = 1_000_000
NUMBERS = {"1": "methods", "2": "methods"}  # Tables I and II have the same rows


@dataclass(frozen=True)
class TablesOptions:
    """Run the rows of the paper's tables over several seeds, and render what came out (--render)."""

    table: tuple[Literal[
        "methods", "1", "2", "3", "4", "5", "regeneration", "6", "7", "8a", "8b", "recipes", "loss", "limits",
        "precision", "candidates", "combinations", "finalists",
    ], ...] = ("methods",)  # fmt: skip
    """Tables to run: methods is Tables I and II, regeneration the rows of Table V over DAFormer, 8a sweeps the
    size of the bank, 8b the steps between its updates; recipes is DIDA as printed and with a class prior over
    DAFormer, loss what L_ins adds to each, limits what true labels of the target would bring; precision is DIDA in bf16
    and in fp32; candidates, combinations of the best and finalists are for choosing, on val and with seeds from 100
    up."""
    data: Literal[
        "toy", "toy-night", "toy-fog", "toy-pretrained", "toy-pretrained-night", "toy-pretrained-fog", "real"
    ] = "toy"
    """The toy benchmark, its other targets, the three from ImageNet weights, or GTA5 (SYNTHIA for Table 2) to
    Cityscapes."""
    seeds: str = "0-7"
    """Seeds, such as 0-7 or 100,102."""
    split: Literal["val", "test"] = "val"
    """What is scored: val to make choices, test to report."""
    rows: tuple[str, ...] = ()
    """Names of the rows to run; by default all."""
    jobs: Annotated[int, COUNT] = 1
    """Trainings side by side."""
    threads: Annotated[int, COUNT] = 1
    """Threads of each of them."""
    warm_steps: Annotated[int | None, COUNT_OR_NONE] = None
    """Steps of the shared source-only start; 0 has none."""
    branch_steps: Annotated[int | None, COUNT] = None
    """Steps of every row after it."""
    options: str = ""
    """More options of train.py for every run, as in --options="--lr 1e-3"; a row's own options win over them."""
    work: Path = Path("runs/tables")
    """Folder for the runs."""
    results: Path = record.RESULTS_FOLDER
    """Folder for records and rendered tables."""
    data_root: Path = Path("data")
    """Folder that holds the data sets."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    render: bool = False
    """Run nothing; write the tables of what is there."""
    digest: str | None = None
    """With --render, the source whose records are shown; by default the one that has most seeds of every row, of equals
    the one with most records, and of these the newest."""
    pages: tuple[Path, ...] = (Path("README.md"), Path("docs/toy_results.md"), Path("docs/instance_loss_on_the_toy.md"))
    """Files whose blocks <!-- results:toy-methods --> ... <!-- /results --> are replaced; what is reported (test on the
    toy, val on real data) needs one. Of the toy's val split it is toy-methods_val. What all tables share goes into
    each, or once into a block toy-caption or toy-caption_val."""


def main(options: TablesOptions) -> int:
    """The exit status: 0, 1 if something failed, 130 if it was asked to stop.

    Raises ValueError for options that mean nothing, for a tree that no record may be made in, and if no page has the
    block of a table.
    """
    seeds = parse_seeds(options.seeds)
    tables = [(NUMBERS.get(name, name), setting(options, name)) for name in options.table]
    if options.render:
        for name, where in tables:
            write_table(collect(name, where, seeds, options.digest), options.pages)
        return 0
    wanted = [(where, row) for name, where in tables for row in rows_of(name, where)]
    tasks = plan(chosen(wanted, options.rows), seeds)
    refuse_changes()
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    signals = Signals()
    jobs = Jobs(tasks, options.jobs, threads)
    print(f"{jobs.total} things to do for seeds {options.seeds}; runs in {options.work}", flush=True)
    try:
        failed = jobs.run(signals)
    finally:
        signals.restore()
    if signals.caught:
        print(f"{signals.caught}: stopped; the same command goes on from here")
        return 130
    if failed:
        print(f"{len(failed)} failed: {', '.join(failed)}")
    return 1 if failed else 0


def setting(options: TablesOptions, table: str) -> Setting:
    """What the runs of one table share."""
    name = options.data if options.data != "real" else "synthia" if table == "2" else "gta5"
    benchmark = BENCHMARKS[name]
    given = {"warm_steps": options.warm_steps, "branch_steps": options.branch_steps}
    benchmark = benchmark._replace(**{name: steps for name, steps in given.items() if steps is not None})
    if options.data == "real" and options.split == "test":
        raise ValueError("--split test: the labels of Cityscapes' test split are not public; its val split is reported")
    return Setting(
        name=name,
        benchmark=benchmark,
        digest=this_source(),
        split=options.split,
        work=options.work,
        results=options.results,
        data_root=options.data_root,
        device=options.device,
        extra=options.options,
    )


def chosen(rows: list[tuple[Setting, Row]], names: tuple[str, ...]) -> list[tuple[Setting, Row]]:
    """The rows of these names, all if there are none. Raises ValueError for a name that no row has, or a row that is
    gone."""
    rows, gone = [it for it in rows if not it[1].gone], {row.name: row.gone for _, row in rows if row.gone}
    if asked := [name for name in names if name in gone]:
        raise ValueError(
            f"--rows {asked[0]}: its options are gone; commit {gone[asked[0]]} is the last that can train it"
        )
    known = dict.fromkeys(row.name for _, row in rows)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--rows {' '.join(unknown)}: the rows are {', '.join(known)}")
    return [(where, row) for where, row in rows if not names or row.name in names]


def parse_seeds(text: str) -> tuple[int, ...]:
    """ "0-2,7" -> (0, 1, 2, 7). Raises ValueError."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not all(number.isascii() and number.isdecimal() for number in ([first, last] if dash else [first])):
            raise ValueError(f"--seeds {text}: expected numbers and ranges such as 0-7 or 100,102")
        if int(last or first) < int(first):
            raise ValueError(f"--seeds {text}: {part} is empty, its end lies before its start")
        if int(last or first) >= MOST_SEEDS:
            raise ValueError(f"--seeds {text}: expected numbers below {MOST_SEEDS}")
        seeds += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(seeds))


def refuse_changes() -> None:
    """Raises ValueError in a tree of which no record may be made."""
    if changed := record.changed_files():
        raise ValueError(
            f"{', '.join(changed)}: not as in the commit of this tree, so what it trains could not be trained again. "
            "Commit, or run in a clean clone (git clone . ELSEWHERE); only files in bench/results may differ"
        )
    if record.commit() == record.UNKNOWN:
        raise ValueError("no git here says which commit this is, and a record must: set DIDA_COMMIT to its hash")


def write_table(found: Comparison, pages: Sequence[Path]) -> None:
    """Write a table as Markdown and CSV, and into its blocks of the pages.

    Raises ValueError if it is reported and no page has a block for it.
    """
    target = found.setting.results / found.setting.name / found.file
    record.write(target.with_name(f"{found.file}.md"), page(found))
    record.write(target.with_name(f"{found.file}.csv"), as_csv(found))
    if found.table.sweeps:
        draw_curve(found, target.with_name(f"{found.file}.png"))
    print(f"{target}.*")
    start = record.start_of(found.block)
    having = [path for path in pages if path.exists() and start in path.read_text()]
    if pages and found.reported and not having:
        raise ValueError(f"{', '.join(map(str, pages))}: no line {start}; --pages alone, without a file, writes none")
    for path in having:
        try:
            path.write_text(filled(path.read_text(), found))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        print(f"{path}: block {found.block}")


def tables_command(args: list[str]) -> None:
    """`main` of a command line. What a user can put right ends in one message."""
    options = read_command_line(TablesOptions, args, "bench.tables")
    try:
        status = main(options)
    except ValueError as error:
        sys.exit(f"bench.tables: {error}")
    sys.exit(status)


if __name__ == "__main__":
    tables_command(sys.argv[1:])

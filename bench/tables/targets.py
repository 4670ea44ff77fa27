"""What each recipe gains over DAFormer, target by target: one table of the records of several benchmarks.

    python -m bench.tables --table recipes loss --data toy-night --split test ...     trains; so for every benchmark
    python -m bench.tables.targets --split test --pages docs/instance_loss_on_the_toy.md

The rows are those of the table `recipes`, compared with DAFormer, and of `loss`, compared with the same without L_ins.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench import record
from bench.record import NONE, table
from bench.tables.__main__ import TablesOptions, parse_seeds, setting
from bench.tables.comparison import Comparison, Line, collect
from bench.tables.render import provenance
from bench.tables.rows import DAFORMER
from bench.tables.seeds import Paired
from dida.options import read_command_line

Benchmarks = Literal["toy", "toy-night", "toy-fog", "toy-pretrained", "toy-pretrained-night", "toy-pretrained-fog"]


@dataclass(frozen=True)
class TargetsOptions:
    """One table of what recipes gain on several targets, from records."""

    data: tuple[Benchmarks, ...] = (
        "toy", "toy-night", "toy-fog", "toy-pretrained", "toy-pretrained-night", "toy-pretrained-fog",
    )  # fmt: skip
    """Benchmarks, as bench.tables has them, a column each; one without records is left out."""
    seeds: str = "0-7"
    """Seeds, such as 0-7 or 100,102."""
    split: Literal["val", "test"] = "test"
    """What was scored: val to make choices, test to report."""
    digest: str | None = None
    """The source whose records are shown; by default as bench.tables --render chooses, benchmark by benchmark."""
    results: Path = record.RESULTS_FOLDER
    """Folder of records and rendered tables."""
    pages: tuple[Path, ...] = ()
    """Files whose block <!-- results:targets --> (targets_val of val) is replaced."""


def collected(options: TargetsOptions) -> dict[str, dict[str, Comparison]]:
    """By benchmark and table, what is known. Raises ValueError where nothing is, or as `collect`."""
    seeds = parse_seeds(options.seeds)
    found: dict[str, dict[str, Comparison]] = {}
    for data in options.data:
        trained = TablesOptions(data=data, split=options.split, results=options.results)
        where = setting(trained, "recipes")
        baseline = (f"{options.digest or '*'}/{DAFORMER.name}_s{seed}_{options.split}.json" for seed in seeds)
        if not any(any(where.records.glob(name)) for name in baseline):
            continue  # nothing was trained there yet
        recipes = collect("recipes", where, seeds, options.digest)
        loss = collect("loss", setting(trained, "loss"), seeds, recipes.setting.digest)
        found[data] = {"recipes": recipes, "loss": loss}
    if not found:
        raise ValueError(f"no record of {' or '.join(options.data)} on {options.split} for seeds {options.seeds}")
    return found


def by_target(found: Mapping[str, Mapping[str, Comparison]], split: str) -> str:
    """The table in Markdown, with where its numbers come from."""
    first = next(iter(found.values()))
    start = first["recipes"].lines[0]
    rows = [[f"{start.row.label}, mIoU", *(_mean(tables["recipes"].lines[0], tables) for tables in found.values())]]
    for name in ("recipes", "loss"):
        for i, line in enumerate(first[name].lines):
            if line.against is not None and line.against is not line:
                cells = [_cell(tables[name].lines[i], tables) for tables in found.values()]
                rows += [[_label(line, name), *cells]] if any(cell != NONE for cell in cells) else []
    head = [_head(tables["recipes"]) for tables in found.values()]
    what = (
        f"Points of mIoU over DAFormer on {split}, below over the same without L_ins: paired differences of students, "
        "95 % t intervals over the seeds in brackets, **bold** where they leave 0 out. A cell that names its seeds has "
        "fewer of them than DAFormer."
    )
    sources = [f"- {_head(tables['recipes'])}: {provenance(tables['recipes'])}" for tables in found.values()]
    return "\n\n".join([what, table(["", *head], rows), "\n".join(sources)])


def _label(line: Line, name: str) -> str:
    assert line.against is not None
    return line.row.label if name == "recipes" else f"{line.row.label}: what L_ins adds"


def _head(found: Comparison) -> str:
    benchmark = found.setting.benchmark
    begun = "from ImageNet weights" if benchmark.stages.get("warm") else "from scratch"
    return f"{benchmark.tgt}, {begun}"


def _mean(line: Line, tables: Mapping[str, Comparison]) -> str:
    found = tables["recipes"]
    spread = line.spread(found.quantities[found.headline])
    return NONE if spread is None else f"{spread.mean:.2f} ({_seeds(spread.n)})"


def _cell(line: Line, tables: Mapping[str, Comparison]) -> str:
    found = tables["recipes"]
    quantity = found.quantities[found.headline]
    difference, baseline = line.difference(quantity), found.lines[0].spread(quantity)  # of DAFormer
    if difference is None:
        return NONE
    fewer = baseline is not None and difference.n < baseline.n
    return _interval(difference, line.resolved(difference)) + (f" ({_seeds(difference.n)})" if fewer else "")


def _seeds(count: int) -> str:
    return f"{count} seeds" if count > 1 else "one seed"


def _interval(difference: Paired, resolved: bool) -> str:
    if difference.n == 1:
        return f"{difference.mean:+.2f}"
    bold = "**" if resolved else ""
    return f"{bold}{difference.mean:+.2f}{bold} [{difference.low:+.2f}, {difference.high:+.2f}]"


def main(options: TargetsOptions) -> None:
    """Write the table beside the records and into its block of the pages. Raises ValueError."""
    text = by_target(collected(options), options.split)
    block = "targets" if options.split == "test" else f"targets_{options.split}"
    record.write(options.results / f"{block}.md", text + "\n")
    print(options.results / f"{block}.md")
    for page in options.pages:
        page.write_text(record.replaced(page.read_text(), block, text))


def targets_command(args: Sequence[str]) -> None:
    try:
        main(read_command_line(TargetsOptions, list(args), "bench.tables.targets"))
    except ValueError as error:
        sys.exit(f"bench.tables.targets: {error}")


if __name__ == "__main__":
    targets_command(sys.argv[1:])

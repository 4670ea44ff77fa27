"""Records -> Markdown and CSV, and the blocks of the README that show them. No number here comes from anywhere else."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.record import table as markdown_table
from bench.rows import Benchmark, Row, Table
from bench.statistics import GROUPS, Paired, Spread, paired, spread

Record = Mapping[str, Any]
Quantity = Callable[[Record], float | None]  # of a network's scores
END = "<!-- /results -->"


@dataclass(frozen=True)
class Line:
    """A row with its records by seed, and the line it is compared with."""

    row: Row
    records: Mapping[int, Record]
    against: "Line | None"

    def values(self, quantity: Quantity, network: str = "student") -> dict[int, float]:
        found = {seed: quantity(record[network]) for seed, record in self.records.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def spread(self, quantity: Quantity, network: str = "student") -> Spread | None:
        values = self.values(quantity, network)
        return spread(list(values.values())) if values else None

    def difference(self, quantity: Quantity, network: str = "student") -> Paired | None:
        if self.against is None:
            return None
        return paired(self.values(quantity, network), self.against.values(quantity, network))


@dataclass(frozen=True)
class Result:
    """All that is known of a table."""

    name: str  # of the table
    table: Table
    setting: str  # name of the benchmark
    benchmark: Benchmark
    split: str
    lines: tuple[Line, ...]
    warm: Mapping[int, Record]  # of the shared start, scored on its own source
    stale: tuple[str, ...]  # records of other options, which are not shown

    @property
    def records(self) -> list[Record]:
        return [record for line in self.lines for record in line.records.values()]

    @property
    def marker(self) -> str:
        return f"{self.setting}-{self.name}"

    @property
    def toy(self) -> bool:
        return self.benchmark.src.startswith("toy")


def mean_iou(classes: int) -> Quantity:
    return lambda scores: scores["mIoU"][str(classes)]


def class_iou(name: str) -> Quantity:
    return lambda scores: scores["IoU"][name]


def group_iou(names: tuple[str, ...]) -> Quantity:
    """Mean IoU of the group; None where one of its classes has none."""

    def quantity(scores: Record) -> float | None:
        values = [scores["IoU"][name] for name in names]
        return None if None in values else sum(values) / len(values)

    return quantity


def quantities(result: Result) -> dict[str, Quantity]:
    """Everything that is reported, the headline first."""
    counts = [result.benchmark.classes, *(n for n in (19, 16, 13) if n != result.benchmark.classes)]
    classes = result.records[0]["student"]["IoU"]
    return (
        {f"mIoU {n}": mean_iou(n) for n in counts}
        | {name: group_iou(group) for name, group in GROUPS.items()}
        | {name: class_iou(name) for name in classes}
    )


# ---- Markdown ------------------------------------------------------------------------------------------------------


def headline(result: Result) -> str:
    """What was measured, the table of means, and where the numbers come from."""
    return "\n\n".join(
        part
        for part in (
            f"### {result.table.title}: {result.benchmark.title}",
            _caption(result),
            _main_table(result),
            result.table.note,
            _provenance(result),
        )
        if part
    )


def page(result: Result) -> str:
    """The headline, then groups of classes and classes."""
    every = quantities(result)
    rows = [[name, *(_cell(line, quantity) for line in result.lines)] for name, quantity in every.items()]
    note = (
        "IoU by class and by group, mean over seeds, in brackets the difference and half of its 95 % interval; "
        f"**bold** where the interval leaves 0 out. Of the {len(rows)} intervals in a column one in twenty does so by "
        "chance."
    )
    details = markdown_table(["", *(line.row.label for line in result.lines)], rows)
    return f"{headline(result)}\n\n{note}\n\n{details}\n"


def _caption(result: Result) -> str:
    records = result.records
    seeds = sorted({record["seed"] for record in records})
    images = " or ".join(sorted({str(record["images"]) for record in records}))
    steps = " or ".join(f"{step:,}".replace(",", " ") for step in sorted({record["step"] for record in records}))
    warm = f" after {result.benchmark.warm_steps} shared steps on the source alone" if result.warm else ""
    toy = "**Toy numbers**, not to be compared with published ones. " if result.toy else ""
    compared = "the row above" if result.table.against == "above" else "DIDA as the recipe has it"
    text = (
        f"{toy}mIoU over {result.benchmark.classes} classes in percent, {result.split} split ({images} images), "
        f"student of the last checkpoint ({steps} steps{warm}), {len(seeds)} seed{'s' * (len(seeds) != 1)} "
        f"({_ranges(seeds)}): mean ± standard deviation. The difference to {compared} is paired by seed and has its "
        "95 % t interval; it is not resolved where that holds 0."
    )
    if result.warm:
        own = spread([mean_iou(19)(record["student"]) for record in result.warm.values()])
        text += f" The shared start reaches {_mean(own)} on new pictures of its own source."
    return text


def _main_table(result: Result) -> str:
    headline = mean_iou(result.benchmark.classes)
    paper = "gta5" if result.toy else result.setting
    data = {"gta5": "GTA5", "synthia": "SYNTHIA"}[paper]
    rows = [
        [
            line.row.label,
            _mean(line.spread(headline)),
            *_difference_cells(line, line.difference(headline)),
            _mean(line.spread(headline, "teacher")),
            str(len(line.records)),
            line.row.paper.get(paper, "–"),
        ]
        for line in result.lines
    ]
    head = ["", "mIoU", "difference (95 %)", "seeds above", "resolved", "teacher's mIoU", "seeds"]
    return markdown_table([*head, f"paper, real data ({data})"], rows)


def _difference_cells(line: Line, difference: Paired | None) -> list[str]:
    if difference is None:
        return ["–", "–", "–"]
    if difference.n == 1:
        return [f"{difference.mean:+.2f}", f"{difference.above}/1", "not resolved (one seed)"]
    interval = f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
    return [interval, f"{difference.above}/{difference.n}", "yes" if difference.resolved else "not resolved"]


def _cell(line: Line, quantity: Quantity) -> str:
    found, difference = line.spread(quantity), line.difference(quantity)
    if found is None:
        return "–"
    if difference is None or difference.n == 1:
        return f"{found.mean:.1f}"
    bold = "**" if difference.resolved else ""
    return f"{found.mean:.1f} ({bold}{difference.mean:+.1f} ± {difference.half_width:.1f}{bold})"


def _mean(found: Spread | None) -> str:
    if found is None:
        return "–"
    return f"{found.mean:.2f} ± {found.std:.2f}" if found.n > 1 else f"{found.mean:.2f}"


def _provenance(result: Result) -> str:
    records = [*result.records, *result.warm.values()]
    made = sorted({record["commit"] + (" with uncommitted changes" * record["dirty"]) for record in records})
    machines = sorted(
        {
            f"{record['scored'].get('gpu') or record['scored']['cpu']}, torch {record['scored']['torch']}"
            + (f", {record['threads']} thread{'s' * (record['threads'] != 1)} a run" if not _gpu(record) else "")
            for record in records
        }
    )
    hours = sum(record["minutes"] for record in records) / 60
    lines = [f"Commit {'; '.join(made)}. Machine: {'; '.join(machines)}; {hours:.1f} hours of training in all."]
    if result.stale:
        lines.append(f"Not shown, because their options are no longer those of the recipes: {', '.join(result.stale)}.")
    return " ".join(lines)


def _gpu(record: Record) -> bool:
    return record["scored"]["device"] == "cuda"


def _ranges(seeds: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    starts = [seed for seed in seeds if seed - 1 not in seeds]
    ends = [seed for seed in seeds if seed + 1 not in seeds]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


# ---- CSV -----------------------------------------------------------------------------------------------------------

COLUMNS = (
    "table", "row", "label", "split", "network", "quantity", "mean", "std", "seeds", "against", "difference", "low",
    "high", "paired_seeds", "seeds_above", "resolved", "paper_real_data",
)  # fmt: skip


def as_csv(result: Result) -> str:
    """One line per row, network and quantity, with all digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_csv_lines(result))
    return text.getvalue()


def _csv_lines(result: Result) -> Iterator[dict[str, Any]]:
    paper = "gta5" if result.toy else result.setting
    headline = f"mIoU {result.benchmark.classes}"
    for line in result.lines:
        for network in ("student", "teacher"):
            for name, quantity in quantities(result).items():
                found = line.spread(quantity, network)
                if found is None:
                    continue
                printed = line.row.paper.get(paper, "") if (network, name) == ("student", headline) else ""
                yield {
                    "table": result.marker,
                    "row": line.row.name,
                    "label": line.row.label,
                    "split": result.split,
                    "network": network,
                    "quantity": name,
                    "mean": round(found.mean, 4),
                    "std": round(found.std, 4) if found.n > 1 else "",
                    "seeds": found.n,
                    "paper_real_data": printed,
                } | _csv_difference(line, line.difference(quantity, network))


def _csv_difference(line: Line, difference: Paired | None) -> dict[str, Any]:
    if difference is None:
        return {}
    known = difference.n > 1
    return {
        "against": line.against.row.name,
        "difference": round(difference.mean, 4),
        "low": round(difference.low, 4) if known else "",
        "high": round(difference.high, 4) if known else "",
        "paired_seeds": difference.n,
        "seeds_above": difference.above,
        "resolved": "yes" if difference.resolved else "no",
    }


# ---- README --------------------------------------------------------------------------------------------------------


def replaced(text: str, marker: str, block: str) -> str:
    """`text` with what stands between `<!-- results:MARKER -->` and the next `<!-- /results -->` replaced.

    Raises ValueError if one of the two is missing, or the first is there twice.
    """
    start = f"<!-- results:{marker} -->"
    before, found, after = text.partition(start)
    if not found or start in after:
        raise ValueError(f"expected one line {start}, found {text.count(start)}")
    old, found, after = after.partition(END)
    if not found or "<!-- results:" in old:
        raise ValueError(f"expected a line {END} after {start}")
    return f"{before}{start}\n{block.strip()}\n{END}{after}"

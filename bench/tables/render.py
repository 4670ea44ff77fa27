"""A comparison as Markdown, as CSV and as a block of the README. No number here comes from anywhere but records."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from bench.record import NONE
from bench.record import table as markdown_table
from bench.tables.comparison import Comparison, Line, Quantity
from bench.tables.seeds import Paired, Spread, spread
from dida.evaluate import BAND

PAPER_SOURCES = {"gta5": "GTA5", "synthia": "SYNTHIA"}  # of the paper's numbers

# ---- Markdown ------------------------------------------------------------------------------------------------------


def summary(found: Comparison) -> str:
    """What was measured, the table of means, and where the numbers come from."""
    title = f"### {found.table.title}: {found.setting.benchmark.title}, {found.setting.split}"
    parts = (title, _caption(found), _main_table(found), found.table.note, _provenance(found))
    return "\n\n".join(part for part in parts if part)


def page(found: Comparison) -> str:
    """The summary, then every group of classes and every class."""
    head = ["", *(line.row.label for line in found.lines)]
    rows = [[name, *(_cell(line, q) for line in found.lines)] for name, q in found.quantities.items()]
    if not found.toy:
        printed = [line.row for line in found.lines if line.row.paper]
        head += [f"paper: {row.label}" for row in printed]
        for row in rows:
            row += [_or_none(found.paper(of_paper, row[0])) for of_paper in printed]
    note = (
        "By class and by group, mean over seeds, in brackets the paired difference and half of its 95 % interval; "
        f"**bold** where the interval leaves 0 out. Of the {len(rows)} intervals in a column one in twenty does so by "
        f"chance. The boundary band is every pixel within {BAND} pixels of another class."
    )
    picture = f"![the curve]({found.file}.png)\n\n" if found.table.sweeps else ""
    return f"{summary(found)}\n\n{picture}{note}\n\n{markdown_table(head, rows)}\n"


def _caption(found: Comparison) -> str:
    benchmark, records = found.setting.benchmark, found.records
    seeds = sorted({record["seed"] for record in records})
    images = " or ".join(sorted({str(record["images"]) for record in records}))
    steps = f"{benchmark.branch_steps:,} steps".replace(",", " ")
    if benchmark.warm_steps:
        steps += f", branched off {benchmark.warm_steps} shared ones on the source alone"
        if any(not line.row.warm for line in found.lines):
            steps += "; the oracle trains for as many from scratch"
    compared = f"{found.table.against.label} as the recipe has it" if found.table.against else "the row above"
    return (
        ("**Toy numbers**, not to be compared with published ones. " if found.toy else "")
        + f"mIoU over {benchmark.classes} classes in percent on {found.setting.split} ({images} images), student of "
        f"the last checkpoint ({steps}), mean ± standard deviation over {len(seeds)} seed{'s' * (len(seeds) != 1)} "
        f"({_ranges(seeds)}). The difference to {compared} is paired by seed and comes with its 95 % t interval; it is "
        "not resolved where that holds 0." + _warm_start(found) + (f" {benchmark.note}" if benchmark.note else "")
    )


def _warm_start(found: Comparison) -> str:
    if not found.warm:
        return ""
    own = spread([record["student"]["mIoU"]["19"] for record in found.warm.values()])
    return f" The shared start reaches {_mean(own)} on other pictures of its own source."


def _main_table(found: Comparison) -> str:
    quantity = found.quantities[found.headline]
    head = ["", "mIoU", "difference (95 %)", "seeds above", "resolved", "teacher's mIoU", "seeds"]
    rows = [
        [
            line.row.label,
            _mean(line.spread(quantity)),
            *_difference_cells(line, line.difference(quantity)),
            _mean(line.spread(quantity, "teacher")),
            len(line.records),
            _or_none(found.paper(line.row, found.headline)),
        ]
        for line in found.lines
    ]
    return markdown_table([*head, f"paper, real data ({PAPER_SOURCES[found.paper_data]})"], rows)


def _difference_cells(line: Line, difference: Paired | None) -> list[str]:
    if difference is None:
        return [NONE, NONE, NONE]
    signs = f"{difference.above}/{difference.n}"
    if difference.n == 1:
        return [f"{difference.mean:+.2f}", signs, "not resolved (one seed)"]
    interval = f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
    return [interval, signs, "yes" if difference.resolved else "not resolved"]


def _cell(line: Line, quantity: Quantity) -> str:
    mean, difference = line.spread(quantity), line.difference(quantity)
    if mean is None:
        return NONE
    if difference is None or difference.n == 1:
        return f"{mean.mean:.1f}"
    bold = "**" if difference.resolved else ""
    return f"{mean.mean:.1f} ({bold}{difference.mean:+.1f} ± {difference.half_width:.1f}{bold})"


def _mean(found: Spread | None) -> str:
    if found is None:
        return NONE
    return f"{found.mean:.2f} ± {found.std:.2f}" if found.n > 1 else f"{found.mean:.2f}"


def _or_none(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def _provenance(found: Comparison) -> str:
    records = [*found.records, *found.warm.values()]
    commits = sorted({commit for record in records for commit in record["commit"].split("+")})
    dirty = " with uncommitted changes" if any(record["dirty"] for record in records) else ""
    machines = sorted({_machine(record) for record in records})
    hours = sum(record["minutes"] for record in records) / 60
    text = f"Commit {', '.join(commits)}{dirty}. {'; '.join(machines)}; {hours:.1f} hours of training in all."
    if found.stale:
        text += f" Not shown, because their options are no longer those of the recipes: {', '.join(found.stale)}."
    return text


def _machine(record: dict[str, Any]) -> str:
    scored, threads = record["scored"], record["threads"]
    if scored["device"] == "cuda":
        return f"{scored['gpu']}, torch {scored['torch']}"
    return f"{scored['cpu']}, {threads} thread{'s' * (threads != 1)} a run, torch {scored['torch']}"


def _ranges(seeds: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    starts = [seed for seed in seeds if seed - 1 not in seeds]
    ends = [seed for seed in seeds if seed + 1 not in seeds]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


# ---- CSV -----------------------------------------------------------------------------------------------------------

CSV_COLUMNS = (
    "benchmark", "table", "split", "row", "label", "network", "quantity", "mean", "std", "seeds", "against",
    "difference", "low", "high", "paired_seeds", "seeds_above", "resolved", "paper_real_data",
)  # fmt: skip


def as_csv(found: Comparison) -> str:
    """One line per row, network and quantity, with all digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in found.lines:
        for network in ("student", "teacher"):
            writer.writerows(_csv_lines(found, line, network))
    return text.getvalue()


def _csv_lines(found: Comparison, line: Line, network: str) -> Iterator[dict[str, Any]]:
    for name, quantity in found.quantities.items():
        mean = line.spread(quantity, network)
        if mean is None:
            continue
        yield {
            "benchmark": found.setting.name,
            "table": found.name,
            "split": found.setting.split,
            "row": line.row.name,
            "label": line.row.label,
            "network": network,
            "quantity": name,
            "mean": round(mean.mean, 4),
            "std": round(mean.std, 4) if mean.n > 1 else None,
            "seeds": mean.n,
            "paper_real_data": found.paper(line.row, name) if network == "student" else None,
            **_csv_difference(line, line.difference(quantity, network)),
        }


def _csv_difference(line: Line, difference: Paired | None) -> dict[str, Any]:
    if difference is None:
        return {}
    known = difference.n > 1
    return {
        "against": line.against.row.name,
        "difference": round(difference.mean, 4),
        "low": round(difference.low, 4) if known else None,
        "high": round(difference.high, 4) if known else None,
        "paired_seeds": difference.n,
        "seeds_above": difference.above,
        "resolved": "yes" if difference.resolved else "no",
    }

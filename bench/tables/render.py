"""A comparison as Markdown, as CSV and as blocks of pages. No number here comes from anywhere but records."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from bench.record import NONE, UNKNOWN, replaced, start_of
from bench.record import table as markdown_table
from bench.tables.comparison import Comparison, Line, Quantity
from bench.tables.seeds import Paired, Spread, spread
from dida.use.evaluate import BAND

PAPER_SOURCES = {"gta5": "GTA5", "synthia": "SYNTHIA"}  # of the paper's numbers

# ---- Markdown ------------------------------------------------------------------------------------------------------


def summary(found: Comparison) -> str:
    """A table that stands alone: what all tables share is said with it."""
    return f"{_title(found)}\n\n{caption(found)}\n\n{_body(found)}"


def section(found: Comparison) -> str:
    """A table of a page that has the caption elsewhere, once."""
    return f"{_title(found)}\n\n{_body(found)}"


def _title(found: Comparison) -> str:
    return f"### {found.table.title}: {found.setting.benchmark.title}, {found.setting.split}"


def _body(found: Comparison) -> str:
    """Which seeds, the table of means, and where the numbers come from."""
    parts = (_seeds(found), _main_table(found), found.table.note, _guests(found), provenance(found))
    return "\n\n".join(part for part in parts if part)


def filled(text: str, found: Comparison) -> str:
    """A page with its block of this table replaced, and its caption if it has one. Raises as `replaced`."""
    shared = (
        f"{found.setting.name}-caption" if found.reported else f"{found.setting.name}-caption_{found.setting.split}"
    )
    if start_of(shared) not in text:
        return replaced(text, found.block, summary(found))
    return replaced(replaced(text, found.block, section(found)), shared, caption(found))


def page(found: Comparison) -> str:
    """The summary, then every group of classes and every class."""
    head = ["", *(_label(found, line) for line in found.lines)]
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


def caption(found: Comparison) -> str:
    """What all tables of a benchmark and a split share."""
    benchmark = found.setting.benchmark
    images = " or ".join(sorted({str(record["images"]) for record in found.records}))
    steps = f"{benchmark.branch_steps:,} steps".replace(",", " ")
    if benchmark.warm_steps:
        steps += f", branched off {benchmark.warm_steps} shared ones on the source alone; an oracle trains for as many "
        steps += "from scratch"
    parts = [
        "**Toy numbers**, not to be compared with published ones." if found.toy else "",
        f"mIoU over {benchmark.classes} classes in percent on {found.setting.split} ({images} images), student of the "
        f"last checkpoint ({steps}), mean ± standard deviation over seeds.",
        "A difference is paired by seed and comes with its 95 % t interval; it is not resolved where that holds 0.",
        "The intervals are over seeds on one data set: they say what other seeds would give here, and nothing of other "
        "pictures. And there are many of them: where nothing differs, one in twenty leaves 0 out by chance.",
        "A table shows what one state of the source trained, by commit and digest.",
        benchmark.note,
    ]
    return " ".join(part for part in parts if part)


def _seeds(found: Comparison) -> str:
    seeds = sorted({record["seed"] for record in found.records})
    compared = f"{found.table.against.label} as the recipe has it" if found.table.against else "the row above"
    for line in found.lines:
        if line.row.over and line.against is not None:
            compared += f", of “{line.row.label}” to {line.against.row.label}"
    many = f"{len(seeds)} seed{'s' * (len(seeds) != 1)} ({_ranges(seeds)}); differences are to {compared}."
    return many + _warm_start(found)


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
            _label(found, line),
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
        return [NONE if line.comparable else "not comparable", NONE, NONE]
    signs = f"{difference.above}/{difference.n}"
    if difference.n == 1:
        return [f"{difference.mean:+.2f}", signs, "not resolved (one seed)"]
    interval = f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
    if line.digest == UNKNOWN:
        return [interval, signs, "source unknown"]
    return [interval, signs, "yes" if line.resolved(difference) else "not resolved"]


def _label(found: Comparison, line: Line) -> str:
    return f"{line.row.label} †" if line in found.guests else line.row.label


def _cell(line: Line, quantity: Quantity) -> str:
    mean, difference = line.spread(quantity), line.difference(quantity)
    if mean is None:
        return NONE
    if difference is None or difference.n == 1:
        return f"{mean.mean:.1f}"
    bold = "**" if line.resolved(difference) else ""
    return f"{mean.mean:.1f} ({bold}{difference.mean:+.1f} ± {difference.half_width:.1f}{bold})"


def _mean(found: Spread | None) -> str:
    if found is None:
        return NONE
    return f"{found.mean:.2f} ± {found.std:.2f}" if found.n > 1 else f"{found.mean:.2f}"


def _or_none(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def _guests(found: Comparison) -> str:
    """A line for the rows that another source trained."""
    if not found.guests:
        return ""
    records = [record for line in found.guests for record in line.records.values()]
    return f"† Trained by another source, and so not comparable with the rest: {_source(records)}."


def provenance(found: Comparison) -> str:
    own = [line for line in found.lines if line not in found.guests]
    records = [*(record for line in own for record in line.records.values()), *found.warm.values()]
    machines = sorted({_machine(record) for record in records})
    hours = sum(record["minutes"] for record in records) / 60
    text = f"C{_source(records)[1:]}. {'; '.join(machines)}; {hours:.1f} hours of training in all."
    if found.setting.digest == UNKNOWN:
        text += (
            " These records are older than digests of the source: rows may be of different code, so no difference is "
        )
        text += "called resolved."
    if found.stale:
        text += f" Not shown, because their options are no longer those of the recipes: {', '.join(found.stale)}."
    return text


def _source(records: Sequence[dict[str, Any]]) -> str:
    """Commits and digests of records."""
    named = {part for record in records for part in record["commit"].split("+")}
    commits = ", ".join(sorted(named - {"changes"})) + (" with uncommitted changes" if "changes" in named else "")
    digests = sorted({record["digest"] for record in records})
    if digests == [UNKNOWN]:
        return f"commit {commits}; source unknown"
    return f"commit {commits}; source {', '.join(digests)}"


def _machine(record: dict[str, Any]) -> str:
    scored, threads = record["environment"]["scored"], record["environment"]["trained"]["threads"]
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
    "difference", "low", "high", "paired_seeds", "seeds_above", "resolved", "paper_real_data", "digest",
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
            "digest": line.digest,
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
        "resolved": "yes" if line.resolved(difference) else "no",
    }

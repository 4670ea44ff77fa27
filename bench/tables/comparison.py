"""The records of a table, line by line, and what each line is compared with.

A table shows what one state of the source trained. Where that has no record of a row, the row shows those of another
state, says so, and is compared with nothing: a difference would be one of code as much as of methods. For the same
reason no difference is called resolved between records that do not know what trained them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.record import UNKNOWN
from bench.tables.rows import TABLES, WARM, Row, Table
from bench.tables.seeds import CLASS_GROUPS, Paired, Spread, paired, spread
from bench.tables.trainings import Scoring, Setting, Training, machine_of
from dida.use.paper import CLASS_IOU

Record = Mapping[str, Any]
Quantity = Callable[[Record], float | None]  # of a network's scores


@dataclass(frozen=True)
class Line:
    """A row with its records by seed, and the line it is compared with."""

    row: Row
    records: Mapping[int, Record]
    against: "Line | None" = None

    def values(self, quantity: Quantity, network: str = "student") -> dict[int, float]:
        found = {seed: quantity(record[network]) for seed, record in self.records.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def spread(self, quantity: Quantity, network: str = "student") -> Spread | None:
        values = self.values(quantity, network)
        return spread(list(values.values())) if values else None

    @property
    def digest(self) -> str | None:
        """Of the source that trained this row; None without a record."""
        return next((record["digest"] for record in self.records.values()), None)

    @property
    def comparable(self) -> bool:
        """Whether one source trained this line and the one that it is compared with, as far as they have records."""
        return self.against is None or len({self.digest, self.against.digest} - {None}) < 2

    def resolved(self, difference: Paired | None) -> bool:
        """Whether a difference of this line is clear, and one of methods: the same code trained both."""
        return difference is not None and difference.resolved and self.digest != UNKNOWN

    def difference(self, quantity: Quantity, network: str = "student") -> Paired | None:
        """Over the seeds that both have from one kind of machine: another one rounds otherwise, from the start on."""
        if self.against is None or not self.comparable:
            return None
        values, others = self.values(quantity, network), self.against.values(quantity, network)
        pairs = {
            seed
            for seed in values.keys() & others.keys()
            if machine_of(self.records[seed]) == machine_of(self.against.records[seed])
        }
        return paired({seed: values[seed] for seed in pairs}, others)


@dataclass(frozen=True)
class Comparison:
    """All that is known of a table."""

    name: str  # of the table
    table: Table
    setting: Setting  # with the digest of the source that is shown
    lines: tuple[Line, ...]
    warm: Mapping[int, Record]  # of the shared start, scored on its own source
    stale: tuple[str, ...]  # records of that source and other options, which are not shown

    @property
    def records(self) -> list[Record]:
        return [record for line in self.lines for record in line.records.values()]

    @property
    def guests(self) -> list[Line]:
        """Lines of another source than the table's."""
        return [line for line in self.lines if line.digest not in (None, self.setting.digest)]

    @property
    def toy(self) -> bool:
        return self.setting.benchmark.src.startswith("toy")

    @property
    def reported(self) -> bool:
        """Whether this is the split that is reported; on another one choices were made."""
        return self.setting.split == self.setting.benchmark.reported

    @property
    def file(self) -> str:
        """Name of what is rendered, without its ending."""
        return self.name if self.reported else f"{self.name}_{self.setting.split}"

    @property
    def block(self) -> str:
        """Name of its place in a page."""
        return f"{self.setting.name}-{self.file}"

    @property
    def headline(self) -> str:
        """The quantity that a table is about."""
        return f"mIoU {self.setting.benchmark.classes}"

    @property
    def quantities(self) -> dict[str, Quantity]:
        """Everything that is reported, the headline first."""
        first = self.setting.benchmark.classes
        return (
            {f"mIoU {n}": _mean_iou(n) for n in (first, *(n for n in (19, 16, 13) if n != first))}
            | {name: _group_iou(group) for name, group in CLASS_GROUPS.items()}
            | {f"boundary band, mIoU {first}": _band_mean_iou(first)}
            | {name: _group_iou((name,)) for name in self.records[0]["student"]["IoU"]}
        )

    @property
    def paper_data(self) -> str:
        """The benchmark whose numbers in the paper are shown beside ours."""
        return "gta5" if self.toy else self.setting.name

    def paper(self, row: Row, quantity: str) -> float | None:
        """The number that the paper prints for this row."""
        if quantity == ("mIoU 16" if self.paper_data == "synthia" else "mIoU 19"):
            return row.paper.get(self.paper_data)
        return CLASS_IOU[self.paper_data].get(row.printed or row.name, {}).get(quantity)


def collect(name: str, setting: Setting, seeds: Sequence[int], digest: str | None = None) -> Comparison:
    """The records of a table: those of the source `digest`, by default of the one that knows most of the table.

    Raises ValueError if there is none.
    """
    rows = (*rows_of(name, setting), WARM)
    sources = {source.digest: {row.name: _records(source, row, seeds) for row in rows} for source in _sources(setting)}
    if digest is not None and digest not in sources:
        known = ", ".join(sorted(sources)) or "none"
        raise ValueError(f"--digest {digest}: there are no records of it in {setting.records}; of these: {known}")
    order = sorted(sources, key=lambda key: (key == digest, *_known(name, setting, sources[key])), reverse=True)
    setting = replace(setting, digest=order[0]) if order else setting
    # What the first source does not have comes from the next one that does.
    found = {row.name: next(filter(None, (sources[key][row.name] for key in order)), {}) for row in rows}
    lines = tuple(_lines(name, setting, found))
    warm = sources[order[0]][WARM.name] if order and setting.benchmark.warm_steps else {}
    stale = tuple(
        scoring.name
        for line in lines
        for seed in seeds
        if seed not in line.records and (scoring := Scoring(Training(setting, line.row, seed))).path.exists()
    )
    comparison = Comparison(name, TABLES[name], setting, lines, warm, stale)
    if not comparison.records:
        raise ValueError(
            f"no record of table {name} for seeds {', '.join(map(str, seeds))} in {setting.records}"
            + (f"; of other options: {', '.join(stale)}" if stale else "")
        )
    return comparison


def _sources(setting: Setting) -> list[Setting]:
    """The setting once for every source that has records."""
    folders = sorted(setting.records.iterdir()) if setting.records.exists() else []
    return [replace(setting, digest=folder.name) for folder in folders]


def _known(name: str, setting: Setting, found: Mapping[str, dict[int, Record]]) -> tuple[int, int, str]:
    """How much a source knows of a table: the seeds that all rows have, its records, and when one was last added."""
    rows = [found[row.name] for row in rows_of(name, setting)]
    dates = [record["environment"]["scored"]["date"] for records in rows for record in records.values()]
    return len(set.intersection(*map(set, rows))), len(dates), max(dates, default="")


def rows_of(name: str, setting: Setting) -> tuple[Row, ...]:
    """The rows of a table, with the one that they are compared with in front where it is none of them."""
    table = TABLES[name]
    if table.against and not any(_same(row, table.against, setting) for row in table.rows):
        return (table.against, *table.rows)
    return table.rows


def _lines(name: str, setting: Setting, found: Mapping[str, dict[int, Record]]) -> Iterator[Line]:
    rows, above = rows_of(name, setting), None
    if common := TABLES[name].against:
        reference = next(row for row in rows if _same(row, common, setting))
        above = Line(reference, found[reference.name])
        for row in rows:
            yield above if row == reference else Line(row, found[row.name], above)
        return
    by_name: dict[str, Line] = {}
    for row in rows:
        compared = by_name[row.over] if row.over else above if row.paired else None
        above = by_name[row.name] = Line(row, found[row.name], compared)
        yield above


def _same(row: Row, other: Row, setting: Setting) -> bool:
    """Whether a row spells out what another one's recipe has anyway."""
    return not (row.gone or other.gone) and Training(setting, row, 0).options == Training(setting, other, 0).options


def _records(setting: Setting, row: Row, seeds: Sequence[int]) -> dict[int, Record]:
    found = {seed: Scoring(Training(setting, row, seed)).record() for seed in seeds}
    return {seed: record for seed, record in found.items() if record is not None}


def _mean_iou(classes: int) -> Quantity:
    return lambda scores: scores["mIoU"][str(classes)]


def _band_mean_iou(classes: int) -> Quantity:
    """Of the pixels near class boundaries; None of a record that was scored before eval.py looked at them."""
    return lambda scores: scores["band"]["mIoU"][str(classes)] if "band" in scores else None


def _group_iou(names: tuple[str, ...]) -> Quantity:
    """Mean IoU of the group; None where one of its classes has none."""

    def quantity(scores: Record) -> float | None:
        values = [scores["IoU"][name] for name in names]
        return None if None in values else sum(values) / len(values)

    return quantity

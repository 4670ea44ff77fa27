"""results.json, read: each number by what it is of, None where it was not measured. Nothing is calculated twice.

Minutes on a GPU come in pieces, and a fix is measured again alone: of several files the later has the word on every
stage that it reached, and which source a stage is of is kept with it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.gpu.ledger import DONE, FORMAT, NOT_REACHED
from dida.machine.files import read_json

OURS = ("cuda", "triton")  # the backends that are kernels of a GPU
EAGER, COMPILED = "equation", "torch.compile"

MACHINE = ("gpu", "torch", "triton", "cuda")  # of a header: what results must share to stand in one table
SOURCE = ("commit", "digest", "date")  # ... and what a stage is of

Row = dict[str, Any]


def _content(path: Path) -> dict[str, Any]:
    content = read_json(path)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path}: expected results of format {FORMAT}, found {found!r}")
    return content


class Measurements:
    """What a command brought back; of an empty one nothing was measured."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    @classmethod
    def read(cls, *paths: Path) -> "Measurements":
        """One file, or several of one machine; of a stage that several reached the one named last has the word.

        Raises OSError, or ValueError for a file that is none of ours or of another machine than the first.
        """
        read = [cls(_content(path)) for path in paths]
        for path, one in zip(paths, read, strict=True):
            if other := [name for name in MACHINE if one.header.get(name) != read[0].header.get(name)]:
                raise ValueError(f"{path}: its {', '.join(other)} differ from those of {paths[0]}: keep them apart")
        stages, found = {}, {}
        for one in read:
            for name, stage in one.stages.items():
                if stage["outcome"] != NOT_REACHED or name not in stages:
                    stages[name] = stage | ({"source": one.source_of(name)} if len(read) > 1 else {})
                    found[name] = one.found(name)
        return cls(read[-1].content | {"stages": stages, "found": {name: x for name, x in found.items() if x}})

    @property
    def stages(self) -> dict[str, Row]:
        return self.content.get("stages", {})

    @property
    def header(self) -> dict[str, Any]:
        """Where, when and from what; empty if that is all that failed."""
        return self.found("facts").get("header", {})

    @property
    def card(self) -> str | None:
        """As the driver names it."""
        return self.header.get("gpu")

    def found(self, stage: str) -> dict[str, Any]:
        return self.content.get("found", {}).get(stage, {})

    def source_of(self, stage: str) -> dict[str, Any]:
        """Commit, digest and date of what was measured."""
        return self.stages.get(stage, {}).get("source") or {part: self.header.get(part) for part in SOURCE}

    def ended_well(self, stage: str) -> bool:
        return self.stages.get(stage, {}).get("outcome") == DONE

    def rows(self, stage: str) -> list[Row]:
        return self.found(stage).get("rows", [])

    # ---- the ops ---------------------------------------------------------------------------------------------------

    def op_rows(self) -> Iterator[Row]:
        for stage in self.op_stages():
            yield from self.rows(stage)

    def op_stages(self) -> list[str]:
        return [stage for stage in self.content.get("found", {}) if stage.startswith("bench-")]

    def op_row(self, op: str, dtype: str, slots: int, way: str | tuple[str, ...], how: str) -> Row | None:
        """How: launched or replayed."""
        ways = (way,) if isinstance(way, str) else way
        for row in self.op_rows():
            if (row["op"], row["dtype"], row["K"], row["how"]) == (op, dtype, slots, how) and row["way"] in ways:
                return row
        return None

    def times_ours(self, row: Row, way: str) -> float | None:
        """How many times as long as ours another way takes, in the same dtype, at the same K, timed in the same way."""
        other = self.op_row(row["op"], row["dtype"], row["K"], way, row["how"])
        return other["median"] / row["median"] if other and other["median"] and row["median"] else None

    def floor_ms(self, row: Row) -> float | None:
        """What the op takes at least on this card; see `bench.gpu.report.with_floors`."""
        for one in self.content.get("floors", []):
            if (one["op"], one["dtype"], one["K"]) == (row["op"], row["dtype"], row["K"]):
                return one["floor_ms"]
        return None

    def parts(self) -> Iterator[Row]:
        """Of every timed call of ours its kernels, with what each takes on the device."""
        for stage in self.op_stages():
            yield from self.found(stage).get("parts", [])

    # ---- the step --------------------------------------------------------------------------------------------------

    def variant(self, name: str) -> Row | None:
        """A row of the stage step-variants that has numbers."""
        return next((row for row in self.rows("step-variants") if row["name"] == name and not row["why"]), None)

    # ---- what is right ---------------------------------------------------------------------------------------------

    def red(self, stage: str) -> list[str]:
        """Tests that failed."""
        return [name for name, outcome in self.found(stage).get("tests", {}).items() if outcome == "failed"]

    def findings(self) -> list[str]:
        """What compute-sanitizer found."""
        return [name for name, said in self.found("sanitizer").get("found", {}).items() if said != "clean"]

"""results.json, read: each number by what it is of, None where it was not measured. Nothing is calculated twice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.gpu.ledger import DONE, FORMAT

OURS = ("cuda", "triton")  # the backends that are kernels of a GPU
EAGER, COMPILED = "equation", "torch.compile"

Row = dict[str, Any]


class Measurements:
    """What a command brought back; of an empty one nothing was measured."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    @classmethod
    def read(cls, path: Path) -> "Measurements":
        """Raises OSError, or ValueError for a file that is none of ours."""
        content = json.loads(path.read_text())
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise ValueError(f"{path}: expected results of format {FORMAT}, found {found!r}")
        return cls(content)

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

    def ended_well(self, stage: str) -> bool:
        return self.stages.get(stage, {}).get("outcome") == DONE

    def rows(self, stage: str) -> list[Row]:
        return self.found(stage).get("rows", [])

    # ---- the ops ---------------------------------------------------------------------------------------------------

    def op_rows(self) -> Iterator[Row]:
        for stage in self.content.get("found", {}):
            if stage.startswith("bench-"):
                yield from self.rows(stage)

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

"""What is wanted of a GPU: the one table of targets, each with the number that answers it.

Kernels: two crops of 512 x 512, D = 256, C = 19, bfloat16, on an H100 or H200; eager and torch.compile of the same
input type, timed in the same manner, in the same process. The step: MiT-B5 at 2 + 2 crops of 512 x 512.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.gpu.measurements import COMPILED, EAGER, OURS, Measurements, Row
from dida.precision import PRECISIONS

MET, MISSED, NOT_MEASURED = "met", "MISSED", "not measured"
BRANCH = ("instance_loss", "class_similarity")  # the two calls of a step that know the bank
Find = Callable[[Measurements], float | None]

# Milliseconds of a step on the GPU, calculated from counted FLOPs and bytes before any was measured.
PREDICTED = {
    "H100": {"TF32": 74, "bfloat16": 60},
    "H200": {"TF32": 60, "bfloat16": 51},
    "RTX 3090": {"TF32": 350, "bfloat16": 212},
}
OFF_BY = 0.4  # of itself, which a prediction was said to be


@dataclass(frozen=True)
class Goal:
    """A number between `low` and `high`; where both are None, it was wanted for itself."""

    text: str
    unit: str
    find: Find
    stages: tuple[str, ...]  # where it comes from
    low: float | None = None
    high: float | None = None

    def number(self, measured: Measurements) -> float | None:
        """What was measured of it; what a CPU measured, to try the command, is of nothing."""
        return None if measured.card is None else self.find(measured)

    def judge(self, measured: Measurements) -> str:
        """met, MISSED or not measured."""
        value = self.number(measured)
        if value is None:
            return NOT_MEASURED
        above = self.low is None or value >= self.low
        return MET if above and (self.high is None or value <= self.high) else MISSED

    def limit(self) -> str:
        if self.low is None and self.high is None:
            return "a number"
        if self.low is None:
            return f"at most {self.high:g} {self.unit}".strip()
        if self.high is None:
            return f"at least {self.low:g} {self.unit}".strip()
        return f"{self.low:g} to {self.high:g} {self.unit}".strip()


# ---- what answers a goal -------------------------------------------------------------------------------------------


def _trusted(row: Row | None) -> Row | None:
    """A row whose tests are green."""
    return None if row is None or row["doubt"] else row


def _total(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else sum(x for x in known if x is not None)


def _median(measured: Measurements, op: str, slots: int, way: str | tuple[str, ...], how: str,
            dtype: str = "bfloat16") -> float | None:  # fmt: skip
    row = _trusted(measured.op_row(op, dtype, slots, way, how))
    return row and row["median"]


def ours_ms(ops: tuple[str, ...], slots: int, dtype: str = "bfloat16", unit: float = 1.0) -> Find:
    """Milliseconds of our kernels, replayed; `unit` 1e3: microseconds."""

    def find(measured: Measurements) -> float | None:
        total = _total(_median(measured, op, slots, OURS, "replayed", dtype) for op in ops)
        return None if total is None else unit * total

    return find


def times_as_long(way: str, how: str) -> Find:
    """How many times as long as our kernels another way of computing the branch takes, both launched or replayed."""

    def find(measured: Measurements) -> float | None:
        theirs, ours = (_total(_median(measured, op, 300, which, how) for op in BRANCH) for which in (way, OURS))
        return theirs / ours if theirs and ours else None

    return find


def call_megabytes(slots: int) -> Find:
    """On top of the inputs: of the larger of the branch's calls, in either dtype."""

    def find(measured: Measurements) -> float | None:
        rows = [
            _trusted(measured.op_row(op, dtype, slots, OURS, "launched"))
            for op in BRANCH
            for dtype in ("float32", "bfloat16")
        ]
        peaks = [row["peak_bytes"] if row else None for row in rows]
        return None if None in peaks else max(peaks) / 1e6

    return find


def more_than_daformer(slots: int, what: str, unit: float = 1.0) -> Find:
    """What DIDA's step costs more; of all precisions, compiled or not, the worst."""

    def find(measured: Measurements) -> float | None:
        rows = [row for stage in _COST for row in measured.rows(stage)]
        found = [row for row in rows if (row["method"], row["K"]) == ("dida", slots)]
        return max(row[what] / unit for row in found) if len(found) == len(PRECISIONS) + 1 else None

    return find


def of_compiled(method: str, slots: int, what: str) -> Find:
    """Of a step in bfloat16 whose networks are compiled."""

    def find(measured: Measurements) -> float | None:
        rows = measured.rows("step-cost-compiled")
        return next((row[what] for row in rows if (row["method"], row["K"]) == (method, slots)), None)

    return find


def of_variant(name: str, what: str) -> Find:
    def find(measured: Measurements) -> float | None:
        row = measured.variant(name)
        return row and row.get(what)

    return find


def over_prediction(name: str) -> Find:
    """The GPU's own time of a step over what was calculated for this card."""

    def find(measured: Measurements) -> float | None:
        card = next((times for part, times in PREDICTED.items() if part in (measured.card or "")), None)
        took = of_variant(name, "device_ms")(measured)
        return took / card[name] if card and took else None

    return find


def device_over_host(name: str) -> Find:
    """Below 1 the host is the limit."""

    def find(measured: Measurements) -> float | None:
        device, host = (of_variant(name, what)(measured) for what in ("device_ms", "host_ms"))
        return device / host if device and host else None

    return find


def red_tests(stage: str) -> Find:
    """How many; known once all have run, or one is red."""

    def find(measured: Measurements) -> float | None:
        red = len(measured.red(stage))
        complete = measured.found(stage).get("status") is not None
        return red if red or complete else None

    return find


def _skipped(measured: Measurements) -> float | None:
    skipped = [measured.found(stage).get("skipped_for_want_of_a_gpu") for stage in _TESTS]
    return None if None in skipped else sum(map(len, skipped))


def _findings(measured: Measurements) -> float | None:
    findings = len(measured.findings())
    return findings if findings or measured.ended_well("sanitizer") else None


def _off(measured: Measurements) -> float | None:
    rows = measured.rows("step-precision")
    return sum(not row["holds"] for row in rows) if len(rows) == len(PRECISIONS) else None


_TESTS = ("agreement", "no-waiting")
_BRANCH = tuple(f"bench-{op}-300-3000" for op in BRANCH)
_LARGE = tuple(f"bench-{op}-30000-100000" for op in BRANCH)
_VARIANTS = ("step-variants",)
_COST = ("step-cost", "step-cost-compiled")

GOALS = (
    # 1. Is it right?
    Goal("agreement tests that fail", "", red_tests("agreement"), ("agreement",), high=0),
    Goal("tests skipped though a GPU is there", "", _skipped, _TESTS, high=0),
    Goal("tests of the step that fail", "", red_tests("no-waiting"), ("no-waiting",), high=0),
    Goal("runs of compute-sanitizer with a finding", "", _findings, ("sanitizer",), high=0),
    # 2. Kernels, forward and backward.
    Goal("instance_loss + class_similarity, K = 300", "ms", ours_ms(BRANCH, 300), _BRANCH, high=0.45),
    Goal("... eager takes, both replayed", "x", times_as_long(EAGER, "replayed"), _BRANCH, low=20),
    Goal("... eager takes, both launched", "x", times_as_long(EAGER, "launched"), _BRANCH, low=20),
    Goal("... torch.compile takes, both replayed", "x", times_as_long(COMPILED, "replayed"), _BRANCH, low=7),
    Goal("... torch.compile takes, both launched", "x", times_as_long(COMPILED, "launched"), _BRANCH, low=7),
    Goal("... K = 3 000", "ms", ours_ms(BRANCH, 3000), _BRANCH, high=3.8),
    Goal("... memory of a call, K = 100 000", "MB", call_megabytes(100_000), _LARGE, high=400),
    Goal("boundary_mask", "us", ours_ms(("boundary_mask",), 300, "float32", 1e3), ("bench-boundary_mask-300",), high=6),
    Goal("bank_update, K = 300", "us", ours_ms(("bank_update",), 300, unit=1e3), ("bench-bank_update-300",), high=25),
    # 3. What DIDA costs.
    Goal("DIDA's step over DAFormer's, K = 300: time", "%", more_than_daformer(300, "more_time_percent"),
         _COST, high=5),
    Goal("DIDA's step over DAFormer's, K = 300: memory", "MB", more_than_daformer(300, "more_bytes", 1e6),
         _COST, high=300),
    Goal("DIDA's step over DAFormer's, K = 3 000: time", "%", more_than_daformer(3000, "more_time_percent"),
         _COST, high=15),
    # 4. The whole step, and how wrong the predictions were.
    Goal("the step in float32", "images/s", of_variant("float32", "images_per_second"), _VARIANTS),
    Goal("the step in TF32", "images/s", of_variant("TF32", "images_per_second"), _VARIANTS),
    Goal("the step in bfloat16", "images/s", of_variant("bfloat16", "images_per_second"), _VARIANTS),
    Goal("the step in bfloat16, compiled", "images/s",
         of_compiled("dida", 300, "images_per_second"), ("step-cost-compiled",)),
    Goal("launching a float32 step, of the host", "ms", of_variant("float32", "host_ms"), _VARIANTS, 85, 130),
    Goal("precisions whose step is off by more than they may", "", _off, ("step-precision",), high=0),
    *(Goal(f"the GPU's time of a step in {name} over its prediction", "x", over_prediction(name), _VARIANTS,
           1 - OFF_BY, 1 + OFF_BY) for name in ("TF32", "bfloat16")),
    Goal("the GPU's time over the host's, bfloat16 (at most 1: the host is the limit)", "x",
         device_over_host("bfloat16"), _VARIANTS, high=1),
)  # fmt: skip


def judged(measured: Measurements) -> list[list[str]]:
    """Per goal: what it is, its limit, what was measured, and met, MISSED or not measured, with the reason."""
    lines = []
    for goal in GOALS:
        value, word = goal.number(measured), goal.judge(measured)
        said = "–" if value is None else f"{value:.4g} {goal.unit}".strip()
        lines.append([goal.text, goal.limit(), said, word + _why(goal, measured) if value is None else word])
    return lines


def _why(goal: Goal, measured: Measurements) -> str:
    """Why a goal has no number, as far as its stages say."""
    for stage in goal.stages:
        outcome = measured.stages.get(stage, {}).get("outcome")
        if outcome not in (None, "done"):
            return f" ({stage}: {outcome})"
        if doubted := next((row["doubt"] for row in measured.rows(stage) if row.get("doubt")), None):
            return f" ({doubted})"
    return ""

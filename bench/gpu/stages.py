"""What is run on a GPU: small things first, and what is written as it goes loses nothing to a time-out.

What neither measures time nor fills the machine shares it with its like. Seconds are those of an H100 or H200.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

GATE = "facts"  # the stage that says whether anything can be measured here; without it nothing else is


@dataclass(frozen=True)
class Stage:
    """One program: `python COMMAND --device D --seconds S --to FILE`, in a process group of its own.

    It writes what it finds to FILE as it goes, and its exit status is 0 if all it looked at is right.
    """

    name: str
    command: tuple[str, ...]  # arguments of Python
    seconds: float  # at most
    needs: float = 8.0  # it is not begun with less than this left
    beside: str | None = None  # measures no time, and runs at the same time as its neighbours of that name


def _ours(module: str, *arguments: str) -> tuple[str, ...]:
    return ("-m", f"bench.gpu.{module}", *arguments)


def _bench(op: str, *slots: int, seconds: float, compiling: float = 0.0, needs: float = 15.0) -> Stage:
    """An op and a range of K: a crash or a time-out in one takes no number of another."""
    arguments = ("--op", op, "--slots", *map(str, slots), "--compile-seconds", str(compiling))
    name = "-".join(["bench", op, *map(str, slots)])
    return Stage(name, _ours("op_times", *arguments), seconds, needs)


STAGES = (
    Stage(GATE, _ours("facts"), 45),
    Stage("build", _ours("build"), 60, beside="compiling"),
    Stage("kernels", _ours("compile_kernels"), 90, beside="compiling"),
    Stage("smoke", _ours("agreement", "--tests", "smoke"), 70, needs=20),
    Stage("agreement", _ours("agreement", "--tests", "rest"), 200, needs=40),
    Stage("no-waiting", _ours("agreement", "--tests", "step"), 90, needs=15),
    _bench("instance_loss", 300, 3000, seconds=75, compiling=25),
    _bench("class_similarity", 300, 3000, seconds=60, compiling=12),
    _bench("boundary_mask", 300, seconds=35, compiling=5),
    _bench("bank_update", 300, seconds=35, compiling=5),
    Stage("step-precision", _ours("step_precision"), 90, needs=20, beside="right, and to its end"),
    Stage("whole-run", _ours("whole_run"), 120, needs=30, beside="right, and to its end"),
    Stage("step-cost", _ours("step_cost", "--precision", "bf16", "fp32", "tf32"), 170, needs=25),
    Stage("step-variants", _ours("step_variants"), 130, needs=25),
    Stage("step-cost-compiled", _ours("step_cost", "--precision", "bf16", "--compile"), 90, needs=40),
    Stage("network-parts", _ours("network_parts"), 25),
    _bench("instance_loss", 30_000, 100_000, seconds=40),
    _bench("class_similarity", 30_000, 100_000, seconds=30),
    Stage("throughput", _ours("throughput"), 45, needs=20),
    Stage("profile", _ours("profile_kernels"), 60, needs=15),
    _bench("bank_similarity", 300, seconds=20),
    _bench("scatter", 300, seconds=20),
    _bench("gather", 300, seconds=20),
    Stage("toy-table", _ours("toy_table"), 200, needs=60),
    Stage("sanitizer", _ours("sanitizer"), 600, needs=40),
)


def chosen_stages(names: Sequence[str], at_most: float | None = None) -> list[Stage]:
    """Those that are named, as they are named, behind the one that they depend on; all where none is named.

    `at_most`: seconds that none of them may take more than.
    """
    known = {stage.name: stage for stage in STAGES}
    chosen = [known[name] for name in dict.fromkeys((GATE, *(names or known)))]
    if at_most is None:
        return chosen
    return [replace(stage, seconds=min(stage.seconds, at_most), needs=min(stage.needs, at_most)) for stage in chosen]


def groups_of(plan: Sequence[Stage]) -> Iterator[list[Stage]]:
    """The stages that run at the same time, group after group."""
    numbered = enumerate(plan)
    for _, group in groupby(numbered, key=lambda entry: entry[1].beside or entry[0]):
        yield [stage for _, stage in group]

"""Hold every kernel to what it was compiled to: registers, occupancy, spills, the instructions of its hot loop.

    python -m bench.compiled.budget [--check] [--kernel NAME]   compile, compare with budgets/, exit 1 on a regression
    python -m bench.compiled.budget --update [--kernel NAME]    write what was measured, print old -> new
    python -m bench.compiled.budget --except                    write what this older Triton may exceed, nothing else

No GPU is needed. The cases below are run on fake tensors of each arch; whatever Triton kernel they launch is compiled
as it was launched (tile, dtypes, alignment) and its machine code is read. Triton keeps compiled kernels in its own
cache, keyed by source, options and version, so that a second run only reads. CUDA sources go through nvcc and may not
spill at all.

A check allows SLACK on sizes and none on what must not be there. `goal` is what the kernel plan wished for; missing it
is shown, not failed.

Budgets are those of the newest Triton. budgets/triton-X.Y holds the rows in which an older one really differs: 3.6 lays
out stores and unrolls loops otherwise in kernels that only move bytes (_scatter, _gather, _fold, _loss_reduce,
_boundary_mask, _pack_bank) and takes a few registers more in two others. The loops with the exponentials of the
interpolating kernels need no such row.
"""

import argparse
import json
import multiprocessing
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from bench.compiled import roofline, sass
from bench.compiled.launches import Launch, Pointer, compiled, record_call
from bench.record import table
from tests.cases import MAIN, resized

ARCHS = (80, 86, 90)
BUDGETS = Path(__file__).parent / "budgets"
CUDA_SOURCES = Path(__file__).parent.parent.parent / "csrc"
PROCESSES = 2
SLACK = 1.05  # ptxas and Triton change a few registers from one version to the next


@dataclass(frozen=True)
class Case:
    """One call whose launches are held to a budget; `sizes` differ from those of the benches' scene."""

    op: str
    dtype: torch.dtype
    sizes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={value}".replace(" ", "") for name, value in self.sizes.items())
        return f"{self.op} {str(self.dtype).removeprefix('torch.')} {sizes}".strip()


BF16, FP32 = torch.bfloat16, torch.float32
STREAMED = Case("instance_loss", BF16, {"HW": (128, 128)})  # equal grids: the streaming kernel
CASES = (
    Case("instance_loss", BF16),
    Case("instance_loss", FP32),
    Case("instance_loss", BF16, {"K": 1000}),  # more slots than a chunk: kernels resume their sums
    Case("instance_loss", BF16, {"temperature": 0.01}),  # shifted by the pixel's own maximum
    Case("instance_loss", BF16, {"log_prior": "uneven"}),
    Case("instance_loss", BF16, {"temperature": 0.01, "log_prior": "uneven"}),
    Case("instance_loss", BF16, {"HW": (256, 256)}),
    Case("instance_loss", BF16, {"HW": (1024, 1024)}),
    STREAMED,
    Case("instance_loss", FP32, {"HW": (128, 128)}),
    Case("instance_loss", BF16, {"HW": (128, 128), "log_prior": "uneven"}),
    Case("class_similarity", BF16),
    Case("class_similarity", FP32),
    Case("class_similarity", BF16, {"log_prior": "uneven"}),
    Case("bank_similarity", BF16),
    Case("bank_similarity", FP32),
    Case("scatter", FP32),
    Case("gather", FP32),
    Case("boundary_mask", FP32),
)

AT_MOST = ("registers", "shared_bytes", "hot_loop", "predicted_us")
AT_LEAST = ("ctas_per_sm", "hmma", "hgmma", "fma_in_hot_loop")
NOT_MORE = (
    "spills_in_loops",
    "spills_in_inner_loops",
    "shuffles_in_hot_loop",
    "barriers_in_hot_loop",
    "float_atomics",
    "fp64",
)

# (kernel, case) -> what was wished for when the kernels were planned, per arch where archs differ.
MAIN_LOSS = str(CASES[0])
GOALS: dict[tuple[str, str], dict[str, tuple[str, int]]] = {
    ("_loss_fwd", MAIN_LOSS): {
        "registers": ("<=", 128),
        "ctas_per_sm": (">=", 4),
        "hot_loop": ("<=", 122),
        "spills_in_inner_loops": ("<=", 0),
        "shuffles_in_hot_loop": ("<=", 0),
        "barriers_in_hot_loop": ("<=", 0),
    },
    ("_loss_bwd", MAIN_LOSS): {"registers": ("<=", 255), "hot_loop": ("<=", 292), "spills_in_inner_loops": ("<=", 0)},
    ("_rows_loss", str(STREAMED)): {"matrix_instructions": (">=", 32), "spills_in_inner_loops": ("<=", 0)},
}


class BudgetRow(NamedTuple):
    """One kernel as launched by one case on one arch."""

    kernel: str
    case: str
    launch: int  # which of the kernel's distinct variants in this case
    arch: str
    variant: dict[str, Any]  # what it was compiled for: told, not compared
    measured: dict[str, Any]

    @property
    def place(self) -> tuple[str, str, int, str]:
        return self.kernel, self.case, self.launch, self.arch


class Job(NamedTuple):
    launch: Launch
    case: str
    number: int
    capability: int


# ---- compile -------------------------------------------------------------------------------------------------------


def jobs(capability: int) -> Iterator[Job]:
    """Every distinct kernel that the cases launch on this arch; a repeated one belongs to the first case."""
    seen: set[tuple] = set()
    for case in CASES:
        record = record_call(case.op, resized(MAIN, **case.sizes), case.dtype, capability)
        numbers: dict[str, int] = {}
        for launch in record.launches:
            if launch.key() not in seen:
                seen.add(launch.key())
                numbers[launch.name] = numbers.get(launch.name, 0) + 1
                yield Job(launch, str(case), numbers[launch.name], capability)


def compile_job(job: Job) -> BudgetRow:
    """Compile, read, predict. Runs in a process of its own, which may set Triton's driver."""
    launch, case, number, capability = job
    kernel = compiled(launch, capability)
    measured: dict[str, Any] = sass.measure(
        kernel.asm["cubin"], kernel.metadata.shared, kernel.metadata.num_warps, capability
    )
    times = roofline.bounds(launch, roofline.DEVICES[capability], measured)
    measured["predicted_us"] = round(1e6 * max(times.values()), 2)
    measured["bound"] = max(times, key=times.__getitem__)
    arguments = launch.bound()
    variant = {
        "pointers": "/".join(str(x.dtype).removeprefix("torch.") for x in arguments.values() if isinstance(x, Pointer)),
        "constants": {name: value for name, value in arguments.items() if name.isupper()},
        "warps": kernel.metadata.num_warps,
        "stages": kernel.metadata.num_stages,
    }
    return BudgetRow(launch.name, case, number, f"sm_{capability}", variant, measured)


def compile_all(only: str | None = None) -> list[BudgetRow]:
    """All rows, or those of one kernel, in the order of the cases."""
    wanted = [job for capability in ARCHS for job in jobs(capability) if only in (None, job.launch.name)]
    # Processes are forked before any kernel is compiled; each compiles for all archs in turn.
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("fork")) as pool:
        return list(pool.map(compile_job, wanted))


# ---- compare -------------------------------------------------------------------------------------------------------


def exceptions(folder: Path) -> Path:
    """Where the rows stand that only this Triton needs."""
    return folder / f"triton-{'.'.join(triton.__version__.split('.')[:2])}"


def read_budgets(folder: Path) -> dict[tuple, BudgetRow]:
    """The committed rows by their place, those of this Triton before those of all."""
    rows = [
        BudgetRow(kernel=path.stem, **row)
        for path in (*sorted(folder.glob("*.json")), *sorted(exceptions(folder).glob("*.json")))
        for row in json.loads(path.read_text())["rows"]
    ]
    return {row.place: row for row in rows}


def write_budgets(rows: list[BudgetRow], folder: Path) -> None:
    """One file per kernel, one line per row, so that a diff shows the row that changed."""
    folder.mkdir(exist_ok=True)
    for kernel in sorted({row.kernel for row in rows}):
        lines = [json.dumps(row._asdict() | {"kernel": None}) for row in rows if row.kernel == kernel]
        lines = [line.replace('"kernel": null, ', "") for line in lines]
        head = f'{{"triton": "{triton.__version__}", "rows": [\n'
        (folder / f"{kernel}.json").write_text(head + ",\n".join(lines) + "\n]}\n")


def regressions(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The metrics that became worse than the budget allows, each as "name old -> new"."""
    worse = [name for name in AT_MOST if new[name] > old[name] * SLACK]
    worse += [name for name in AT_LEAST if new[name] < old[name] / SLACK]
    worse += [name for name in NOT_MORE if new[name] > old[name]]
    return [f"{name} {old[name]} -> {new[name]}{_percent(old[name], new[name])}" for name in worse]


def exceeded(rows: list[BudgetRow], budgets: dict[tuple, BudgetRow], only: str | None = None) -> list[str]:
    """Everything that a check fails on, a line each."""
    problems = []
    for row in rows:
        if row.place not in budgets:
            problems.append(f"{_name(row)}: has no budget; run --update and commit it")
            continue
        found = regressions(budgets[row.place].measured, row.measured)
        problems += [f"{_name(row)}: {line}" for line in found]
    gone = budgets.keys() - {row.place for row in rows}
    problems += [
        f"{_name(budgets[p])}: is launched no more; run --update" for p in sorted(gone) if only in (None, p[0])
    ]
    return problems


def changes(rows: list[BudgetRow], budgets: dict[tuple, BudgetRow]) -> list[str]:
    """What --update would change, a line per row that differs."""
    lines = []
    for row in rows:
        old = budgets[row.place].measured if row.place in budgets else None
        if old is None:
            lines.append(f"{_name(row)}: new")
        elif old != row.measured:
            differ = [name for name in row.measured if old.get(name) != row.measured[name]]
            lines.append(f"{_name(row)}: " + ", ".join(f"{x} {old.get(x)} -> {row.measured[x]}" for x in differ))
    return lines


def goals(row: BudgetRow) -> str:
    """Wished-for values beside the measured ones: "" without a wish, "met", or what is missed."""
    wishes = GOALS.get((row.kernel, row.case), {})
    values = row.measured | {"matrix_instructions": max(row.measured["hmma"], row.measured["hgmma"])}
    missed = [
        f"{name} {values[name]} {sign} {limit}"
        for name, (sign, limit) in wishes.items()
        if (values[name] > limit if sign == "<=" else values[name] < limit)
    ]
    return "" if not wishes else "missed: " + ", ".join(missed) if missed else "met"


def _name(row: BudgetRow) -> str:
    return f"{row.kernel} [{row.case}, #{row.launch}, {row.arch}]"


def _percent(old: float, new: float) -> str:
    return f" ({100 * (new / old - 1):+.0f} %)" if old else ""


def budget_table(rows: list[BudgetRow]) -> str:
    """The table of a run. Spills are those in an innermost loop / in any loop."""
    head = "kernel|case|arch|regs|smem KB|CTAs|spills|MMA|EX2|loop|loop/EX2|FMA|SHFL|BAR|atom|floor us|bound|goal"
    return table(head.split("|"), [_cells(row) for row in rows])


def _cells(row: BudgetRow) -> list[str]:
    m = row.measured
    mma = f"{m['hgmma']} HGMMA" if m["hgmma"] else f"{m['hmma']} HMMA" if m["hmma"] else "-"
    per_exponential = f"{m['hot_loop'] / m['ex2_in_hot_loop']:.1f}" if m["ex2_in_hot_loop"] else "-"
    kernel = row.kernel if row.launch == 1 else f"{row.kernel} #{row.launch}"
    spills = f"{m['spills_in_inner_loops']}/{m['spills_in_loops']}"
    counts = [m["registers"], f"{m['shared_bytes'] / 1024:.1f}", m["ctas_per_sm"], spills, mma]
    loop = [m["ex2_in_hot_loop"], m["hot_loop"], per_exponential, m["fma_in_hot_loop"]]
    never = [m["shuffles_in_hot_loop"], m["barriers_in_hot_loop"], m["float_atomics"]]
    return [kernel, row.case, row.arch, *counts, *loop, *never, f"{m['predicted_us']:.1f}", m["bound"], goals(row)]


# ---- CUDA sources --------------------------------------------------------------------------------------------------


def nvcc_report(source: Path, capability: int) -> str:
    """What ptxas says of a .cu file."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-cubin", "-O3", "-std=c++17", f"-arch=sm_{capability}"]
        done = subprocess.run(
            [*command, "-Xptxas", "-v", f"-I{CUDA_SOURCES}", str(source), "-o", f"{folder}/kernel.cubin"],
            capture_output=True,
            text=True,
            check=True,
        )
    return done.stderr


def nvcc_rows(report: str) -> list[tuple[str, int, int]]:
    """(kernel, registers, bytes spilled) for each kernel of an nvcc report."""
    found = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        report,
        re.S,
    )
    return [(name, int(registers), int(stores) + int(loads)) for name, stores, loads, registers in found]


def readable(name: str) -> str:
    """A mangled C++ name as it is written in the source, if binutils are there."""
    if shutil.which("c++filt") is None:
        return name
    return subprocess.run(["c++filt", "-p", name], capture_output=True, text=True, check=True).stdout.strip()


def check_cuda() -> list[str]:
    """Compile csrc/*.cu, print registers, return the kernels that spill."""
    sources = sorted(CUDA_SOURCES.glob("*.cu"))
    if not sources or shutil.which("nvcc") is None:
        print(f"CUDA sources: not checked, {'nvcc is not installed' if sources else 'there are none in csrc/'}")
        return []
    rows, problems = [], []
    for source in sources:
        for capability in ARCHS:
            for kernel, registers, spilled in nvcc_rows(nvcc_report(source, capability)):
                rows.append([source.name, readable(kernel), f"sm_{capability}", registers, spilled])
                if spilled:
                    problems.append(f"{source.name}: {readable(kernel)} spills {spilled} bytes on sm_{capability}")
    print(table(["source", "kernel", "arch", "registers", "spilled bytes"], rows))
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compare with the budgets (the default)")
    mode.add_argument("--update", action="store_true", help="write the budgets and print what changed")
    mode.add_argument(
        "--except", action="store_true", dest="exceptions", help="write the rows that this Triton exceeds"
    )
    parser.add_argument("--kernel", help="only this kernel, such as _loss_fwd")
    options = parser.parse_args()

    rows = compile_all(options.kernel)
    if not rows:
        parser.error(f"argument --kernel: no kernel is called {options.kernel!r}; see bench/compiled/budgets")
    print(budget_table(rows), end="\n\n")
    budgets = read_budgets(BUDGETS)
    if options.exceptions:
        for path in exceptions(BUDGETS).glob(f"{options.kernel or '*'}.json"):
            path.unlink()
        budgets = read_budgets(BUDGETS)
        worse = [row for row in rows if row.place in budgets and regressions(budgets[row.place].measured, row.measured)]
        print("\n".join(changes(worse, budgets)) or "no exceptions")
        write_budgets(worse, exceptions(BUDGETS))
        return 0
    if options.update:
        print("\n".join(changes(rows, budgets)) or "nothing changed")
        write_budgets(rows, BUDGETS)
        for path in BUDGETS.glob("*.json"):
            if options.kernel is None and path.stem not in {row.kernel for row in rows}:
                path.unlink()
        return 0
    problems = exceeded(rows, budgets, options.kernel)
    problems += [] if options.kernel else check_cuda()
    print("\n".join(problems) or f"{len(rows)} compiled kernels are within their budgets (Triton {triton.__version__})")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""Time every op: the equation, the equation under torch.compile, and each backend that runs here.

    python bench/kernels.py [--op NAME] [--device cpu|cuda] [--dtype float32|bfloat16] [--slots K ...]

Inputs are those of the tests at the size of training; on a CPU smaller ones where the equation would take minutes. A
backend that does not agree with the equation is not timed: the run stops. On a GPU kernels are timed as launched from
Python and as replayed from a CUDA graph, where calls follow each other and find in the cache what fits it, beside a
calculated floor (bench/compiled/roofline.py). Memory is what the call needs on top of its inputs: the allocator's peak
on a GPU, counted by bench/meter.py on a CPU. Where there is a gradient, a call is forward and backward.

bench/bank_update.py holds the C++ `bank_update` against more than its equation.
"""

import argparse
import gc
import math
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # python bench/kernels.py
    from by_path import start_again

    start_again(__file__)

import torch
from torch import Tensor

import dida_kernels
from bench import record
from bench.clocks import Timing, peak_of_call, time_cpu, time_cuda
from bench.compiled import launches, roofline
from tests import cases
from tests.cases import MAIN, Call, Scene, resized

COMPILED_SLOTS = (300, 3000)  # K at which torch.compile is given its chance: it compiles for half a minute each

GPU_BACKENDS = ("cuda", "triton")  # the backends that are kernels of a GPU

# The sizes on a CPU. bank_update: one row per pixel, so that the equation is one index_add of 131 072 x 256.
CPU_SCENES = {
    "instance_loss": resized(MAIN, hw=(32, 32), HW=(128, 128)),
    "class_similarity": resized(MAIN, hw=(32, 32), HW=(128, 128)),
    "bank_update": resized(MAIN, hw=(256, 256), HW=(256, 256)),
    "bank_similarity": resized(MAIN, hw=(64, 64)),
    "scatter": resized(MAIN, HW=(128, 128)),
    "gather": resized(MAIN, HW=(128, 128)),
    "boundary_mask": MAIN,
}


# ---- what is run ---------------------------------------------------------------------------------------------------


class Prepared(NamedTuple):
    """A call, its differentiable argument (asking for a gradient) and the gradient that arrives at the output."""

    made: Call
    argument: int | None
    arriving: Tensor | None  # None: of a scalar


def run(function: Callable[..., Tensor], x: Prepared) -> list[Tensor]:
    """Forward, and backward to the differentiable argument: outputs and gradients."""
    if x.argument is None:
        with torch.no_grad():
            return [function(*x.made.args, **x.made.options)]
    out = function(*x.made.args, **x.made.options)
    # Not .backward(): it would leave a sum at the leaf, on whatever stream the leaf was first used.
    return [out.detach(), *torch.autograd.grad(out, x.made.args[x.argument], x.arriving)]


def prepared(op: str, scene: Scene, dtype: torch.dtype, device: str) -> Prepared:
    made, argument = cases.call(op, scene, dtype=dtype, device=device), cases.GRADIENT.get(op)
    if argument is None:
        return Prepared(made, None, None)
    made.args[argument].requires_grad_()
    without_memory = (x.detach().to("meta") if isinstance(x, Tensor) else x for x in made.args)
    out = dida_kernels.OPS[op].reference(*without_memory, **made.options)
    arriving = torch.randn(out.shape, dtype=out.dtype, device=device) if out.dim() else None
    return Prepared(made, argument, arriving)


def scene_of(op: str, slots: int, device: str) -> Scene:
    """The bench's inputs with a bank of K `slots`, the default one of the tests under its own name."""
    scene = MAIN if device == "cuda" else CPU_SCENES[op]
    if slots == scene.K:
        return scene
    if op in ("scatter", "gather"):  # their [N, K] holds as many numbers at any K
        side = max(1, math.isqrt(scene.HW[0] * scene.HW[1] * scene.K // slots))
        return resized(scene, K=slots, HW=(side, side))
    return resized(scene, K=slots)


def forced(op: str, backend: str) -> Callable[..., Tensor]:
    """The op on one backend, or an error."""

    def function(*args: Any, **options: Any) -> Tensor:
        with dida_kernels.backend(backend):
            return getattr(dida_kernels, op)(*args, **options)

    return function


def backends(op: str, made: Call) -> list[str]:
    """Those that are there and take these inputs, without the equation; "chunked" only on a CPU."""
    known = dida_kernels.OPS[op]
    wanted = known.backends if made.args[0].device.type == "cpu" else GPU_BACKENDS
    names = [name for name in wanted if known.why_not(name, *made.args, **made.options) is None]
    return [name for name in names if known.backends[name].run is not known.equation]


# ---- the gate ------------------------------------------------------------------------------------------------------


@cache
def disagreement(op: str, backend: str, dtype: torch.dtype) -> str | None:
    """What the agreement test says against this backend, or None. Its tolerances are the only ones there are."""
    chosen = f"test_agrees_with_the_equation and {op}-{backend}- and {dtype}"
    command = [sys.executable, "-m", "pytest", "tests/kernels/test_agreement.py", "-q", "-x", "-k", chosen]
    done = subprocess.run(command, cwd=record.ROOT, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stdout[-2000:]


def disagreement_in(report: Path) -> Callable[[str, str, torch.dtype], str | None]:
    """The same question, answered from a JUnit report of the agreement tests that ran before.

    Any failure of a test that has the op in its name counts against it, whichever dtype it was in.
    """
    tests = {
        f"{test.get('classname')}::{test.get('name')}": {child.tag for child in test}
        for test in ElementTree.parse(report).iter("testcase")
    }

    def answer(op: str, backend: str, dtype: torch.dtype) -> str | None:
        failed = [name for name, said in tests.items() if op in name and said & {"failure", "error"}]
        if failed:
            return f"{len(failed)} tests failed, such as {failed[0]}"
        dtype = torch.float32 if op == "boundary_mask" else dtype  # it sees integers only
        wanted = f"test_agrees_with_the_equation[{op}-{backend}-"
        if not any(wanted in name and name.endswith(f"-{dtype}]") and not said for name, said in tests.items()):
            return f"no agreement test of it passed in {dtype}"
        return None

    return answer


# ---- one op --------------------------------------------------------------------------------------------------------


def ways_of(op: str, dtype: torch.dtype, made: Call, wrong: Callable) -> dict[str, Callable[..., Tensor]]:
    """Every way to run the op here. Raises RuntimeError where a backend is wrong."""
    ways: dict[str, Callable[..., Tensor]] = {"equation": dida_kernels.OPS[op].reference}
    for name in backends(op, made):
        reason = wrong(op, name, dtype)
        if reason is not None:
            raise RuntimeError(f"{op} on {name} is not timed, because it is wrong:\n{reason}")
        ways[name] = forced(op, name)
    return ways


def empty_row(op: str, dtype: torch.dtype, scene: Scene, way: str, how: str, why: str | None = None) -> dict[str, Any]:
    """A row without numbers; `why` there are none."""
    shape = {"op": op, "dtype": str(dtype).removeprefix("torch."), "K": scene.K, "scene": scene.name}
    return shape | {"way": way, "how": how} | dict.fromkeys((*Timing._fields, "peak_bytes", "speedup")) | {"why": why}


def bench_cpu(op: str, dtype: torch.dtype, slots: int, wrong: Callable = disagreement) -> list[dict[str, Any]]:
    """A row per way to run the op. Raises RuntimeError where a backend is wrong."""
    scene = scene_of(op, slots, "cpu")
    x = prepared(op, scene, dtype, "cpu")
    ways = ways_of(op, dtype, x.made, wrong)
    ways["torch.compile"] = torch.compile(ways["equation"])
    calls = {name: partial(run, function, x) for name, function in ways.items()}
    rows = []
    for name, timing in time_cpu(calls).items():
        # Code that torch.compile made for a CPU allocates where no meter sees it.
        peak = None if name == "torch.compile" else peak_of_call(calls[name], x.made.args, "cpu")
        rows.append(empty_row(op, dtype, scene, name, "launched") | timing._asdict() | {"peak_bytes": peak})
    return rows


def bench_cuda(
    op: str, dtype: torch.dtype, slots: int, wrong: Callable = disagreement, compiled: bool = False
) -> list[dict[str, Any]]:
    """The same on a GPU, where a way may not fit; `compiled`: of torch.compile alone."""
    scene = scene_of(op, slots, "cuda")
    try:
        x = prepared(op, scene, dtype, "cuda")
    except torch.OutOfMemoryError:
        return [empty_row(op, dtype, scene, "all", "launched", "inputs and gradient do not fit")]
    ways = ways_of(op, dtype, x.made, wrong)
    if compiled:
        torch.compiler.reset()  # every shape is compiled for itself, none for whatever shape comes
        ways = {"torch.compile": torch.compile(ways["equation"], dynamic=False)}
    return [
        row for name, function in ways.items() for row in _rows_cuda(op, dtype, scene, name, partial(run, function, x))
    ]


def _rows_cuda(op: str, dtype: torch.dtype, scene: Scene, way: str, call: Callable[[], Any]) -> list[dict[str, Any]]:
    rows = []
    for how in ("launched", "replayed") if way in GPU_BACKENDS else ("launched",):
        row = empty_row(op, dtype, scene, way, how)
        try:
            call()  # compiles, and lets cuBLAS take its workspace
            row["peak_bytes"] = peak_of_call(call, None, "cuda")
            row |= time_cuda(call, replayed=how == "replayed")._asdict()
        except torch.OutOfMemoryError:
            row |= {"peak_bytes": None, "why": "does not fit"}
        rows.append(row)
        gc.collect()
        torch.cuda.empty_cache()
    return rows


def add_speedups(rows: list[dict[str, Any]]) -> None:
    """Fill in how many times as fast as the equation each row is, in the same dtype at the same K."""
    equation = {(r["op"], r["dtype"], r["scene"]): r["median"] for r in rows if r["way"] == "equation"}
    for row in rows:
        base = equation.get((row["op"], row["dtype"], row["scene"]))
        row["speedup"] = round(base / row["median"], 2) if base and row["median"] else None


def survey_ops(
    ops: Sequence[str],
    dtypes: Sequence[torch.dtype],
    slots: Sequence[int],
    device: str,
    wrong: Callable,
    compile_seconds: float,
) -> list[dict[str, Any]]:
    """All rows. On a GPU torch.compile comes last, and starts nothing after `compile_seconds`."""
    plan = [(op, dtype, k) for op in ops for k in (slots[:1] if op == "boundary_mask" else slots) for dtype in dtypes]
    if device == "cpu":
        rows = [row for op, dtype, k in plan for row in bench_cpu(op, dtype, k, wrong)]
    else:
        rows = [row for op, dtype, k in plan for row in bench_cuda(op, dtype, k, wrong)]
        until = time.monotonic() + compile_seconds
        for op, dtype, k in sorted(plan, key=lambda x: (x[2], x[1] == torch.float32)):
            if k not in COMPILED_SLOTS:
                continue
            why = "not tried, the time was up"
            if time.monotonic() < until:
                try:
                    rows += bench_cuda(op, dtype, k, wrong, compiled=True)
                    continue
                except Exception as error:  # of a compiler that is not ours: it must not cost what was measured of ours
                    why = f"torch.compile failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            rows.append(empty_row(op, dtype, scene_of(op, k, device), "torch.compile", "launched", why))
    add_speedups(rows)
    return rows


def count_op(
    op: str, dtype: torch.dtype, slots: int, capability: int, device: roofline.Device
) -> dict[str, Any] | None:
    """Bytes, FLOPs and the floor of the kernels at training size; None for an op without any."""
    scene = scene_of(op, slots, "cuda")
    taken = launches.record_call(op, scene, dtype, capability)
    if not taken.launches:
        return None
    flops = sum(x.flops for x in taken.meter.operations) + sum(roofline.work(x).flops for x in taken.launches)
    floor = roofline.floor(taken.launches, taken.meter.operations, device)
    shape = {"op": op, "dtype": str(dtype).removeprefix("torch."), "K": slots}
    counted = {"bytes": taken.moved, "flops": flops, "floor_ms": round(1e3 * floor, 4)}
    return shape | {"device": device.name} | counted


def ceilings() -> dict[str, float]:
    """What this GPU reaches when it only copies (bytes read and written), and when it only multiplies (bfloat16)."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    copying, multiplying = (time_cuda(call, replayed=False) for call in (lambda: target.copy_(source), lambda: a @ b))
    return {
        "copy_bytes_per_second": 2 * len(source) / (1e-3 * copying.median),
        "bfloat16_flops_per_second": 2 * 8192**3 / (1e-3 * multiplying.median),
    }


def kernel_report(result: dict[str, Any]) -> str:
    """The report in markdown; every number in it comes from `result`."""
    head = "op|dtype|scene|way|how|median ms|20 - 80 %|x equation|peak MB".split("|")
    if result["header"]["device"] == "cuda":
        head.append("% of floor")
    floors = {(x["op"], x["dtype"], x["K"]): x["floor_ms"] for x in result["counted"]}
    body = []
    for row in result["rows"]:
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.1f}"
        cells = [row[name] for name in ("op", "dtype", "scene", "way", "how")]
        if row["why"]:
            cells += [row["why"], "-", "-", peak]
        else:
            times = "-" if row["speedup"] is None else f"{row['speedup']:.2f}"
            cells += [f"{row['median']:.3f}", f"{row['low']:.3f} - {row['high']:.3f}", times, peak]
        if len(head) > len(cells):
            floor = floors.get((row["op"], row["dtype"], row["K"])) if row["way"] in GPU_BACKENDS else None
            cells.append(f"{100 * floor / row['median']:.0f}" if floor and row["median"] else "-")
        body.append(cells)
    counted = [
        [x["op"], x["dtype"], x["K"], x["device"], f"{x['bytes'] / 1e6:.1f}", f"{x['flops'] / 1e9:.1f}",
         f"{x['floor_ms']:.3f}"]
        for x in result["counted"]
    ]  # fmt: skip
    parts = ["# Kernels", record.render_header(result["header"]), record.table(head, body)]
    parts += ["Counted at training size:", record.table("op|dtype|K|GPU|MB moved|GFLOP|floor ms".split("|"), counted)]
    return "\n\n".join(parts) + "\n"


def plot_speedups(result: dict[str, Any], path: Path) -> None:
    """How many times faster than its equation each op is, a bar for each way to run it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in result["rows"] if row["way"] != "equation" and row["speedup"] is not None]
    names = [" ".join([row["op"], row["way"], *([row["how"]] if row["how"] != "launched" else [])]) for row in rows]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.28 * len(rows)), layout="constrained")
    bars = axes.barh(names, [row["speedup"] for row in rows], color="tab:blue")
    axes.bar_label(bars, [f"{row['speedup']:.1f}" for row in rows], padding=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel=f"times as fast as the equation ({rows[0]['dtype']}, {result['header']['device']})")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=sorted(dida_kernels.OPS), action="append")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), action="append", help="(default: float32)")
    parser.add_argument("--slots", type=int, nargs="+", default=[MAIN.K], help="sizes K of the bank")
    parser.add_argument("--agreed", type=Path, help="JUnit report of agreement tests that ran; default: run them now")
    parser.add_argument("--compile-seconds", type=float, default=math.inf, help="for torch.compile, on a GPU")
    parser.add_argument("--json", type=Path, help="write the numbers here, and no table")
    options = parser.parse_args()
    ops, on_gpu = options.op or sorted(dida_kernels.OPS), options.device == "cuda"
    dtypes = [getattr(torch, name) for name in options.dtype or ["float32"]]
    wrong = disagreement_in(options.agreed) if options.agreed else disagreement
    # Without a GPU the floors are those of an RTX 3090; of a GPU that is not known there are none.
    rates = roofline.rates_of(torch.cuda.get_device_name()) if on_gpu else roofline.DEVICES[86]
    major, minor = torch.cuda.get_device_capability() if on_gpu else (8, 6)
    measured = {
        "ceilings": ceilings() if on_gpu else {},
        "rows": survey_ops(ops, dtypes, options.slots, options.device, wrong, options.compile_seconds),
    }
    result = {"header": record.header(options.device)} | measured  # the clocks are those that were run at
    result |= {
        "counted": [
            counted
            for op in ops
            for dtype in dtypes
            for k in options.slots
            if rates and (counted := count_op(op, dtype, k, 10 * major + minor, rates))
        ],
    }
    if options.json:
        record.write(options.json, result)
        return
    name = "kernels" if options.op is None else "kernels-" + "-".join(ops)
    folder = record.RESULTS_FOLDER / record.machine_name(options.device)
    record.write(folder / f"{name}.json", result)
    record.write(folder / f"{name}.md", kernel_report(result))
    plot_speedups(result, folder / f"{name}.png")
    print(kernel_report(result))


if __name__ == "__main__":
    main()

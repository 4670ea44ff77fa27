"""Time every op: the equation, the equation under torch.compile, and each backend that runs here.

    python bench/kernels.py [--op NAME] [--device cpu|cuda] [--dtype float32|bfloat16] [--slots K ...]

Inputs are those of the tests at the size of training; on a CPU smaller ones where the equation would take minutes. The
numbers of a backend that does not agree with the equation are marked. On a GPU every way is timed as launched from
Python and as replayed from a CUDA graph, where calls follow each other and find in the cache what fits it, and is held
against the equation in the same dtype, timed in the same manner; beside them stands a calculated floor
(bench/compiled/roofline.py). Memory is what the call needs on top of its inputs: the allocator's peak on a GPU, counted
by bench/meter.py on a CPU. Where there is a gradient, a call is forward and backward.

bench/bank_update.py holds the C++ `bank_update` against more than its equation.
"""

import argparse
import gc
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
from bench.arguments import whole_number
from bench.clocks import Timing, peak_of_call, time_cpu, time_cuda
from bench.compiled import launches, roofline
from tests import cases
from tests.cases import MAIN, Call, Scene, resized

COMPILED = "torch.compile"
COMPILED_SLOTS = (300, 3000)  # K at which it is given its chance: it compiles for half a minute each

GPU_BACKENDS = ("cuda", "triton")  # the backends that are kernels of a GPU
HOWS = ("launched", "replayed")  # from Python, and from a CUDA graph
REGION = 16  # nodes of a side, 64 pixels: labels lie in regions, as those of pictures do

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
    if op == "bank_update" and device == "cuda":  # it takes longer where more classes meet
        scene = resized(scene, region=REGION, valid="all")
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

Doubt = Callable[[str, str, torch.dtype], str | None]  # (op, backend, dtype) -> why its numbers are not to be trusted


@cache
def disagreement(op: str, backend: str, dtype: torch.dtype) -> str | None:
    """What the agreement test says against this backend, or None. Its tolerances are the only ones there are."""
    chosen = f"test_agrees_with_the_equation and {op}-{backend}- and {dtype}"
    command = [sys.executable, "-m", "pytest", "tests/kernels/test_agreement.py", "-q", "-x", "-k", chosen]
    done = subprocess.run(command, cwd=record.ROOT, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stdout[-2000:]


# ---- one op --------------------------------------------------------------------------------------------------------


def ways_of(op: str, made: Call) -> dict[str, Callable[..., Tensor]]:
    """Every way to run the op here: ours first, then the equation."""
    ways = {name: forced(op, name) for name in backends(op, made)}
    return ways | {"equation": dida_kernels.OPS[op].reference}


def empty_row(
    op: str, dtype: torch.dtype, scene: Scene, way: str, how: str, *, why: str | None = None, doubt: str | None = None
) -> dict[str, Any]:
    """A row without numbers; `why` there are none, and what there is to `doubt` in those that there will be."""
    shape = {"op": op, "dtype": str(dtype).removeprefix("torch."), "K": scene.K, "scene": scene.name}
    numbers = dict.fromkeys((*Timing._fields, "peak_bytes", "speedup"))
    return shape | {"way": way, "how": how} | numbers | {"why": why, "doubt": doubt}


def bench_cpu(
    op: str, dtype: torch.dtype, scene: Scene, doubt: Doubt = disagreement, compiled: bool = True
) -> list[dict[str, Any]]:
    """A row per way to run the op, torch.compile among them if `compiled`; the ways take turns."""
    x = prepared(op, scene, dtype, "cpu")
    ways = ways_of(op, x.made)
    doubted = {name: doubt(op, name, dtype) for name in ways if name != "equation"}
    if compiled:
        ways[COMPILED] = torch.compile(ways["equation"])
    calls = {name: partial(run, function, x) for name, function in ways.items()}
    rows = []
    for name, timing in time_cpu(calls).items():
        # Code that torch.compile made for a CPU allocates where no meter sees it.
        peak = None if name == COMPILED else peak_of_call(calls[name], x.made.args, "cpu")
        row = empty_row(op, dtype, scene, name, "launched", doubt=doubted.get(name))
        rows.append(row | timing._asdict() | {"peak_bytes": peak})
    return rows


Choose = Callable[[str, str], bool]  # (way, how)


def bench_cuda(
    op: str, dtype: torch.dtype, scene: Scene, doubt: Doubt, chosen: Choose, compiled: bool = False
) -> Iterator[dict[str, Any]]:
    """On a GPU a row per way and manner that is `chosen`, as they are measured. `compiled`: of torch.compile alone."""
    try:
        x = prepared(op, scene, dtype, "cuda")
    except torch.OutOfMemoryError:
        yield empty_row(op, dtype, scene, "all", "launched", why="inputs and gradient do not fit")
        return
    ways = ways_of(op, x.made)
    if compiled:
        torch.compiler.reset()  # every shape is compiled for itself, none for whatever shape comes
        ways = {COMPILED: torch.compile(ways["equation"], dynamic=False)}
    for way, function in ways.items():
        doubted = doubt(op, way, dtype) if way in GPU_BACKENDS else None
        for how in HOWS:
            if chosen(way, how):
                row = empty_row(op, dtype, scene, way, how, doubt=doubted)
                yield measured(row, partial(run, function, x))


def measured(row: dict[str, Any], call: Callable[[], Any]) -> dict[str, Any]:
    """The row with its numbers, or with the reason why it has none: what fails costs no other row."""
    try:
        call()  # compiles, and lets cuBLAS take its workspace
        peak = peak_of_call(call, None, "cuda")
        return row | {"peak_bytes": peak} | time_cuda(call, replayed=row["how"] == "replayed")._asdict()
    except torch.OutOfMemoryError:
        return row | {"why": "does not fit"}
    except Exception as error:  # also of a compiler that is not ours, or of a call that no graph can hold
        return row | {"why": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"}
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def add_speedups(rows: list[dict[str, Any]]) -> None:
    """How many times as fast as the equation each row is: of the same dtype and K, timed in the same manner."""

    def key(row: dict[str, Any]) -> tuple:
        return row["op"], row["dtype"], row["scene"], row["how"]

    equation = {key(row): row["median"] for row in rows if row["way"] == "equation"}
    for row in rows:
        base = equation.get(key(row))
        row["speedup"] = round(base / row["median"], 2) if base and row["median"] else None


def rows_on_gpu(
    op: str, scenes: Sequence[Scene], dtypes: Sequence[torch.dtype], doubt: Doubt, compile_seconds: float
) -> Iterator[dict[str, Any]]:
    """All rows of an op, as they are measured.

    What is not ours and may fail comes last, for it can leave a process in which nothing more is captured: eager code
    in a graph, then torch.compile, which starts nothing after `compile_seconds`.
    """
    plan = [(dtype, scene) for scene in scenes for dtype in dtypes]
    for dtype, scene in plan:
        yield from bench_cuda(op, dtype, scene, doubt, lambda way, how: not _eager_in_a_graph(way, how))
    for dtype, scene in plan:
        yield from bench_cuda(op, dtype, scene, doubt, _eager_in_a_graph)
    until = time.monotonic() + compile_seconds
    for dtype, scene in plan:
        if scene.K not in COMPILED_SLOTS:
            continue
        if time.monotonic() < until:
            yield from bench_cuda(op, dtype, scene, doubt, lambda way, how: True, compiled=True)
        else:
            for how in HOWS:
                yield empty_row(op, dtype, scene, COMPILED, how, why="not tried, the time was up")


def _eager_in_a_graph(way: str, how: str) -> bool:
    return (way, how) == ("equation", "replayed")


def survey_ops(
    ops: Sequence[str], dtypes: Sequence[torch.dtype], slots: Sequence[int], device: str, doubt: Doubt = disagreement
) -> list[dict[str, Any]]:
    """All rows of all ops."""
    rows: list[dict[str, Any]] = []
    for op in ops:
        scenes = [scene_of(op, k, device) for k in (slots[:1] if op == "boundary_mask" else slots)]
        if device == "cpu":
            rows += [row for scene in scenes for dtype in dtypes for row in bench_cpu(op, dtype, scene, doubt)]
        else:
            rows += rows_on_gpu(op, scenes, dtypes, doubt, math.inf)
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
        if row["doubt"]:
            cells[3] = f"{row['way']}, DOUBTFUL: {row['doubt'].splitlines()[-1]}"
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
    parser.add_argument("--slots", type=whole_number(1), nargs="+", default=[MAIN.K], help="sizes K of the bank")
    options = parser.parse_args()
    ops, on_gpu = options.op or sorted(dida_kernels.OPS), options.device == "cuda"
    dtypes = [getattr(torch, name) for name in options.dtype or ["float32"]]
    # Without a GPU the floors are those of an RTX 3090; of a GPU that is not known there are none.
    rates = roofline.rates_of(torch.cuda.get_device_name()) if on_gpu else roofline.DEVICES[86]
    major, minor = torch.cuda.get_device_capability() if on_gpu else (8, 6)
    rows = survey_ops(ops, dtypes, options.slots, options.device)
    result = {
        "header": record.header(options.device),  # now: the clocks are those that were run at
        "ceilings": ceilings() if on_gpu else {},
        "rows": rows,
        "counted": [
            counted
            for op in ops
            for dtype in dtypes
            for k in options.slots
            if rates and (counted := count_op(op, dtype, k, 10 * major + minor, rates))
        ],
    }
    name = "kernels" if options.op is None else "kernels-" + "-".join(ops)
    folder = record.RESULTS_FOLDER / record.machine_name(options.device)
    record.write(folder / f"{name}.json", result)
    record.write(folder / f"{name}.md", kernel_report(result))
    plot_speedups(result, folder / f"{name}.png")
    print(kernel_report(result))


if __name__ == "__main__":
    main()

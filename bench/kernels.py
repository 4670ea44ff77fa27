"""Time every op: the equation, the equation under torch.compile, and each backend that runs here.

    python bench/kernels.py [--op NAME] [--device cpu|cuda] [--dtype float32|bfloat16]

Inputs are those of the tests at the size of training; on a CPU smaller ones where the equation would take minutes. A
backend that does not agree with the equation is not timed: the run stops. On a GPU kernels are timed as launched from
Python and as replayed from a CUDA graph, beside a calculated floor (bench/roofline.py). Memory is what the call needs
on top of its inputs: the allocator's peak on a GPU, counted by bench/meter.py on a CPU.

On a CPU `bank_update` is also held against every honest baseline there is, on one thread and on two: a bare index_add
of rows that are already laid out, the equation at image resolution, the equation from the feature grid, and one read
of the embedding, which nothing can beat.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # started by its path: this folder must not be searched, its statistics.py would hide Python's own
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import statistics

import torch
from torch import Tensor

import dida_kernels
from bench import launches, record, roofline
from bench.meter import Meter
from dida_kernels.equations import IGNORE, pixels
from tests import cases
from tests.cases import MAIN, Call, Scene, resized

ROUNDS = 5  # runs behind a median on a CPU, after one that warms up

OURS = ("cuda", "triton")  # the backends that are kernels of a GPU

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
FROM_GRID = resized(MAIN, hw=(64, 64), HW=(256, 256))  # bank_update: the same pixels from a grid of stride 4
THREADS = (1, 2)
OURS_ON_CPU = "ours"  # the name of our backend among the baselines


class Timing(NamedTuple):
    """Milliseconds."""

    median: float
    low: float  # the 20th and 80th percentile
    high: float


# ---- what is run ---------------------------------------------------------------------------------------------------


def run(function: Callable[..., Tensor], made: Call, argument: int | None) -> list[Tensor]:
    """Forward, and backward to `argument`: outputs and gradients."""
    if argument is None:
        with torch.no_grad():
            return [function(*made.args, **made.options)]
    leaf = made.args[argument]
    leaf.grad = None
    out = function(*made.args, **made.options)
    (out if out.dim() == 0 else (out * out).sum()).backward()
    return [out.detach(), leaf.grad]


def prepared(op: str, scene: Scene, dtype: torch.dtype, device: str) -> tuple[Call, int | None]:
    """The call with its differentiable argument asking for a gradient."""
    made, argument = cases.call(op, scene, dtype=dtype, device=device), cases.GRADIENT.get(op)
    if argument is not None:
        made.args[argument].requires_grad_()
    return made, argument


def forced(op: str, backend: str) -> Callable[..., Tensor]:
    """The op on one backend, or an error."""

    def function(*args: Any, **options: Any) -> Tensor:
        with dida_kernels.backend(backend):
            return getattr(dida_kernels, op)(*args, **options)

    return function


def backends(op: str, made: Call) -> list[str]:
    """Those that are there and take these inputs. "torch" only where it is not the equation itself."""
    known = dida_kernels.OPS[op]
    names = [name for name in known.backends if known.why_not(name, *made.args, **made.options) is None]
    return [name for name in names if known.backends[name].run is not known.equation]


# ---- the gate ------------------------------------------------------------------------------------------------------


def disagreement(op: str, backend: str, dtype: torch.dtype) -> str | None:
    """What the agreement test says against this backend, or None. Its tolerances are the only ones there are."""
    chosen = f"test_agrees_with_the_equation and {op}-{backend}- and {dtype}"
    command = [sys.executable, "-m", "pytest", "tests/kernels/test_agreement.py", "-q", "-x", "-k", chosen]
    done = subprocess.run(command, cwd=record.ROOT, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stdout[-2000:]


# ---- the clocks ----------------------------------------------------------------------------------------------------


def time_cpu(calls: dict[str, Callable[[], Any]]) -> dict[str, Timing]:
    """The ways take turns, so that whatever else the machine does meets all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: _timing(found) for name, found in seconds.items()}


def _timing(seconds: list[float]) -> Timing:
    low, *_, high = statistics.quantiles(seconds, n=5)
    return Timing(*(round(1e3 * x, 4) for x in (statistics.median(seconds), low, high)))


def time_cuda(call: Callable[[], Any], *, replayed: bool) -> Timing:
    from triton import testing

    clock = testing.do_bench_cudagraph if replayed else testing.do_bench
    median, low, high = clock(call, quantiles=[0.5, 0.2, 0.8])
    return Timing(round(median, 4), round(low, 4), round(high, 4))


def peak_memory(call: Callable[[], Any], inputs: Any, device: str) -> int:
    """Bytes on top of the inputs."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with Meter() as meter:
        meter.know(inputs)
        with meter.extra() as peak:
            call()
    return peak()


# ---- one op --------------------------------------------------------------------------------------------------------


def bench(op: str, dtype: torch.dtype, device: str) -> list[dict[str, Any]]:
    """A row per way to run the op. Raises RuntimeError where a backend is wrong."""
    scene = MAIN if device == "cuda" else CPU_SCENES[op]
    made, argument = prepared(op, scene, dtype, device)
    equation = dida_kernels.OPS[op].reference
    ways = {"equation": equation, "torch.compile": torch.compile(equation)}
    for name in backends(op, made):
        wrong = disagreement(op, name, dtype)
        if wrong is not None:
            raise RuntimeError(f"{op} on {name} is not timed, because it is wrong:\n{wrong}")
        ways[name] = forced(op, name)
    calls = {name: partial(run, function, made, argument) for name, function in ways.items()}
    if device == "cpu":
        timings = {(name, "launched"): timing for name, timing in time_cpu(calls).items()}
    else:
        timings = {(name, "launched"): time_cuda(call, replayed=False) for name, call in calls.items()}
        replayed = {name: call for name, call in calls.items() if name in OURS}
        timings |= {(name, "replayed"): time_cuda(call, replayed=True) for name, call in replayed.items()}
    # Code that torch.compile made for a CPU allocates where no meter sees it.
    peaks = {n: peak_memory(c, made.args, device) for n, c in calls.items() if n != "torch.compile" or device == "cuda"}
    shape = {"op": op, "dtype": str(dtype).removeprefix("torch."), "scene": scene.name}
    rows = [
        shape | {"way": name, "how": how} | timing._asdict() | {"peak_bytes": peaks.get(name)}
        for (name, how), timing in timings.items()
    ]
    for row in rows:
        row["speedup"] = round(rows[0]["median"] / row["median"], 2)
    return rows


def count(op: str, dtype: torch.dtype, capability: int) -> dict[str, Any]:
    """Bytes, FLOPs and the floor of the kernels at training size; {} without kernels or for a GPU of unknown rates."""
    if capability not in roofline.DEVICES:
        return {}
    taken = launches.record_call(op, MAIN, dtype, capability)
    if not taken.launches:
        return {}
    flops = sum(x.flops for x in taken.meter.steps) + sum(roofline.work(x).flops for x in taken.launches)
    device = roofline.DEVICES[capability]
    floor = roofline.floor(taken.launches, taken.meter.steps, device)
    return {"device": device.name, "bytes": taken.moved, "flops": flops, "floor_ms": round(1e3 * floor, 4)}


def same_for_any_threads(op: str) -> bool:
    """Whether the CPU's fastest backend gives the same bits on one thread and on two."""
    made, argument = prepared(op, CPU_SCENES[op], torch.float32, "cpu")
    results = [
        [x.clone() for x in on_threads(n, partial(run, getattr(dida_kernels, op), made, argument))] for n in THREADS
    ]
    return all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def on_threads(threads: int, call: Callable[[], Any]) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


def bank_update_baselines() -> list[dict[str, Any]]:
    """bank_update of 131 072 pixels, D = 256, float32, against each baseline, on one thread and on two."""
    rows = []
    for threads in THREADS:
        for scene, what in ((CPU_SCENES["bank_update"], "full resolution"), (FROM_GRID, "from stride 4")):
            timings = on_threads(threads, partial(time_cpu, baseline_calls(scene)))
            ours = timings[OURS_ON_CPU].median
            rows += [
                {"from": what, "threads": threads, "way": way, **timing._asdict(), "of_ours": timing.median / ours}
                for way, timing in timings.items()
            ]
    return rows


def baseline_calls(scene: Scene) -> dict[str, Callable[[], Any]]:
    """Ours, and what else would do the work. At image resolution rows are laid out beforehand, for all ways alike."""
    (bank_KD, label_K, embed_BDhw, label_BHW, boundary_BHW), options = cases.call("bank_update", scene)
    on_image = scene.hw == scene.HW
    if on_image:
        embed_BDhw = embed_BDhw.contiguous(memory_format=torch.channels_last)
    made = Call((bank_KD, label_K, embed_BDhw, label_BHW, boundary_BHW), options)
    calls = {
        OURS_ON_CPU: partial(run, forced("bank_update", "cpp"), made, None),
        "equation": partial(run, dida_kernels.bank_update.reference, made, None),
        "one read of the embedding": embed_BDhw.sum,
    }
    if on_image:
        embed_ND, classes = pixels(embed_BDhw), options["classes"]
        label_N = label_BHW.flatten()
        set_N = torch.where(label_N == IGNORE, 2 * classes, label_N + classes * boundary_BHW.flatten())
        zeros_SD = embed_ND.new_zeros(2 * classes + 1, scene.D)
        calls["index_add alone"] = partial(zeros_SD.index_add, 0, set_N, embed_ND)
    return calls


def render(result: dict[str, Any]) -> str:
    """The report in markdown; every number in it comes from `result`."""
    head = "op|dtype|scene|way|how|median ms|20 - 80 %|x equation|peak MB".split("|")
    if result["header"]["device"] == "cuda":
        head.append("% of floor")
    body = []
    for row in result["rows"]:
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.1f}"
        cells = [row[name] for name in ("op", "dtype", "scene", "way", "how")]
        cells += [f"{row['median']:.3f}", f"{row['low']:.3f} - {row['high']:.3f}", f"{row['speedup']:.2f}", peak]
        if len(head) > len(cells):
            floor = result["counted"].get(row["op"], {}).get("floor_ms")
            ours = floor is not None and row["way"] in OURS
            cells.append(f"{100 * floor / row['median']:.0f}" if ours else "-")
        body.append(cells)
    counted = [
        [op, f["device"], f"{f['bytes'] / 1e6:.1f}", f"{f['flops'] / 1e9:.1f}", f"{f['floor_ms']:.3f}"]
        for op, f in result["counted"].items()
        if f
    ]
    threads = [[op, "yes" if same else "NO"] for op, same in result["same_for_any_threads"].items()]
    parts = ["# Kernels", record.render_header(result["header"]), record.table(head, body)]
    parts += ["Counted at training size:", record.table(["op", "GPU", "MB moved", "GFLOP", "floor ms"], counted)]
    if threads:
        parts += ["The same bits on one thread and on two:", record.table(["op", "same"], threads)]
    if result["bank_update"]:
        parts += ["bank_update of 131 072 pixels, D = 256, float32, and what else would do its work:"]
        parts.append(render_baselines(result["bank_update"]))
    return "\n\n".join(parts) + "\n"


def render_baselines(rows: list[dict[str, Any]]) -> str:
    head = ["embedding", "threads", "way", "median ms", "20 - 80 %", "x ours"]
    body = []
    for row in rows:
        between, of_ours = f"{row['low']:.2f} - {row['high']:.2f}", f"{row['of_ours']:.2f}"
        body.append([row["from"], row["threads"], row["way"], f"{row['median']:.2f}", between, of_ours])
    return record.table(head, body)


def plot(result: dict[str, Any], path: Path) -> None:
    """How many times faster than its equation each op is, a bar for each way to run it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in result["rows"] if row["way"] != "equation"]
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
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    ops, dtype = options.op or sorted(dida_kernels.OPS), getattr(torch, options.dtype)
    on_gpu = options.device == "cuda"
    with_baselines = not on_gpu and "bank_update" in ops and dida_kernels.report()["bank_update"]["cpp"] == "yes"
    major, minor = torch.cuda.get_device_capability() if on_gpu else (8, 6)
    result = {
        "header": record.header(options.device),
        "rows": [row for op in ops for row in bench(op, dtype, options.device)],
        "counted": {op: count(op, dtype, 10 * major + minor) for op in ops},
        "same_for_any_threads": {} if on_gpu else {op: same_for_any_threads(op) for op in ops if op == "bank_update"},
        "bank_update": bank_update_baselines() if with_baselines else [],
    }
    name = "kernels" if options.op is None else "kernels-" + "-".join(ops)
    folder = record.RESULTS / record.machine(options.device)
    record.write(folder / f"{name}.json", result)
    record.write(folder / f"{name}.md", render(result))
    plot(result, folder / f"{name}.png")
    print(render(result))


if __name__ == "__main__":
    main()

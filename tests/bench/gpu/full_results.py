"""What the command brings back from a GPU when everything was measured and every target met."""

import copy

from bench.gpu.goals import BRANCH
from bench.gpu.ledger import DONE, FORMAT, NOT_REACHED
from bench.gpu.stages import STAGES
from bench.step import STAGES as STEP_STAGES
from dida.precision import PRECISIONS

HEADER = {
    "commit": "0123456789ab", "digest": "feedfacefeedface", "date": "2026-11-26 10:00 UTC", "device": "cuda",
    "gpu": "NVIDIA H100 80GB HBM3", "torch": "2.11.0", "triton": "3.6.0", "cuda": "13.0",
    "clocks": "1980 MHz, 2619 MHz, 1980 MHz",
}  # fmt: skip
BRANCH_MS = {300: 0.22, 3000: 1.8, 30_000: 18.0, 100_000: 60.0}  # of each of the two calls, all just good enough
CONTENDERS = (("daformer", 0), ("dida", 300), ("dida", 3000))


def op_row(op: str, dtype: str, slots: int, way: str, how: str, median: float | None) -> dict:
    shape = {"op": op, "dtype": dtype, "K": slots, "scene": f"main-K{slots}", "way": way, "how": how}
    why = None if median else "does not fit"
    numbers = {"median": median, "low": median, "high": median, "peak_bytes": 399_000_000, "speedup": None}
    return shape | numbers | {"why": why, "doubt": None}


def op_rows(op: str, slots: tuple[int, ...]) -> list[dict]:
    rows = []
    for k in slots:
        for how in ("launched", "replayed"):
            for dtype in ("bfloat16", "float32"):
                ours = BRANCH_MS[k]
                rows.append(op_row(op, dtype, k, "triton", how, ours))
                rows.append(op_row(op, dtype, k, "equation", how, 20.5 * ours if k < 30_000 else None))
                if k < 30_000:
                    rows.append(op_row(op, dtype, k, "torch.compile", how, 7.5 * ours))
    return rows


def small_rows(op: str, way: str, median: float) -> list[dict]:
    return [op_row(op, dtype, 300, way, how, median)
            for how in ("launched", "replayed") for dtype in ("bfloat16", "float32")]  # fmt: skip


def cost_row(method: str, slots: int, precision: str, *, compiled: bool = False) -> dict:
    more = {0: 0.0, 300: 4.75, 3000: 14.5}[slots]
    return {
        "method": method, "K": slots, "precision": precision, "compiled": compiled, "steps": 20, "images": 4,
        "images_per_second": 17.25,
        "step_ms": 231.5, "low": 230.0, "high": 233.0, "stages": dict.fromkeys(STEP_STAGES, 25.0),
        "peak_bytes": 12_345_000_000, "more_time_percent": more, "more_bytes": 290_000_000 if slots else 0,
    }  # fmt: skip


def precision_row(precision: str) -> dict:
    losses = {"source": 2.75, "feature": 0.125, "target": 1.5, "instance": 2.875}
    return {
        "precision": precision, "losses": losses, "off": dict.fromkeys(losses, 0.0), "gradient_cosine": 1.0,
        "gradient_norm": 3.125, "holds": True,
    }  # fmt: skip


def variant_row(name: str, device_ms: float) -> dict:
    return {
        "name": name, "why": None, "wall_ms": 120.0, "host_ms": 110.0, "stream_ms": 115.0, "images_per_second": 34.8,
        "peak_bytes": 15_000_000_000, "device_ms": device_ms, "launches": 8600, "kernels": [["a | kernel", 9.5, 48]],
    }  # fmt: skip


def full_results() -> dict:
    """Everything measured, every target met."""
    found = {
        "facts": {"header": HEADER, "obstacles": [], "capability": 90},
        "no-waiting": {"tests": {"tests/engine/test_step_on_gpu.py::test_nothing_waits": "passed"}, "status": 0,
                       "skipped_for_want_of_a_gpu": []},
        "agreement": {"tests": {"t::a[gather-triton]": "passed"}, "status": 0, "skipped_for_want_of_a_gpu": []},
        "bench-boundary_mask-300": {"rows": small_rows("boundary_mask", "triton", 0.0055)},
        "bench-bank_update-300": {"rows": small_rows("bank_update", "cuda", 0.0245)},
        "step-cost": {
            "rows": [cost_row(method, k, precision) for precision in PRECISIONS for method, k in CONTENDERS],
        },
        "step-cost-compiled": {"rows": [cost_row(method, k, "bf16", compiled=True) for method, k in CONTENDERS]},
        "step-precision": {"rows": [precision_row(precision) for precision in PRECISIONS]},
        "step-variants": {
            "rows": [
                variant_row("float32", 101.0), variant_row("TF32", 74.0), variant_row("bfloat16", 60.0),
                {"name": "encoder as a graph", "why": None, "eager_stream_ms": 50.0, "graph_stream_ms": 30.0},
            ],
        },
        "network-parts": {"rows": [{"name": "cross entropy", "dtype": "float32", "forward": 0.5, "backward": 0.75}]},
        "whole-run": {
            "trained": {"steps": 40, "seconds": 12.5}, "stopped": {"after_step": 20},
            "resumed": {"largest_difference_of_a_weight": 0.00125}, "scored": {"images": 4, "mIoU": 31.25},
        },
        "throughput": {
            "loading": [{"workers": 4, "ms_per_batch": 45.5}],
            "scoring": [{"way": "student, TF32", "images_per_second": 21.5}],
        },
        "sanitizer": {"found": {"memcheck gather": "clean"}, "unwatched": {}, "why": None},
    }  # fmt: skip
    for op in BRANCH:
        found[f"bench-{op}-300-3000"] = {"rows": op_rows(op, (300, 3000))}
        found[f"bench-{op}-30000-100000"] = {"rows": op_rows(op, (30_000, 100_000))}
    stages = {stage.name: {"outcome": DONE, "seconds": 12.5, "why": None} for stage in STAGES}
    floors = [
        {"op": op, "dtype": "bfloat16", "K": k, "floor_ms": 0.8 * ms} for op in BRANCH for k, ms in BRANCH_MS.items()
    ]
    return {"format": FORMAT, "asked": {}, "seconds": 500.0, "stages": stages, "found": found, "floors": floors}


def with_outcome(content: dict, stage: str, outcome: str, **header) -> dict:
    """The same, that stage alone, of a source of its own."""
    made = copy.deepcopy(content)
    made["found"]["facts"]["header"] |= header
    for name, entry in made["stages"].items():
        entry["outcome"] = outcome if name in (stage, "facts") else NOT_REACHED
    made["found"] = {name: made["found"][name] for name in ("facts", stage)}
    return made

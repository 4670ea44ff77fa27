"""What limits each kernel, as Nsight Compute counts it: of every kernel of an op, at the size of training.

python -m bench.gpu.profile_kernels ...                                  the stage
python -m bench.gpu.profile_kernels ... --call OP --slots K --dtype D    one call, which the stage has watched
"""

import argparse
import csv
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from bench import kernels
from bench.gpu.op_times import tiny_scene
from bench.gpu.program import begin, stage_parser
from bench.gpu.runner import CHECKOUT

WATCHED = (("instance_loss", 300), ("class_similarity", 300), ("boundary_mask", 300), ("bank_update", 300))
SECTIONS = ("SpeedOfLight", "Occupancy", "LaunchStats", "WarpStateStats", "ComputeWorkloadAnalysis")
LEAST = 10.0  # seconds without which no call is watched


def main(arguments: Sequence[str] | None = None) -> int:
    parser = stage_parser(__doc__)
    parser.add_argument("--call", metavar="OP", help="call this op once, and nothing else")
    parser.add_argument("--slots", type=int, default=300)
    parser.add_argument("--dtype", default="bfloat16")
    program, options = begin(parser, arguments)
    if options.call:
        return call_once(options, program.device)
    tool = shutil.which("ncu") or shutil.which("/usr/local/cuda/bin/ncu")
    program.keep(rows=[])
    if tool is None:
        print("there is no ncu here")
        return 1
    for op, slots in WATCHED:
        if program.left() < LEAST:
            print(f"{op} was not watched, the time was up")
            return 1
        watched = watch(tool, op, slots, program.device, program.left())
        program.keep(rows=[*program.found["rows"], *watched])
        print(op, f"{len({row['kernel'] for row in watched})} kernels")
    return 0 if program.found["rows"] else 1


def call_once(options: argparse.Namespace, device: str) -> int:
    """Our kernels on inputs of the size of training, once; they have been compiled by then or will be now."""
    scene = kernels.scene_of(options.call, options.slots, device) if device == "cuda" else tiny_scene(options.slots)
    x = kernels.prepared(options.call, scene, getattr(torch, options.dtype), device)
    ours = kernels.backends(options.call, x.made)[0]
    kernels.run(kernels.forced(options.call, ours), x)
    return 0


def watch(tool: str, op: str, slots: int, device: str, seconds: float) -> list[dict[str, Any]]:
    """A row per kernel and counter."""
    sections = [part for name in SECTIONS for part in ("--section", name)]
    # Ours begin with an underscore, or are those of the extension. The clocks stay as they are.
    ours = ["--kernel-name", "regex:^_|bank|update", "--clock-control", "none"]
    call = ["-m", "bench.gpu.profile_kernels", "--call", op, "--slots", str(slots), "--device", device, "--to", "-"]
    command = [tool, *sections, *ours, "--csv", "--page", "details", "--print-units", "base", sys.executable, *call]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=seconds, check=False)
    rows = [{"op": op, "K": slots, **row} for row in counters(done.stdout.splitlines())]
    if not rows:
        print(done.stdout[-1500:], done.stderr[-1500:])
    return rows


def counters(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Of ncu's CSV the first launch of every kernel: kernel, section, counter, unit and value."""
    table = csv.DictReader(line for line in lines if line.startswith('"'))
    first: dict[str, str] = {}
    rows = []
    for line in table:
        kernel = line["Kernel Name"].partition("(")[0]
        if line["Metric Name"] and first.setdefault(kernel, line["ID"]) == line["ID"]:
            rows.append({"kernel": kernel, "section": line["Section Name"], "counter": line["Metric Name"],
                         "unit": line["Metric Unit"], "value": line["Metric Value"]})  # fmt: skip
    return rows


if __name__ == "__main__":
    sys.exit(main())

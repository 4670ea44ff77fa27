"""What DIDA's step costs more than DAFormer's: time by stage of the step, and memory, precision by precision.

Methods take turns, so that whatever the clocks do meets all of them alike.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch

from bench.gpu.program import begin, stage_parser
from bench.gpu.step_parts import WORKLOADS, batch_on, contenders_of, precisions_on, settings_of, stream_of
from bench.step import Contender, Stretch, add_differences, computing, peak_of_step, step_row, take_steps
from dida.batch import Batch
from dida.precision import PRECISIONS

TURNS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    parser = stage_parser(__doc__)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"], help="as in train.py")
    parser.add_argument("--compile", action="store_true", help="as in train.py")
    program, options = begin(parser, arguments)
    workload, device = WORKLOADS[program.device], torch.device(program.device)
    contenders, batch = contenders_of(workload, device), batch_on(device, workload.crop)
    program.keep(setting=settings_of(workload), rows=[])
    for precision in precisions_on(device, options.precision):
        contenders = computing(contenders, precision=precision, compile=options.compile)
        rows = cost_rows(contenders, batch, workload.steps, workload.warm_up, device)
        program.keep(rows=[*program.found["rows"], *rows])
        tell(rows)
    return 0


def cost_rows(
    contenders: list[Contender], batch: Batch, steps: int, warm_up: int, device: torch.device
) -> list[dict[str, Any]]:
    """A row per method, with what it costs more than the first."""
    stream = stream_of(batch)
    for contender in contenders:
        seconds = take_steps(contender, stream, warm_up, device).seconds
        print(contender.name, contender.slots, f"{warm_up} steps to warm up: {seconds:.1f} s", flush=True)
    blocks: list[list[Stretch]] = [[] for _ in contenders]
    for _ in range(TURNS):
        for contender, mine in zip(contenders, blocks, strict=True):
            mine.append(take_steps(contender, stream, steps, device))
    rows = []
    for contender, mine in zip(contenders, blocks, strict=True):
        peak = peak_of_step(contender, batch, device)
        rows.append(step_row(contender, mine, 2 * len(batch.target), peak))
    add_differences(rows)
    return rows


def tell(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        more = f"{row['more_time_percent']:+.1f} % {row['more_bytes'] / 1e6:+.0f} MB"
        how = row["precision"] + (" compiled" if row["compiled"] else "")
        print(row["method"], row["K"], how, f"{row['step_ms']:.1f} ms", more, flush=True)


if __name__ == "__main__":
    sys.exit(main())

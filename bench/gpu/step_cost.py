"""What DIDA's step costs more than DAFormer's: time by stage of the step, and memory, in float32 and in bfloat16.

Methods take turns, so that whatever the clocks do meets all of them alike.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch

from bench.gpu.program import begin, stage_parser
from bench.gpu.step_parts import WORKLOADS, batch_on, contenders_of, settings_of, stream_of
from bench.step import Contender, Stretch, add_differences, peak_of_step, step_row, take_steps
from dida.batch import Batch

DTYPES = (torch.float32, torch.bfloat16)
TURNS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    program, _ = begin(stage_parser(__doc__), arguments)
    workload, device = WORKLOADS[program.device], torch.device(program.device)
    contenders, batch = contenders_of(workload, device), batch_on(device, workload.crop)
    program.keep(setting=settings_of(workload), rows=[])
    for dtype in DTYPES:
        rows = rows_in(dtype, contenders, batch, workload.steps, workload.warm_up, device)
        program.keep(rows=[*program.found["rows"], *rows])
        tell(rows)
    return 0


def rows_in(
    dtype: torch.dtype, contenders: list[Contender], batch: Batch, steps: int, warm_up: int, device: torch.device
) -> list[dict[str, Any]]:
    """A row per method, with what it costs more than the first."""
    stream = stream_of(batch)
    for contender in contenders:
        seconds = take_steps(contender, stream, warm_up, dtype, device).seconds
        print(contender.name, contender.slots, dtype, f"{warm_up} steps to warm up: {seconds:.1f} s", flush=True)
    blocks: list[list[Stretch]] = [[] for _ in contenders]
    for _ in range(TURNS):
        for contender, mine in zip(contenders, blocks, strict=True):
            mine.append(take_steps(contender, stream, steps, dtype, device))
    rows = []
    for contender, mine in zip(contenders, blocks, strict=True):
        peak = peak_of_step(contender, batch, dtype, device)
        rows.append(step_row(contender, dtype, mine, 2 * len(batch.target), peak))
    add_differences(rows)
    return rows


def tell(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        more = f"{row['more_time_percent']:+.1f} % {row['more_bytes'] / 1e6:+.0f} MB"
        print(row["method"], row["K"], row["dtype"], f"{row['step_ms']:.1f} ms", more, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""The toy's table of methods, trained on the GPU: many runs at once, and the records that a CPU's table is made of.

Runs are those of bench/tables; what is finished when the time is up counts.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.gpu.program import Program, begin, stage_parser
from bench.gpu.runner import CHECKOUT
from dida.data.toy import Counts, generate

ROWS = ("source", "dacs", "daformer", "dida_recipe-paper", "dida_prior")
SEEDS = {"cuda": "0-7", "cpu": "0"}
FEW = Counts(source=3, source_val=1, target=3, val=1, test=1)  # on a CPU, to try the command
TO_END = 3.0  # seconds in which the runs end when the time is up
POLL = 1.0
SHORT = [
    "--warm-steps",
    "2",
    "--branch-steps",
    "4",
    "--options=--crop 64 --embed-dim 16 --bank-size 40 --bank-start 2 --bank-fill 1",
]
KEPT = ("row", "seed", "split", "minutes", "digest")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = stage_parser(__doc__)
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="ROW", help="of the table of methods")
    program, options = begin(parser, arguments)
    on_gpu = program.device == "cuda"
    jobs = max(1, (os.cpu_count() or 1) - 1) if on_gpu else 1
    with TemporaryDirectory() as folder:
        start = time.monotonic()
        generate(Path(folder, "data"), jobs=jobs, **({} if on_gpu else {"counts": FEW}))
        program.keep(drawn_in_seconds=round(time.monotonic() - start, 1), jobs=jobs, scores=[])
        places = [f"--{name}={Path(folder, name)}" for name in ("work", "results")]
        command = [
            sys.executable, "-m", "bench.tables", "--seeds", SEEDS[program.device], "--split", "test",
            "--rows", *options.rows, "--jobs", str(jobs), "--device", program.device,
            "--data-root", str(Path(folder, "data")), *places, *([] if on_gpu else SHORT),
        ]  # fmt: skip
        with subprocess.Popen(command, cwd=CHECKOUT) as process:
            while process.poll() is None and program.left() > TO_END:
                time.sleep(POLL)
                keep_scores(program, Path(folder, "results"))
            process.terminate()
        keep_scores(program, Path(folder, "results"))
    print(f"{len(program.found['scores'])} runs scored")
    return 0 if program.found["scores"] else 1


def keep_scores(program: Program, results: Path) -> None:
    """Keep what is there of every record: whose it is, and its mIoU in per cent, by the number of classes."""
    records = [json.loads(path.read_text()) for path in sorted(results.rglob("*_test.json"))]
    program.keep(scores=[score_of(record) for record in records])


def score_of(record: dict[str, Any]) -> dict[str, Any]:
    kept = {name: record[name] for name in KEPT}
    return kept | {"mIoU": record["student"]["mIoU"]}


if __name__ == "__main__":
    sys.exit(main())

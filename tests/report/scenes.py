"""Two small runs on drawn streets, and the report of them."""

import json
from pathlib import Path

import torch

from dida.cli import report_command
from tests.data.factories import make_cityscapes
from tests.engine.checkpoints import tiny_config, write_checkpoint

STEPS = (10, 20, 30)


def make_runs(folder: Path) -> list[Path]:
    """A run of DIDA and one on the source alone, with a log and an environment, on three labelled pictures."""
    make_cityscapes(folder / "data", val=3, train=1, labelled=("val",))
    runs: list[Path] = []
    for place, method in enumerate(("dida", "source")):
        run = folder / method
        config = tiny_config(folder / "data", method=method)
        # Not of the same weights: the one's student is the other's teacher.
        swapped = {"student": torch.load(checkpoint_of(runs[0]))["teacher"]} if runs else {}
        write_checkpoint(checkpoint_of(run), config, step=30, **swapped)
        losses = {"loss/source": 1.5, "loss/feature": 0.0} | ({"loss/target": 0.7} if method == "dida" else {})
        lines = [{"step": step, "lr": 1e-3, **losses} for step in STEPS]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        environment = {"argv": ["/somewhere/train.py", "--method", method], "torch": f"2.{place}", "cores": 2}
        (run / "environment.json").write_text(json.dumps(environment))
        runs.append(run)
    return runs


def checkpoint_of(run: Path) -> Path:
    return run / "checkpoints" / "step_000030.pt"


def report_of(*args: object) -> str:
    """What `dida report` writes for these arguments, in this process; the file is that of the first run."""
    report_command([str(arg) for arg in args])
    return (Path(str(args[0])) / "report.html").read_text()

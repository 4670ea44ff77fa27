"""A whole run on the toy: trained to its end; stopped half-way by a signal, resumed to the same end; scored.

    python -m bench.gpu.whole_run ...                     the stage
    python -m bench.gpu.whole_run ... --train FOLDER      one run, which the stage starts to send it a signal

It is the engine's loop without its command line, which needs a package that such a machine may lack.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from bench.gpu.program import Program, begin, stage_parser
from bench.gpu.runner import CHECKOUT
from dida import loop, recipes
from dida.assemble import assemble
from dida.config import Config, changed
from dida.data import domains
from dida.data.toy import Counts, generate
from dida.options import parse_size
from dida.state import latest, load_checkpoint
from dida.use.evaluate import WHOLE_IMAGE
from dida.use.scoring import score_domain
from dida.use.trained import load_trained

STOPPED = 128 + signal.SIGTERM  # exit status of a run that saved and ended because of it


class Length(NamedTuple):
    """Steps, pictures, and what is left out where they are few."""

    steps: int
    counts: Counts
    options: dict[str, Any]


LENGTHS = {
    "cuda": Length(40, Counts(source=24, source_val=1, target=24, val=4, test=1), {"workers": 4}),
    "cpu": Length(
        6,
        Counts(source=3, source_val=1, target=3, val=1, test=1),
        {"workers": 0, "crop": 64, "batch_size": 1, "embed_dim": 16, "bank_size": 40},
    ),
}


def toy_run(device: str, data_root: Path, out: Path) -> Config:
    """DIDA on the toy, so short that all its phases fit: bank filled, in use, updated, a picture, checkpoints."""
    steps, _, options = LENGTHS[device]
    third = steps // 3
    return changed(
        recipes.dida(recipes.toy(Config())), data_root=data_root, out=out, device=device, steps=steps, warmup=2,
        bank_start=third, bank_fill=max(1, third // 2), bank_every=2, log_every=1, panel_every=steps,
        save_every=steps, **options,
    )  # fmt: skip


def train_once(config: Config) -> float:
    """Train to the end, or until a signal comes. Returns the seconds it took."""
    start = time.monotonic()
    loop.train(config, assemble(config))
    return time.monotonic() - start


def main(arguments: Sequence[str] | None = None) -> int:
    parser = stage_parser(__doc__)
    parser.add_argument("--train", type=Path, help="run folder: train that run, and nothing else")
    program, options = begin(parser, arguments)
    if options.train is not None:
        train_once(toy_run(program.device, options.train.parent, options.train))
        return 0
    with TemporaryDirectory() as folder:
        go_through(program, Path(folder))
    return 0


def go_through(program: Program, folder: Path) -> None:
    """Every part of it, each kept when it is there. Raises RuntimeError for what did not happen as it must."""
    generate(folder, counts=LENGTHS[program.device].counts)
    whole = toy_run(program.device, folder, folder / "whole")
    seconds = train_once(whole)
    program.keep(trained={"steps": whole.optim.steps, "seconds": round(seconds, 2)})

    stopped = changed(whole, out=folder / "stopped")
    step = stop_half_way(program, stopped)
    program.keep(stopped={"after_step": step})

    train_once(changed(stopped, resume=stopped.run.out))
    difference = largest_difference(whole.run.out, stopped.run.out)
    program.keep(resumed={"largest_difference_of_a_weight": difference})
    if program.device == "cpu" and difference != 0:
        raise RuntimeError(f"on a CPU a resumed run is the same run, and its weights are off by {difference}")

    trained = load_trained(whole.run.out, torch.device(program.device))
    data = whole.data
    report = score_domain(
        trained, domains.labelled(data.tgt, data.data_root, "val"), size=parse_size(data.tgt_size, option="--tgt-size"),
        inference=WHOLE_IMAGE, workers=data.workers,
    )  # fmt: skip
    program.keep(scored={"images": report["images"], "mIoU": report["student"]["mIoU"][str(report["headline"])]})
    print(program.found)


def stop_half_way(program: Program, config: Config) -> int:
    """Train that run in another process and send it SIGTERM when half of its steps are done.

    Returns the step of its checkpoint. Raises RuntimeError if it did not stop there and save.
    """
    half, metrics = config.optim.steps // 2, config.run.out / "metrics.jsonl"
    options = ["--device", program.device, "--to", os.devnull, "--train", str(config.run.out)]
    command = [sys.executable, "-m", "bench.gpu.whole_run", *options]
    with subprocess.Popen(command, cwd=CHECKOUT) as process:
        while process.poll() is None and program.left() > 0:
            if metrics.exists() and len(metrics.read_text().splitlines()) >= half:
                process.send_signal(signal.SIGTERM)
                process.wait()
            time.sleep(0.02)
        process.kill()
    step = load_checkpoint(latest(config.run.out))["step"]
    if process.returncode != STOPPED or not half <= step < config.optim.steps:
        raise RuntimeError(f"told to stop after step {half}, it ended with status {process.returncode} at step {step}")
    return step


def largest_difference(one: Path, other: Path) -> float:
    """Of any weight of the students of two runs."""
    a, b = (load_checkpoint(latest(run))["student"] for run in (one, other))
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


if __name__ == "__main__":
    sys.exit(main())

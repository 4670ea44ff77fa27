"""How runs of several processes are saved, gone on with, scored, and how they end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dida import command, loop
from dida.config import Config, changed
from dida.data.image_file import ImageFileError
from dida.data.pairs import Pairs
from dida.machine import distributed
from dida.machine.signals import Signals
from dida.options import read_command_line
from dida.options.evaluation import EvalConfig
from dida.recipes import from_command_line
from dida.state import TrainState, checkpoints, latest, load_checkpoint
from tests.machine.several import config_of, make_files
from tests.processes import Processes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return make_files(tmp_path_factory.mktemp("several"))


def short(files: Path, out: Path, **options: Any) -> Config:
    """Six steps with a bank from the third on; nothing is written before the end."""
    small = {"steps": 6, "bank_start": 2, "bank_fill": 1, "log_every": 100, "save_every": 100, "panel_every": 0}
    return config_of(files, method="dida", out=out, **small | options)


def train(config: Config, fault: tuple[int, int, Callable[[], object]] | None = None) -> None:
    """What train.py does. `fault`: in the process of a rank, during a step, something is done."""
    torch.set_default_dtype(torch.float64)  # so that two runs that are the same to rounding stay so
    step = loop.train_step

    def faulty(state: TrainState, *rest: Any) -> Any:
        if fault and (distributed.dist.get_rank(), state.step + 1) == fault[:2]:
            fault[2]()
        return step(state, *rest)

    loop.train_step = faulty
    with Signals() as signals, signals.interrupting():
        command.run_training(config)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_checkpoint(latest(run))
    return {
        f"{part}.{name}": value
        for part in ("student", "teacher", "bank", "shares")
        for name, value in checkpoint[part].items()
    }


def told(processes: Processes) -> list[str]:
    """What the processes said on their way out, line by line; gloo's own warnings apart."""
    lines = [line for rank in range(processes.size) for line in processes.said(rank).splitlines()]
    return [line for line in lines if not line.startswith(("[W", "[rank"))]


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def test_a_run_of_four_goes_on_with_one_and_with_two(files, tmp_path):
    straight = tmp_path / "straight"
    Processes(4, tmp_path / "a", train, short(files, straight)).end(0, 0, 0, 0)
    killed = tmp_path / "killed"
    config = short(files, killed, save_every=3)
    Processes(4, tmp_path / "b", train, config, (1, 5, die)).end(1, 128 + signal.SIGKILL, 1, 1)
    assert [path.name for path in checkpoints(killed)] == ["step_000003.pt"]
    for size in (1, 2):
        run = shutil.copytree(killed, tmp_path / f"on_{size}")
        again = from_command_line(["--resume", str(run)])
        Processes(size, tmp_path / f"c{size}", train, again).end(*[0] * size)
        assert load_checkpoint(latest(run))["step"] == 6
        torch.testing.assert_close(tensors(run), tensors(straight), rtol=1e-7, atol=1e-9)


def test_processes_with_parts_go_on_bit_for_bit(files, tmp_path):
    runs = [tmp_path / "straight", tmp_path / "stopped"]
    in_parts = {"accumulate": 2, "checkpoint_activations": True}
    straight, stopped = (changed(short(files, run, steps=4, drop_path=0.3), **in_parts) for run in runs)
    Processes(2, tmp_path / "a", train, straight).end(0, 0)
    Processes(2, tmp_path / "b", train, stopped, (1, 3, stop)).end(*[128 + signal.SIGTERM] * 2)
    assert [path.name for path in checkpoints(runs[1])] == ["step_000003.pt"]
    Processes(2, tmp_path / "c", train, from_command_line(["--resume", str(runs[1])])).end(0, 0)
    one, other = (tensors(run) for run in runs)
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def run_out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")


def test_one_process_writes_what_all_found(files, tmp_path):
    run = tmp_path / "run"
    both = Processes(2, tmp_path / "said", train, short(files, run, log_every=2, panel_every=4))
    both.end(0, 0)
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [2, 4, 6]
    assert [path.name for path in (run / "panels").iterdir()] == ["step_000004.png"]
    assert "done after step 6; score it with" in both.said(0)
    assert [line for line in both.said(1).splitlines() if not line.startswith("[")] == []


# ---- ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 2])
def test_a_signal_to_one_stops_all_and_saves_once(files, tmp_path, rank):
    run = tmp_path / "run"
    all_three = Processes(3, tmp_path / "said", train, short(files, run, batch_size=3), (rank, 4, stop))
    all_three.end(*[128 + signal.SIGTERM] * 3)
    assert [path.name for path in checkpoints(run)] == ["step_000004.pt"]
    assert [line for line in told(all_three) if "SIGTERM" in line] == ["SIGTERM after step 4, saved; continue with"]
    assert not (run / "lock").exists()


def train_apart(config: Config) -> None:
    """Two runs with other class shares from the fourth step on, which is when they are asked to stop."""
    draw = TrainState.step_rng

    def apart(self: TrainState) -> Any:
        if self.step == 3:
            self.shares.share += distributed.dist.get_rank()
            stop()
        return draw(self)

    TrainState.step_rng = apart
    train(config)


def test_what_differs_between_processes_is_not_saved_on_a_signal_either(files, tmp_path):
    run = tmp_path / "run"
    both = Processes(2, tmp_path / "said", train_apart, short(files, run))
    both.end(1, 1)
    messages = [line for line in told(both) if line.startswith("train.py: ")]
    assert messages == ["train.py: shares.share of process 0 and of 1 differ after step 4"]
    assert checkpoints(run) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_the_death_of_one_ends_all_with_one_message(files, tmp_path, rank):
    run = tmp_path / "run"
    all_three = Processes(3, tmp_path / "said", train, short(files, run, batch_size=3, save_every=2), (rank, 4, die))
    all_three.end(*[128 + signal.SIGKILL if other == rank else 1 for other in range(3)], seconds=60)
    assert load_checkpoint(latest(run))["step"] == 2
    messages = [line for line in told(all_three) if line.startswith("train.py: ")]
    assert messages == ["train.py: another process of this run ended or did not answer, so this one cannot go on"]
    assert sum("step_000002.pt is the last that was saved" in line for line in told(all_three)) == 1
    assert not any("Traceback" in line for line in told(all_three))


def train_with_a_broken_picture(config: Config) -> None:
    read = Pairs.__getitem__

    def broken(self: Pairs, index: int) -> Any:
        if index == 7:  # the last of the second step: of the last process
            raise ImageFileError("a.png: not a readable image")
        return read(self, index)

    Pairs.__getitem__ = broken
    train(config)


def test_a_picture_that_one_cannot_read_ends_all_with_its_message(files, tmp_path):
    run = tmp_path / "run"
    both = Processes(2, tmp_path / "said", train_with_a_broken_picture, short(files, run))
    both.end(1, 1)
    assert [line for line in told(both) if line.startswith("train.py: ")] == ["train.py: a.png: not a readable image"]
    assert "stopped after step 1, saved; continue with" in both.said(0)
    assert load_checkpoint(latest(run))["step"] == 1


def test_an_error_within_a_step_of_one_is_told_by_it_alone(files, tmp_path):
    config = short(files, tmp_path / "run", save_every=2)
    both = Processes(2, tmp_path / "said", train, config, (1, 4, run_out_of_memory))
    both.end(1, 1, seconds=60)
    messages = [line for line in told(both) if line.startswith("train.py: ")]
    assert len(messages) == 1
    assert "out of memory; lower --crop or --batch-size" in messages[0]


def train_impatiently(config: Config, fault: tuple[int, int, Callable[[], object]]) -> None:
    distributed.PATIENCE = timedelta(seconds=4)
    train(config, fault)


def test_who_does_not_answer_in_time_is_not_waited_for(files, tmp_path):
    late = (1, 3, partial(time.sleep, 12))
    both = Processes(2, tmp_path / "said", train_impatiently, short(files, tmp_path / "run"), late)
    both.end(1, None)
    assert sum("did not answer" in line for line in told(both)) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 3}, "train.py: --batch-size 3: 2 processes share it equally, so it is a multiple of 2"),
        (
            {"device": "cuda:0"},
            "train.py: device cuda:0: 2 processes cannot share one GPU; with cuda each has one",
        ),
    ],
)
def test_what_does_not_go_with_several_is_refused(files, tmp_path, options, message):
    both = Processes(2, tmp_path / "said", train, short(files, tmp_path / "run", **options))
    both.end(1, 1)
    assert [line for line in told(both) if line.startswith("train.py: ")] == [message]
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_free_is_refused_once(files, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    both = Processes(2, tmp_path / "said", train, short(files, tmp_path / "run"))
    both.end(1, 1)
    assert sum("never overwritten" in line for line in told(both)) == 1


# ---- scores --------------------------------------------------------------------------------------------------------


def score(run: Path, out: Path) -> None:
    arguments = [run, "--json", out / "scores.json", "--save-predictions", out / "maps", "--workers", "0"]
    command.run_evaluation(read_command_line(EvalConfig, [str(a) for a in (*arguments, "--device", "cpu")], "eval.py"))


def test_pictures_are_shared_and_the_scores_are_those_of_one(files, tmp_path):
    run = tmp_path / "run"
    Processes(1, tmp_path / "said", train, short(files, run, steps=3)).end(0)
    found = {}
    for size in (1, 3):  # five pictures: two, two and one
        out = tmp_path / f"scored_{size}"
        processes = Processes(size, tmp_path / f"said_{size}", score, run, out)
        processes.end(*[0] * size)
        maps = {path.name: path.read_bytes() for path in sorted((out / "maps" / "train_ids").iterdir())}
        found[size] = (json.loads((out / "scores.json").read_text()), maps)
        assert sum(line.startswith("mAcc") for line in told(processes)) == 1
    assert found[1] == found[3]
    assert len(found[1][1]) == 5


# ---- torchrun ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun_starts_it(files, tmp_path):
    """The programs themselves, started as the page says."""
    options = {"method": "dida", "src": "toy-gta5", "tgt": "toy-cityscapes", "data_root": files, "weights": "none",
               "backbone": "mit_b0", "src_size": "128x64", "tgt_size": "128x64", "crop": 32, "batch_size": 2,
               "embed_dim": 8, "steps": 2, "bank_size": 40, "bank_start": 1, "bank_fill": 1, "workers": 1,
               "device": "cpu", "out": tmp_path / "run"}  # fmt: skip
    arguments = [part for name, value in options.items() for part in ("--" + name.replace("_", "-"), str(value))]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*torchrun, "train.py", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("done after step 2") == 1
    assert load_checkpoint(latest(tmp_path / "run"))["step"] == 2

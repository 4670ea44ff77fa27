"""`python -m bench.tables` end to end, on trainings of three steps."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from bench.tables import __main__ as tables
from bench.tables.rows import DIDA
from bench.tables.trainings import Training
from dida.data.toy import Counts, generate
from tests.bench.tables.test_render import real

ROOT = Path(__file__).parents[3]
TINY = (
    "--embed-dim 16 --crop 64 --batch-size 2 --warmup 1 --bank-start 1 --bank-fill 1 --bank-every 1 "
    "--rare-class-pixels 5 --workers 0 --log-every 1 --panel-every 0 --save-every 1"
)
TIMES = {"minutes", "scored", "commit", "dirty"}  # of a record: someone may commit while this runs


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    generate(root, counts=Counts(source=8, source_val=2, target=8, val=2, test=2))
    return root


def arguments(data: Path, folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    words = [
        "--seeds", "0", "--rows", "dida", "--warm-steps", "2", "--branch-steps", "3", "--data-root", data, "--device",
        "cpu", "--work", folder / "runs", "--results", folder / "results", f"--options={TINY}",
    ]  # fmt: skip
    return list(map(str, words))


def exit_status(args: list[str]) -> int:
    """Of the command, in this process."""
    with pytest.raises(SystemExit) as ended:
        tables.cli(args)
    return ended.value.code


def start(args: list[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "bench.tables", *args], cwd=ROOT)


def records(folder: Path) -> dict[str, dict]:
    found = {path.name: json.loads(path.read_text()) for path in (folder / "results" / "toy" / "records").iterdir()}
    return {name: {key: value for key, value in record.items() if key not in TIMES} for name, record in found.items()}


def power_cut(process: subprocess.Popen) -> None:
    """Kill a runner and then its commands, none of which can do anything about it."""
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children = [int(child) for child, parent in map(str.split, table.splitlines()) if int(parent) == process.pid]
    process.kill()
    process.wait()
    for child in children:
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(child, signal.SIGKILL)


@pytest.mark.slow
def test_a_runner_that_is_killed_at_random_moments_gives_the_same_records(data, tmp_path, capsys):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    began = time.monotonic()
    assert exit_status(arguments(data, straight)) == 0
    took = time.monotonic() - began
    assert set(records(straight)) == {"dida_s0_val.json", "warm_s0_val.json"}

    moments = [random.uniform(0, took) for _ in range(2)]
    process = start(arguments(data, broken))
    time.sleep(moments[0])
    power_cut(process)
    process = start(arguments(data, broken))
    time.sleep(moments[1])
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert exit_status(arguments(data, broken)) == 0
    assert records(broken) == records(straight), f"killed {moments} s after the start"

    before = {path: path.stat().st_mtime_ns for path in broken.rglob("*")}
    capsys.readouterr()
    assert exit_status(arguments(data, broken)) == 0
    assert "0 things to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in broken.rglob("*")} == before


def test_a_failing_training_is_shown_and_ends_in_exit_status_1(tmp_path, capsys):
    assert exit_status(arguments(tmp_path / "no data", tmp_path)) == 1
    said = capsys.readouterr().out
    assert "FAILED train warm_s0: exit code 1" in said
    assert "made by: python -m dida.data.toy" in said  # the last lines of train.py
    assert "FAILED train dida_s0: not run" in said
    assert not list(tmp_path.rglob("records/*"))


def test_a_run_without_a_checkpoint_starts_again_and_one_with_goes_on(tmp_path):
    training = Training(real("1", tmp_path), DIDA, 0)
    checkpoints = training.folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    (training.folder / "config.json").write_text('{"cut sh')
    assert "--resume" not in training.command()
    assert not training.folder.exists()
    checkpoints.mkdir(parents=True)
    (checkpoints / "step_000100.pt").touch()
    assert training.command()[3:5] == ["--resume", str(training.folder)]
    assert not training.done()
    (checkpoints / "step_040000.pt").touch()
    assert training.done()

"""`python -m bench.tables` in a clone: with real trainings of three steps, and with stand-ins that are killed."""

import json
import os
import random
import shutil
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
from tests.bench.tables.records import real

ROOT = Path(__file__).parents[3]
TINY = (
    "--embed-dim 16 --crop 64 --batch-size 2 --warmup 1 --bank-start 1 --bank-fill 1 --bank-every 1 "
    "--rare-class-pixels 5 --workers 0 --log-every 1 --panel-every 0 --save-every 1"
)
GIT = ["git", "-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]

# Keep the files of a run as the engine does, learn nothing, and need no time but for what a kill may hit. What a run
# says of its source and machine takes seconds to import, so the first one leaves it to the others.
ENVIRONMENT = "bench/results/environment.json"
TRAIN = f"""
import json, sys, time
from pathlib import Path

shared = Path(__file__).parent / "{ENVIRONMENT}"
if not shared.exists():
    from dida.machine.provenance import environment

    shared.parent.mkdir(exist_ok=True)
    shared.with_suffix(".partial").write_text(json.dumps(environment()))
    shared.with_suffix(".partial").replace(shared)
"""
TRAIN += """
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
run = Path(given.get("--resume") or given["--out"])
if "--out" in given:
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(given))
    (run / "environment.json").write_text(shared.read_text())
given = json.loads((run / "config.json").read_text())
assert "--init" not in given or list(Path(given["--init"]).glob("checkpoints/*"))
(run / "checkpoints").mkdir(exist_ok=True)
for step in range(1, int(given["--steps"]) + 1):
    path = run / "checkpoints" / f"step_{step:06d}.pt"
    if not path.exists():
        time.sleep(0.1)
        path.write_text(given["--seed"])
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "steps_per_second": 10.0}) + "\\n")
"""
EVAL = """
import json, sys
from pathlib import Path

given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
last = sorted(Path(sys.argv[1]).glob("checkpoints/*"))[-1]
scores = {"mIoU": {"19": int(last.read_text()) + 50.0}, "IoU": {}}
Path(given["--json"]).write_text(json.dumps(
    {"images": 2, "step": int(last.stem[5:]), "unit": "percent", "student": scores, "teacher": scores}))
"""


def output_of(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def clone(folder: Path, **files: str) -> Path:
    """A checkout of the tree as it is, with these files put in place of its own, and nothing uncommitted."""
    list_files = ["ls-files", "--cached", "--others", "--exclude-standard", "--", ".", ":!bench/results"]
    listed = output_of(["git", "-C", str(ROOT), *list_files]).splitlines()
    for name in listed:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    subprocess.run([*GIT, "-C", str(folder), "init", "--quiet"], check=True)
    subprocess.run([*GIT, "-C", str(folder), "add", "--all"], check=True)
    subprocess.run([*GIT, "-C", str(folder), "commit", "--quiet", "--message", "a tree"], check=True)
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    return clone(tmp_path_factory.mktemp("checkout"))


@pytest.fixture
def stand_in(tmp_path) -> Path:
    return clone(tmp_path / "checkout", train=TRAIN, eval=EVAL)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    generate(root, counts=Counts(source=8, source_val=2, target=8, val=2, test=2))
    return root


def start(checkout: Path, folder: Path, *more: str) -> subprocess.Popen:
    """The command, for DIDA and one seed."""
    folder.mkdir(exist_ok=True)
    words = [
        "--table", "8b", "--rows", "dida", "--seeds", "0", "--warm-steps", "2", "--branch-steps", "3",
        "--device", "cpu", "--work", str(folder / "runs"), "--results", str(folder / "results"),
        f"--options={TINY}", *more,
    ]  # fmt: skip
    command = [sys.executable, "-m", "bench.tables", *words]
    return subprocess.Popen(command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process: subprocess.Popen) -> tuple[int, str]:
    said = process.communicate()[0]
    return process.returncode, said


def records(folder: Path) -> dict[str, dict]:
    """What a record says that is not of the hour."""
    found = {path.name: json.loads(path.read_text()) for path in folder.glob("results/toy/records/*/*")}
    return {name: {key: record[key] for key in record.keys() - {"environment"}} for name, record in found.items()}


def power_cut(process: subprocess.Popen) -> None:
    """Kill a runner and then its commands, none of which can do anything about it."""
    table = output_of(["ps", "-A", "-o", "pid=,ppid="])
    children = [int(child) for child, parent in map(str.split, table.splitlines()) if int(parent) == process.pid]
    process.kill()
    process.wait()
    for child in children:
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(child, signal.SIGKILL)


def test_seeds():
    assert tables.parse_seeds("0-2,7") == (0, 1, 2, 7)
    assert tables.parse_seeds("100") == (100,)
    for wrong in ("", "a", "1-", "3-x", "²", "0-99999999999", "-1"):
        with pytest.raises(ValueError, match="--seeds"):
            tables.parse_seeds(wrong)


@pytest.mark.parametrize(
    "args, message",
    [
        (["--rows", "ddia"], "the rows are"),
        (["--data", "real", "--split", "test"], "not public"),
        (["--render"], "no record of table methods"),
        (["--seeds", "x"], "--seeds"),
    ],
)
def test_what_a_user_can_put_right_is_one_message(tmp_path, args, message):
    with pytest.raises(SystemExit, match=message):
        tables.tables_command([*args, "--results", str(tmp_path), "--work", str(tmp_path)])


@pytest.mark.slow
def test_real_trainings_become_records_of_their_source(checkout, data, tmp_path):
    status, said = finished(start(checkout, tmp_path, "--data-root", str(data), "--warm-steps", "0"))
    assert status == 0, said
    commit = output_of(["git", "-C", str(checkout), "rev-parse", "HEAD"])
    found = records(tmp_path)
    assert list(found) == ["dida_s0_val.json"]
    record = found["dida_s0_val.json"]
    assert record["commit"] == commit[:12]
    assert (tmp_path / f"results/toy/records/{record['digest']}/dida_s0_val.json").exists()
    assert record["options"]["bank_fill"] == 1
    assert 0 <= record["student"]["mIoU"]["19"] <= 100


def test_a_runner_that_is_killed_at_random_moments_gives_the_same_records(stand_in, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    began = time.monotonic()
    status, said = finished(start(stand_in, straight))
    took = time.monotonic() - began
    assert status == 0, said
    assert set(records(straight)) == {"dida_s0_val.json", "warm_s0_val.json"}
    moments = [random.uniform(0.3, 1) * took for _ in range(2)]  # before it nothing but modules is loaded
    process = start(stand_in, broken)
    time.sleep(moments[0])
    power_cut(process)
    process = start(stand_in, broken)
    time.sleep(moments[1])
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert finished(start(stand_in, broken))[0] == 0
    assert records(broken) == records(straight), f"killed {moments} s after the start"

    before = {path: path.stat().st_mtime_ns for path in broken.rglob("*")}
    assert "0 things to do" in finished(start(stand_in, broken))[1]
    assert {path: path.stat().st_mtime_ns for path in broken.rglob("*")} == before


def test_a_changed_tree_trains_nothing(stand_in, tmp_path):
    """A change, and a file that nobody knows; results are none."""
    (stand_in / "bench" / "results").mkdir()
    (stand_in / "bench" / "results" / "new.json").touch()
    (stand_in / "dida" / "step.py").write_text("")
    (stand_in / "dida" / "other.py").touch()
    status, said = finished(start(stand_in, tmp_path))
    assert status == 1
    assert "dida/step.py, dida/other.py: not as in the commit of this tree" in said
    assert "new.json" not in said
    assert not list(tmp_path.rglob("records"))


def test_a_source_that_changes_while_it_trains_leaves_no_record(stand_in, tmp_path):
    process = start(stand_in, tmp_path)
    for _ in range(600):
        if list(tmp_path.rglob("metrics.jsonl")):
            break
        time.sleep(0.05)
    (stand_in / ENVIRONMENT).unlink()
    (stand_in / "dida" / "recipes.py").write_text("# edited\n" + (stand_in / "dida" / "recipes.py").read_text())
    status, said = finished(process)
    assert status == 1
    assert "FAILED score dida_s0_val: no record: it would be of source" in said
    assert not list(tmp_path.rglob("dida_s0_val.json"))


def test_a_failing_training_is_shown_and_ends_in_exit_status_1(stand_in, tmp_path):
    (stand_in / "train.py").write_text("raise SystemExit('no data; made by: python -m dida.data.toy')")
    subprocess.run([*GIT, "-C", str(stand_in), "commit", "--quiet", "--all", "--message", "it fails"], check=True)
    status, said = finished(start(stand_in, tmp_path))
    assert status == 1
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

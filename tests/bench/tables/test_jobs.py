"""Commands side by side: their order, what failures and signals do, and that a killed runner spoils nothing."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.tables.jobs import Jobs, Task
from dida.machine.signals import Signals
from tests.bench.tables.chain import STEPS
from tests.processes import LIMIT, wait_until

ROOT = Path(__file__).parents[3]

WHOLE = dict.fromkeys(("first", "second", "third"), "".join(f"{step} " for step in range(STEPS)))


@pytest.fixture
def signals():
    listening = Signals()
    yield listening
    listening.restore()


def shell(name: str, folder: Path, script: str, after: Task | None = None) -> Task:
    """A task that is done when its script has made the file of its name."""
    made = folder / name
    return Task(name, lambda: ["sh", "-c", script.format(made=made)], made.exists, folder / f"{name}.log", after)


def test_what_needs_another_waits_for_it(tmp_path, signals):
    first = shell("first", tmp_path, "sleep 0.3; touch {made}")
    second = shell("second", tmp_path, f"test -e {tmp_path}/first && touch {{made}}", after=first)
    assert Jobs([second, first], 2, {}).run(signals) == []
    assert (tmp_path / "second").exists()


def test_no_more_at_once_than_allowed(tmp_path, signals):
    count = "touch {made}.on; ls $(dirname {made})/*.on | wc -l; sleep 0.3; rm {made}.on; touch {made}"
    tasks = [shell(f"t{i}", tmp_path, count) for i in range(4)]
    Jobs(tasks, 2, {}).run(signals)
    assert max(int(task.log.read_text()) for task in tasks) == 2


def test_what_is_done_is_not_run(tmp_path, signals, capsys):
    task = shell("task", tmp_path, "echo run >> {made}")
    Jobs([task], 1, {}).run(signals)
    jobs = Jobs([task], 1, {})
    assert jobs.total == 0
    jobs.run(signals)
    assert (tmp_path / "task").read_text() == "run\n"


def test_a_failure_is_shown_and_the_others_go_on(tmp_path, signals, capsys):
    bad = shell("bad", tmp_path, "echo the reason >&2; exit 3")
    needs_it = shell("needs it", tmp_path, "touch {made}", after=bad)
    good = shell("good", tmp_path, "touch {made}")
    assert Jobs([bad, needs_it, good], 1, {}).run(signals) == ["bad", "needs it"]
    assert (tmp_path / "good").exists()
    assert not (tmp_path / "needs it").exists()
    said = capsys.readouterr().out
    assert "exit code 3" in said
    assert "the reason" in said


def test_a_command_that_ends_well_without_its_outcome_has_failed(tmp_path, signals):
    assert Jobs([shell("idle", tmp_path, "true")], 1, {}).run(signals) == ["idle"]


def test_the_environment_reaches_the_command(tmp_path, signals):
    Jobs([shell("task", tmp_path, "echo $OMP_NUM_THREADS > {made}")], 1, {"OMP_NUM_THREADS": "3"}).run(signals)
    assert (tmp_path / "task").read_text() == "3\n"


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "tests.bench.tables.chain", str(folder)], cwd=ROOT)


def wait_for(path: Path) -> None:
    assert wait_until(path.exists), f"{path} was never made"


def steps_of(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in ("first", "second", "third")}


def test_a_stopped_runner_stops_its_commands(tmp_path):
    process = start(tmp_path)
    wait_for(tmp_path / "first")
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == 130
    stopped = (tmp_path / "first").read_text()
    time.sleep(0.3)
    assert (tmp_path / "first").read_text() == stopped
    assert not (tmp_path / "third").exists()


def test_a_killed_runner_starts_nothing_twice(tmp_path):
    """Its orphans live on; the next runner waits for them, or two would write the same file."""
    process = start(tmp_path)
    wait_for(tmp_path / "first")
    process.kill()
    process.wait()
    assert start(tmp_path).wait(LIMIT) == 0
    assert steps_of(tmp_path) == WHOLE


def test_two_runners_share_the_work(tmp_path):
    processes = [start(tmp_path), start(tmp_path)]
    assert [process.wait(LIMIT) for process in processes] == [0, 0]
    assert steps_of(tmp_path) == WHOLE


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_runners_that_end_at_random_moments_leave_what_one_would_have(tmp_path, kind):
    rng = random.Random(kind)
    for _ in range(6):
        process = start(tmp_path)
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(kind)
        process.wait(LIMIT)
    assert start(tmp_path).wait(LIMIT) == 0
    assert steps_of(tmp_path) == WHOLE

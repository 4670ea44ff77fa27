"""Stages that hang, crash, leave children or fill their log, a command told to stop: two files, and they are true."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest

from bench.gpu import command, runner
from bench.gpu.ledger import DONE, FAILED, LOGS, NOT_REACHED, RESULTS, RUNNING, TIMED_OUT
from bench.gpu.runner import CHECKOUT, Request, run_stages
from bench.gpu.stages import GATE, Stage
from dida.machine.files import PARTIAL

# What a stage is called with comes behind its code: --device D --seconds S --to FILE.
KEEP = "import json, sys; to = sys.argv[sys.argv.index('--to') + 1]; open(to, 'w').write(json.dumps({'rows': [1]})); "
SLEEP = "import time; time.sleep(600)"
SOON = 0.1  # seconds of a stage, which are ten times as long where there is no GPU


def stage(name: str, code: str, seconds: float = 6, **options) -> Stage:
    return Stage(name, ("-c", code), seconds, **options)


def outcomes(out: Path, *, killed: bool = False) -> dict[str, str]:
    return {name: found["outcome"] for name, found in results(out, killed=killed)["stages"].items()}


def results(out: Path, *, killed: bool = False) -> dict:
    """What came back, which is exactly two files; of one that was `killed`, perhaps a third that it was writing."""
    names = {path.name for path in out.iterdir()}
    assert {name for name in names if not (killed and fnmatch(name, PARTIAL))} == {RESULTS, LOGS}
    return json.loads((out / RESULTS).read_text())


def log_of(out: Path, name: str) -> str:
    with tarfile.open(out / LOGS) as archive:
        return archive.extractfile(f"logs/{name}.log").read().decode()


def run(out: Path, *plan: Stage, seconds: float = 300, **options) -> int:
    return run_stages(plan, Request(out, seconds, "cpu", **options))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_stage_that_hangs_or_crashes_takes_no_other_with_it(tmp_path):
    out = tmp_path / "out"
    status = run(
        out,
        stage("well", KEEP + "print('all is well')"),
        stage("hangs", KEEP + SLEEP, SOON),
        stage("crashes", KEEP + "import os, signal; print('before'); os.kill(os.getpid(), signal.SIGSEGV)"),
        stage("raises", "raise ValueError('that is why')"),
        stage("last", KEEP),
    )
    assert status == 1
    assert outcomes(out) == {"well": DONE, "hangs": TIMED_OUT, "crashes": FAILED, "raises": FAILED, "last": DONE}
    found = results(out)
    assert found["stages"]["crashes"]["why"] == "exit status -11\nbefore"
    assert "ValueError: that is why" in found["stages"]["raises"]["why"]
    assert found["stages"]["hangs"]["seconds"] >= 1
    assert set(found["found"]) == {"well", "hangs", "crashes", "last"}  # what was found before the end counts
    assert log_of(out, "well") == "all is well\n"


def test_all_well(tmp_path):
    assert run(tmp_path / "out", stage("one", KEEP)) == 0


@pytest.mark.parametrize("leaves", ["", "start_new_session=True"], ids=["in its group", "in a session of its own"])
@pytest.mark.parametrize("end, outcome", [("", DONE), (SLEEP, TIMED_OUT)], ids=["done", "hangs"])
def test_nothing_of_a_stage_is_left(tmp_path, leaves, end, outcome):
    """Not even what left its process group, and what would be timed beside is no longer there."""
    child = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', '{SLEEP}'], {leaves}); "
    pid = tmp_path / "pid"
    out = tmp_path / "out"
    run(out, stage("parent", child + f"open('{pid}', 'w').write(str(child.pid)); " + end, SOON * (3 if end else 60)))
    assert outcomes(out) == {"parent": outcome}
    assert not alive(int(pid.read_text()))


def test_a_stage_that_fills_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "LOG_BYTES", 100_000)
    monkeypatch.setattr(command, "KEPT_BYTES", 1000)
    out = tmp_path / "out"
    assert (
        run(out, stage("talks", "print('first')\nfor i in range(200_000): print('again and again', i)\nprint('last')"))
        == 0
    )
    log = log_of(out, "talks")
    assert len(log) <= 100_000
    assert log.startswith("first\n")
    assert log.endswith("last\n")
    assert command.CUT.decode() in log


def test_what_finds_no_time_is_not_begun(tmp_path):
    out = tmp_path / "out"
    status = run(out, stage("one", KEEP), stage("long", KEEP, needs=1000), stage("short", KEEP), seconds=60)
    assert status == 1
    assert outcomes(out) == {"one": DONE, "long": NOT_REACHED, "short": DONE}
    assert "it needs 1000" in results(out)["stages"]["long"]["why"]


def waits_for(path: Path) -> str:
    return f"import pathlib, time\nwhile not pathlib.Path('{path}').exists(): time.sleep(0.05)\n"


def touches(path: Path) -> str:
    return f"import pathlib; pathlib.Path('{path}').touch(); "


def test_neighbours_run_at_the_same_time_and_have_ended_before_the_next(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    out = tmp_path / "out"
    status = run(
        out,
        stage("one", touches(one) + waits_for(two), 60, beside="both"),
        stage("two", waits_for(one) + touches(two) + "time.sleep(1); " + touches(tmp_path / "end"), 60, beside="both"),
        stage("alone", f"import os, sys; sys.exit(not os.path.exists('{tmp_path / 'end'}'))"),
    )
    assert outcomes(out) == {"one": DONE, "two": DONE, "alone": DONE}
    assert status == 0


def test_one_that_hangs_beside_others_is_ended_at_its_own_time(tmp_path):
    out = tmp_path / "out"
    run(out, stage("hangs", SLEEP, SOON, beside="both"), stage("well", "import time; time.sleep(8)", beside="both"))
    assert outcomes(out) == {"hangs": TIMED_OUT, "well": DONE}
    assert results(out)["stages"]["hangs"]["seconds"] < 7


def test_without_the_gate_nothing_is_measured(tmp_path, capsys):
    out = tmp_path / "out"
    gate = "import json, sys; to = sys.argv[sys.argv.index('--to') + 1]; "
    gate += "open(to, 'w').write(json.dumps({'obstacles': ['there is no CUDA device']})); sys.exit(1)"
    assert run(out, stage(GATE, gate), stage("next", KEEP)) == 2
    assert outcomes(out) == {GATE: FAILED, "next": NOT_REACHED}
    assert "there is no CUDA device" in capsys.readouterr().out
    assert run(out, stage(GATE, "import os; os.abort()"), stage("next", KEEP)) == 2
    assert outcomes(out) == {GATE: FAILED, "next": NOT_REACHED}


PROGRAM = """
import sys
from pathlib import Path
from bench.gpu.runner import Request, run_stages
from bench.gpu.stages import Stage
stages = zip(sys.argv[2::2], sys.argv[3::2])
plan = [Stage(name, ("-c", code), 50, beside="both" if "two" in name else None) for name, code in stages]
sys.exit(run_stages(plan, Request(Path(sys.argv[1]), 300, "cpu")))
"""


def told(tmp_path: Path, what: signal.Signals) -> tuple[int, Path, list[Path]]:
    """A command that got this signal in its second stage and the one beside it: status, files, and these stages' pids.

    Both take no notice of SIGTERM.
    """
    out, pids = tmp_path / "out", [tmp_path / "pid", tmp_path / "beside"]
    deaf = "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    sleeping = [
        KEEP + deaf + f"open('{pid}.new', 'w').write(str(os.getpid())); os.rename('{pid}.new', '{pid}'); " + SLEEP
        for pid in pids
    ]
    plan = ["one", KEEP, "two", sleeping[0], "beside two", sleeping[1], "three", KEEP]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(out), *plan], cwd=CHECKOUT, stdout=subprocess.PIPE)
    until = time.monotonic() + 60
    while not all(pid.exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(what)
    process.communicate(timeout=60)
    return process.returncode, out, pids


def test_told_to_stop_it_brings_back_what_there_is(tmp_path):
    status, out, pids = told(tmp_path, signal.SIGTERM)
    assert status == 143
    assert outcomes(out) == {"one": DONE, "two": FAILED, "beside two": FAILED, "three": NOT_REACHED}
    found = results(out)
    assert all("SIGTERM" in found["stages"][name]["why"] for name in ("two", "beside two"))
    assert set(found["found"]) == {"one", "two", "beside two"}
    assert not any(alive(int(pid.read_text())) for pid in pids)


def test_killed_it_leaves_what_it_had_written(tmp_path):
    status, out, pids = told(tmp_path, signal.SIGKILL)
    for pid in pids:
        os.kill(int(pid.read_text()), signal.SIGKILL)  # nobody else can
    assert status == -9
    assert outcomes(out, killed=True) == {"one": DONE, "two": RUNNING, "beside two": RUNNING, "three": NOT_REACHED}


def test_what_a_stage_writes_is_kept_while_it_runs(tmp_path, monkeypatch):
    """A machine that is taken away in the middle of a stage has given what that stage had found."""
    monkeypatch.setattr(runner, "NEWS", 0.1)
    out = tmp_path / "out"
    wait = f"""
import time
until = time.monotonic() + 20
while '"rows"' not in open('{out / RESULTS}').read() and time.monotonic() < until: time.sleep(0.05)
print('rows' if '"rows"' in open('{out / RESULTS}').read() else 'nothing')
"""
    run(out, stage("writes", KEEP + f"exec({wait!r})"))
    assert log_of(out, "writes") == "rows\n"


def test_wheels_travel(tmp_path):
    import zipfile

    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "travelled-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("travelled.py", "WORD = 'here'")
        wheel.writestr("travelled-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: travelled\nVersion: 1.0\n")
        wheel.writestr(
            "travelled-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("travelled-1.0.dist-info/RECORD", "")
    out = tmp_path / "out"
    assert run(out, stage("uses", "import travelled, bench.gpu; print(travelled.WORD)"), wheels=wheels) == 0
    assert log_of(out, "uses") == "here\n"
    assert results(out)["asked"]["wheels"] == {"files": ["travelled-1.0-py3-none-any.whl"], "installed": True}


def test_banks_are_where_their_test_looks(tmp_path):
    out = tmp_path / "out"
    run(out, stage("says", "import os; print(os.environ['DIDA_BANKS'])"), banks=tmp_path)
    assert log_of(out, "says") == f"{tmp_path}\n"

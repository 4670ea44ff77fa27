"""train.py and eval.py as processes: signals, killed workers, full disks and devices, and what they say and leave.

The harness (`python -m tests.faults`) does more of it.
"""

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from dida.state import checkpoints, latest, load_checkpoint
from tests.engine.checkpoints import tiny_config, write_checkpoint
from tests.faults.scripts import Script, arguments, make_toy
from tests.processes import Child, wait_until

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, which takes root")


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory) -> None:
    """It imports everything once, which is no part of the first test."""
    assert Child(tmp_path_factory.mktemp("server") / "said", print).wait() == 0


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return make_toy(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, toy) -> Path:
    """A checkpoint of random weights, with what evaluation reads of it."""
    return write_checkpoint(tmp_path_factory.mktemp("trained") / "random.pt", tiny_config(toy, tgt="toy-cityscapes"))


TINY = {"backbone": "test_resnet", "weights": "none"}


def running(
    toy: Path, tmp_path: Path, *, steps: int = 1, before: Callable[[], object] | None = None, **options
) -> Script:
    """A training that has come to that step. `before`: see Script."""
    run = Script("train.py", arguments(toy, tmp_path / "run", **TINY | options), tmp_path / "said", before)
    assert wait_until(lambda: f"step {steps:>4}/" in run.said() or run.status is not None)
    assert run.status is None, run.said()
    return run


def assert_told(run: Script, *parts: str) -> None:
    said = run.said()
    assert "Traceback" not in said
    for part in parts:
        assert part in said


@pytest.mark.parametrize(
    "kind, workers, group",
    [
        (signal.SIGINT, 2, True),
        (signal.SIGTERM, 2, True),
        (signal.SIGHUP, 0, True),
        (signal.SIGUSR1, 2, False),
    ],
)
def test_a_signal_leaves_a_checkpoint_a_hint_and_nobody(toy, tmp_path, kind, workers, group):
    run = running(toy, tmp_path, workers=workers)
    run.signal(kind, group=group)
    assert run.wait() == 128 + kind
    assert not run.left_over()
    step = load_checkpoint(latest(tmp_path / "run"))["step"]
    assert_told(run, f"{kind.name} after step {step}, saved; continue with", f"train.py --resume {tmp_path / 'run'}")


def test_what_timeout_sends_twice_is_one_request(toy, tmp_path):
    run = running(toy, tmp_path, workers=2)
    run.signal(signal.SIGTERM)
    run.signal(signal.SIGTERM, group=True)
    assert run.wait() == 143
    assert_told(run, "SIGTERM after step")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_before_there_is_anything_to_save_it_is_quiet(toy, trained, tmp_path, script, kind):
    args = arguments(toy, tmp_path / "run", **TINY) if script == "train.py" else [str(trained), "--workers", "2"]
    run = Script(script, args, tmp_path / "said")
    assert wait_until(lambda: listens(run.pid))
    time.sleep(0.02 * kind)
    run.signal(kind, group=True)
    assert run.wait() == 128 + kind, run.said()
    assert not run.left_over()
    assert_told(run)


def listens(pid: int) -> bool:
    """Whether a process has handlers for the signals that stop it; of SIGUSR1 nobody else has one."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return bool(caught >> (signal.SIGUSR1 - 1) & 1)


def test_a_worker_that_is_killed_costs_no_step(toy, tmp_path):
    run = running(toy, tmp_path, workers=2)
    (worker, *_) = children(run.pid)
    os.kill(worker, signal.SIGKILL)
    assert run.wait() == 1
    assert not run.left_over()
    step = load_checkpoint(latest(tmp_path / "run"))["step"]
    assert_told(run, f"process {worker}, which read data, was killed by SIGKILL", f"stopped after step {step}, saved;")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def mount_shared_memory(size: str) -> None:
    """Mount /dev/shm anew, for this process alone."""
    assert ctypes.CDLL(None).unshare(0x00020000) == 0  # CLONE_NEWNS
    assert os.system("mount --make-rprivate /") == 0
    assert os.system(f"mount -t tmpfs -o size={size} tmpfs /dev/shm") == 0


@ROOT_ONLY
@pytest.mark.parametrize("size", ["16k", "300k"])
@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_shared_memory_that_is_full_is_said_and_nothing_hangs(toy, trained, tmp_path, script, size):
    """Neither the locks of four processes, nor one batch, has room."""
    args = arguments(toy, tmp_path / "run", **TINY, crop=256, src_size="512x256", tgt_size="512x256", workers=4)
    if script == "eval.py":
        args = [str(trained), "--workers", "4", "--size", "1024x512"]
    run = Script(script, args, tmp_path / "said", before=partial(mount_shared_memory, size))
    assert run.wait() == 1
    assert not run.left_over()
    assert_told(run, f"{script}: /dev/shm (", "is full: use fewer --workers")


@ROOT_ONLY
def test_shared_memory_that_fills_up_later_costs_no_step(toy, tmp_path):
    run = running(toy, tmp_path, before=partial(mount_shared_memory, "8m"), workers=2)
    with contextlib.suppress(OSError), open(f"/proc/{run.pid}/root/dev/shm/another", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert run.wait() == 1
    assert not run.left_over()
    step = load_checkpoint(latest(tmp_path / "run"))["step"]
    assert_told(run, "/dev/shm (8.4 MB) is full: use fewer --workers", f"stopped after step {step}, saved;")


def test_a_full_disk_names_what_it_needs_and_what_is_good(toy, tmp_path):
    """The second checkpoint does not fit: a limit of this one process stands for the disk."""
    run = running(toy, tmp_path, save_every=1)
    assert wait_until(lambda: checkpoints(tmp_path / "run"))
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (500_000, 500_000))
    assert run.wait() == 1
    assert_told(run, "File too large (", " MB are needed,", "is the last that was saved; continue with")
    assert [p.suffix for p in (tmp_path / "run").rglob("*") if "partial" in p.name] == []
    for path in checkpoints(tmp_path / "run"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "args",
    [
        ["--json", "/dev/full"],
        ["--json", "{tmp}"],
        ["--json", "{tmp}/said/x"],
        ["--save-predictions", "{tmp}/said"],
        ["--images", "{tmp}", "--out", "/proc/nope"],
        ["--images", "{tmp}", "--out", "{tmp}/" + "n" * 300],
    ],
)
def test_a_place_that_is_none_is_refused_before_the_work(trained, tmp_path, args):
    (tmp_path / "said").touch()
    run = Script("eval.py", [str(trained), *(arg.format(tmp=tmp_path) for arg in args)], tmp_path / "said")
    assert run.wait() == 1
    assert_told(run, f"eval.py: {args[-2]} {args[-1].format(tmp=tmp_path)}: cannot be written to")
    assert "class" not in run.said()
    assert [p.name for p in tmp_path.iterdir()] == ["said"]


def test_a_second_process_on_one_run_is_refused(toy, tmp_path):
    first = running(toy, tmp_path, save_every=1)
    args = ["--resume", str(tmp_path / "run")]
    assert wait_until(lambda: checkpoints(tmp_path / "run"))
    second = Script("train.py", args, tmp_path / "said2")
    assert second.wait() == 1
    assert_told(second, f"train.py: {tmp_path / 'run'}: process {first.pid} on ", "one folder has one writer")
    first.signal(signal.SIGKILL, group=True)
    first.wait()
    third = Script("train.py", args, tmp_path / "said3")
    assert wait_until(lambda: "run folder" in third.said() or third.status is not None)
    third.signal(signal.SIGTERM)
    assert third.wait() == 143


def test_pictures_of_a_full_disk_are_whole_or_not_there(trained, tmp_path):
    """As K10 has it: an old file stays, none is torn."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    source = sorted(Path(load_checkpoint(trained)["config"]["data"]["data_root"]).rglob("*_leftImg8bit.png"))[0]
    shutil.copy(source, pictures / "a.png")
    out = tmp_path / "out"
    (out / "overlay").mkdir(parents=True)
    (out / "overlay" / "a.png").write_text("old")
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (5000, 5000))
    run = Script("eval.py", [str(trained), "--images", str(pictures), "--out", str(out)], tmp_path / "said", limit)
    assert run.wait() == 1
    assert_told(run, "File too large", str(out / "overlay" / "a.png"))
    assert (out / "overlay" / "a.png").read_text() == "old"
    for path in (path for path in out.rglob("*") if path.is_file() and path.parent.name != "overlay"):
        assert not path.name.startswith(".")  # a partial one
        Image.open(path).load()

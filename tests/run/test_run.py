"""The run folder is never overwritten and goes on where the run does."""

import json
import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dida.config import Config, changed, from_dict, to_dict
from dida.data.classes import CITYSCAPES_CLASSES, ClassSet
from dida.errors import UserError
from dida.run import events
from dida.run.folder import Run, require_place, run_name


def start(config: Config, *runs: Path) -> Run:
    return Run.start(config, CITYSCAPES_CLASSES, *runs)


def metrics(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_is_named_by_what_it_is():
    config = changed(
        Config(), src="folder:/photos/My Streets (old)", tgt="toy-cityscapes", backbone="pvt_v2_b0", seed=3
    )
    name = run_name(config, datetime(2024, 5, 6, 7, 8, 9))
    assert name == "2024-05-06_070809_dida_My-Streets-old2toy-cityscapes_pvt_v2_b0_s3"


def test_a_new_run_writes_its_options_and_its_machine(tmp_path):
    run = start(changed(Config(), phi=0.5), tmp_path / "runs")
    assert run.folder.parent == tmp_path / "runs"
    written = json.loads((run.folder / "config.json").read_text())
    assert from_dict(written) == changed(Config(), phi=0.5)
    assert run.config == written
    classes = json.loads((run.folder / "classes.json").read_text())
    assert ClassSet.from_dict(classes) == CITYSCAPES_CLASSES
    machine = json.loads((run.folder / "environment.json").read_text())
    assert machine["torch"] == torch.__version__
    assert set(machine["git"] or {"commit": "", "dirty": ""}) == {"commit", "dirty"}
    assert {"python", "triton", "cuda", "gpu", "platform", "argv", "kernels"} <= set(machine)


def saved_at(folder: Path, step: int) -> None:
    """A checkpoint, as far as its name goes."""
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / f"step_{step:06d}.pt").touch()


def test_a_run_is_never_overwritten(tmp_path):
    config = changed(Config(), out=tmp_path / "mine")
    (tmp_path / "mine").mkdir()  # empty: taken as it is
    start(config).close()
    start(config).close()  # a start that came to no checkpoint is taken over
    saved_at(tmp_path / "mine", 1)
    with pytest.raises(FileExistsError, match="--resume"):
        start(config)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        start(changed(Config(), out=tmp_path / "file"))


def test_a_resumed_log_is_that_of_an_uninterrupted_run(tmp_path):
    def log(run: Run, *steps: int) -> Run:
        for step in steps:
            run.log(step, {"loss/source": step / 10})
        return run

    whole = log(start(changed(Config(), out=tmp_path / "whole")), 10, 20, 30, 40)
    broken = log(start(changed(Config(), out=tmp_path / "broken")), 10, 20, 30)
    broken.close()
    saved_at(broken.folder, 20)
    (events,) = broken.folder.glob("events.out.tfevents.*")
    # As if it was begun earlier than in this very second, within which TensorBoard's files have no order.
    events.rename(re.sub(r"tfevents\.\d+", "tfevents.0000000001", str(events)))
    with (broken.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # the machine went down here; the last checkpoint is that of step 20
    moved = changed(Config(), out=broken.folder, resume=broken.folder, data_root=Path("elsewhere"))
    resumed = log(Run.resume(moved, 20), 30, 40)
    assert metrics(resumed) == metrics(whole)
    expected = to_dict(changed(moved, resume=None))  # what it is now, so that eval.py finds the data
    assert resumed.config == json.loads((broken.folder / "config.json").read_text()) == expected
    assert (broken.folder / "environment_from_step_000020.json").exists()

    resumed.close()
    shown = EventAccumulator(str(broken.folder)).Reload().Scalars("loss/source")
    assert [event.step for event in shown] == [10, 20, 30, 40]


def test_without_tensorboard_the_log_is_metrics_alone_and_it_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(events, "MISSING", "no curves for TensorBoard: No module named 'tensorboard'")
    run = start(changed(Config(), out=tmp_path / "run"))
    run.log(1, {"loss/source": 0.5})
    run.close()
    assert "no curves for TensorBoard" in caplog.text
    assert metrics(run) == [{"step": 1, "loss/source": 0.5}]
    assert not list(run.folder.glob("events.out.tfevents.*"))


# ---- one writer, and what it may take over -------------------------------------------------------------------------

LEFT = {  # by a start that came to no checkpoint
    "nothing": [],
    "its options": ["config.json", "classes.json"],
    "a first log line": [
        "config.json", "classes.json", "environment.json", "metrics.jsonl", "events.out.tfevents.1.a.2"
    ],
    "a panel": ["config.json", "panels/step_000100.png"],
    "curves of a service": ["config.json", "tracker.json", "wandb/offline-run-1/run.wandb"],
    "half a checkpoint": ["config.json", "checkpoints/.step_000100.pt.77.partial", ".config.json.77.partial"],
    "the lock of a process that was killed": ["lock", "config.json"],
}  # fmt: skip


# As a run does, to the end of its log where its first checkpoint was not written whole.
WRITTEN = {"config.json": json.dumps(to_dict(Config())), "metrics.jsonl": '{"step": 1000}\n'}


def fill(folder: Path, names: list[str], **written: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text((WRITTEN | written).get(name, "left"))


@pytest.mark.parametrize("left", LEFT)
def test_a_start_that_came_to_no_checkpoint_is_taken_over(tmp_path, left):
    config = changed(Config(), out=tmp_path / "run")
    fill(tmp_path / "run", LEFT[left])
    require_place(config)
    with start(config) as run:
        assert from_dict(json.loads((run.folder / "config.json").read_text())) == config
    for name in LEFT[left]:
        path = tmp_path / "run" / name
        assert not path.exists() or path.read_text() not in ("left", WRITTEN["metrics.jsonl"])
    assert not (tmp_path / "run" / "lock").exists()


@pytest.mark.parametrize(
    "names, instead",
    [
        (["notes.txt"], "or remove it"),
        (["config.json", "holiday/a.jpg"], "or remove it"),
        (["config.json", "nonfinite_step_7.json"], "or remove it"),
        (["config.json", "panels/drawn.png"], "or remove it"),
        (["config.json", "checkpoints/step_000100.pt"], "--resume"),
        (["config.json", "checkpoints/step_000100.pt.aside"], "or remove it"),
    ],
)
def test_anything_else_is_left_alone(tmp_path, names, instead):
    config = changed(Config(), out=tmp_path)
    fill(tmp_path, names)
    for refuse in (start, require_place):
        with pytest.raises(FileExistsError, match=f"a run is never overwritten.*{instead}"):
            refuse(config)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == sorted(names)
    assert {(tmp_path / name).read_text() for name in names} <= {"left", *WRITTEN.values()}


FINISHED = ["config.json", "classes.json", "metrics.jsonl", "panels/step_040000.png"]  # its checkpoints were moved


@pytest.mark.parametrize(
    "names, written",
    [
        (FINISHED, {"metrics.jsonl": '{"step": 1000}\n{"step": 1050}\n'}),
        (FINISHED, {"metrics.jsonl": "no line of ours\n"}),
        (["config.json"], {"config.json": '{"model_type": "segformer"}'}),
        (["config.json"], {"config.json": "not JSON"}),
        (["config.json", "wandb/offline-run-1/run.wandb"], {}),  # of another program: ours has its tracker.json
        (["wandb/offline-run-1/run.wandb"], {}),
        (["metrics.jsonl"], {}),
    ],
)
def test_what_only_looks_like_a_start_is_left_alone(tmp_path, names, written):
    fill(tmp_path, names, **written)
    before = {name: (tmp_path / name).read_text() for name in names}
    for refuse in (start, require_place):
        with pytest.raises(FileExistsError, match=r"a run is never overwritten.*or remove it"):
            refuse(changed(Config(), out=tmp_path))
    assert {name: (tmp_path / name).read_text() for name in names} == before


def refused_in_a_child(act: Callable[[], object]) -> str:
    read, write = os.pipe()
    if not os.fork():
        said = b""
        try:
            act()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}".encode()
        os.write(write, said)
        os._exit(0)
    os.close(write)
    os.wait()
    with os.fdopen(read) as answer:
        return answer.read()


def test_a_second_process_is_told_who_trains_the_run(tmp_path):
    config = changed(Config(), out=tmp_path / "run")
    again = changed(config, resume=tmp_path / "run")
    log = b""
    with start(config) as run:
        run.log(1, {"loss/source": 1.0})
        log = (run.folder / "metrics.jsonl").read_bytes()
        for act in (
            lambda: start(config),
            lambda: Run.resume(again, 0),
            lambda: require_place(config),
            lambda: require_place(again),
        ):
            assert f"Claimed: {run.folder}: process {os.getpid()} on " in refused_in_a_child(act)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == log
    assert refused_in_a_child(lambda: require_place(again)) == ""


def test_a_run_that_went_on_in_the_meantime_is_not_resumed(tmp_path):
    """Its checkpoint of step 100 was read while another process went on to 200 and ended."""
    fill(tmp_path, ["config.json", "checkpoints/step_000100.pt", "checkpoints/step_000200.pt"])
    with pytest.raises(UserError, match="another process has advanced this run"):
        Run.resume(changed(Config(), resume=tmp_path), 100)
    assert not (tmp_path / "lock").exists()


def test_from_an_older_checkpoint_the_newer_ones_are_set_aside(tmp_path, capsys):
    fill(tmp_path, ["checkpoints/step_000100.pt", "checkpoints/step_000200.pt", "checkpoints/.a.pt.9.partial"])
    Run.resume(changed(Config(), resume=tmp_path / "checkpoints" / "step_000100.pt"), 100).close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step_000100.pt", "step_000200.pt.aside"
    ]  # fmt: skip
    assert "set aside" in capsys.readouterr().out


def test_what_was_set_aside_before_stays(tmp_path):
    for round_ in range(3):
        fill(tmp_path, ["checkpoints/step_000100.pt", "checkpoints/step_000200.pt"])
        (tmp_path / "checkpoints" / "step_000200.pt").write_text(f"{round_}")
        Run.resume(changed(Config(), resume=tmp_path / "checkpoints" / "step_000100.pt"), 100).close()
    kept = {path.name: path.read_text() for path in (tmp_path / "checkpoints").glob("*.aside*")}
    assert kept == {f"step_000200.pt.aside{end}": f"{i}" for i, end in enumerate(("", "2", "3"))}


DAMAGED = [
    b'{"step": 20, "lo',
    b"\xff\xfe\x00 not text\n",
    b'{"step": "20"}\n',
    b"[1, 2]\n",
    b"null\n",
    b'{"loss": 1}\n',
    b"\n",
    b"[" * 100_000 + b"\n",
]


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_of_the_log_does_not_stop_a_run(tmp_path, line, capsys):
    whole = [b'{"step": 10, "loss/source": 1.0}\n', b'{"step": 30, "loss/source": 1.0}\n']
    (tmp_path / "metrics.jsonl").write_bytes(whole[0] + (line if line.endswith(b"\n") else b"") + whole[1] + line)
    Run.resume(changed(Config(), resume=tmp_path), 20).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole[0]
    assert "damaged lines left out" in capsys.readouterr().out


@pytest.mark.parametrize("out", ["file/x", "/proc/nope/x", "n" * 300, "file", "fifo"])
def test_a_place_that_is_none_is_refused_before_the_work(tmp_path, out):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match=r"--out .*: cannot be written to"):
        require_place(changed(Config(), out=tmp_path / out))

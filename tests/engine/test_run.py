"""The run folder is never overwritten and goes on where the run does."""

import json
import re
from datetime import datetime
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dida import events
from dida.config import Config, changed, from_dict, to_dict
from dida.data.classes import CITYSCAPES_CLASSES, ClassSet
from dida.run import Run, run_name


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


def test_progress_is_one_readable_line(tmp_path):
    run = start(changed(Config(), out=tmp_path / "run"))
    scalars = {
        "loss/source": 0.25, "loss/target": 1.5, "pseudo_coverage": 0.43, "lr": 6e-5, "lr_head": 6e-4,
        "steps_per_second": 2.0, "data_wait": 0.02, "memory_gib": 8.12, "bank_fill": 1.0,
    }  # fmt: skip
    assert run.line(50, 40000, scalars) == (
        "step    50/40000  source 0.2500  target 1.5000  lr 6.00e-05  2.00 it/s  ETA 5:32:55  mem 8.1 GiB  wait 2%  "
        "confident 43%  bank 100%"
    )
    del scalars["pseudo_coverage"]
    assert "confident" not in run.line(50, 40000, scalars)


def test_without_tensorboard_the_log_is_metrics_alone_and_it_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(events, "MISSING", "no curves for TensorBoard: No module named 'tensorboard'")
    run = start(changed(Config(), out=tmp_path / "run"))
    run.log(1, {"loss/source": 0.5})
    run.close()
    assert "no curves for TensorBoard" in caplog.text
    assert metrics(run) == [{"step": 1, "loss/source": 0.5}]
    assert not list(run.folder.glob("events.out.tfevents.*"))

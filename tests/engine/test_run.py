"""The run folder is never overwritten and goes on where the run does; the meter finds every number that is not one."""

import json
import os
import signal
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dida.batch import Adaptation, Belief, Mixed, PseudoLabel, Trace
from dida.config import Config, changed, from_dict, to_dict
from dida.data.pairs import Ids
from dida.run import Meter, NonFiniteLoss, Run, Signals, environment, run_name, source_commit

FULL = torch.tensor(1.0)


def ids(*source: int) -> Ids:
    return Ids(torch.tensor(source), torch.tensor(source) + 100)


def adaptation(coverage: float) -> Adaptation:
    x = torch.zeros(1, 1, 2, 2)
    pseudo = PseudoLabel(x, x, x, torch.tensor(coverage))
    return Adaptation(Belief(x, x, ()), pseudo, Mixed(x, x, x, x, x))


def trace(coverage: float | None = None, **losses: float) -> Trace:
    tensors = {name: torch.tensor(value) for name, value in losses.items()}
    return Trace(tensors, None if coverage is None else adaptation(coverage))


def metrics(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_is_named_by_what_it_is():
    config = changed(
        Config(), src="folder:/photos/My Streets (old)", tgt="toy-cityscapes", backbone="pvt_v2_b0", seed=3
    )
    name = run_name(config, datetime(2024, 5, 6, 7, 8, 9))
    assert name == "2024-05-06_070809_dida_My-Streets-old2toy-cityscapes_pvt_v2_b0_s3"


def test_a_new_run_writes_its_options_and_its_machine(tmp_path):
    run = Run.start(changed(Config(), phi=0.5), tmp_path / "runs")
    assert run.folder.parent == tmp_path / "runs"
    written = json.loads((run.folder / "config.json").read_text())
    assert from_dict(written) == changed(Config(), phi=0.5)
    assert run.config == written
    machine = json.loads((run.folder / "environment.json").read_text())
    assert machine["torch"] == torch.__version__
    assert set(machine["git"] or {"commit": "", "dirty": ""}) == {"commit", "dirty"}
    assert {"python", "triton", "cuda", "gpu", "platform", "argv", "kernels"} <= set(machine)


def test_a_run_is_never_overwritten(tmp_path):
    config = changed(Config(), out=tmp_path / "mine")
    (tmp_path / "mine").mkdir()  # empty: taken as it is
    Run.start(config).close()
    with pytest.raises(FileExistsError, match="--resume"):
        Run.start(config)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        Run.start(changed(Config(), out=tmp_path / "file"))


def test_a_resumed_log_is_that_of_an_uninterrupted_run(tmp_path):
    def log(run: Run, *steps: int) -> Run:
        for step in steps:
            run.log(step, {"loss/source": step / 10})
        return run

    whole = log(Run.start(changed(Config(), out=tmp_path / "whole")), 10, 20, 30, 40)
    broken = log(Run.start(changed(Config(), out=tmp_path / "broken")), 10, 20, 30)
    broken.close()
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


def test_the_meter_averages_over_its_steps(tmp_path):
    meter = Meter(tmp_path)
    meter.add(1, trace(0.5, source=1.0, target=4.0), ids(0), waited=0.0)
    meter.add(2, trace(0.25, source=2.0, target=2.0), ids(1), waited=0.0)
    scalars = meter.flush(lr=[1e-4, 1e-4, 1e-3], bank_fill=torch.tensor(0.75))
    assert scalars["loss/source"] == 1.5
    assert scalars["loss/target"] == 3.0
    assert scalars["pseudo_coverage"] == 0.375
    assert scalars["bank_fill"] == 0.75
    assert (scalars["lr"], scalars["lr_head"]) == (1e-4, 1e-3)
    assert scalars["steps_per_second"] > 0
    assert scalars["memory_gib"] > 0.01
    json.dumps(scalars, allow_nan=False)

    meter.add(3, trace(1.0, source=7.0, target=7.0), ids(2), waited=1e6)
    scalars = meter.flush(lr=[1e-4], bank_fill=FULL)
    assert scalars["loss/source"] == 7.0  # of this interval alone
    assert scalars["data_wait"] == 1.0


def test_the_meter_keeps_losses_on_the_device_until_it_is_asked(tmp_path, monkeypatch):
    def read(*args):
        raise AssertionError("the host read a tensor")

    meter = Meter(tmp_path)
    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "__float__", "__bool__", "cpu", "numpy"):
            patched.setattr(torch.Tensor, name, read)
        for step in range(3):
            meter.add(step, trace(0.5, source=1.0), ids(step), waited=0.0)
    transfers = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: transfers.append(x.shape) or tolist(x))
    meter.flush(lr=[0.1], bank_fill=FULL)
    assert transfers == [(3 * 2 + 1,)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_samples(tmp_path, value):
    meter = Meter(tmp_path)
    meter.add(16, trace(0.5, source=1.0, instance=2.0), ids(4, 5), waited=0.0)
    meter.add(17, trace(0.5, source=1.0, instance=value), ids(6, 7), waited=0.0)
    meter.add(18, trace(0.5, source=value, instance=value), ids(8, 9), waited=0.0)
    with pytest.raises(NonFiniteLoss, match=r"loss instance not finite at step 17.*nonfinite_step_17\.json"):
        meter.flush(lr=[0.1], bank_fill=FULL)
    found = json.loads((tmp_path / "nonfinite_step_17.json").read_text())
    assert found["samples"] == {"source": [6, 7], "target": [106, 107]}
    assert float(found["values"]["loss/source"]) == 1.0
    assert found["values"]["loss/instance"] == str(value)


def test_flushing_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no step"):
        Meter(tmp_path).flush(lr=[0.1], bank_fill=FULL)


def test_progress_is_one_readable_line(tmp_path):
    run = Run.start(changed(Config(), out=tmp_path / "run"))
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


def test_the_first_signal_is_remembered_and_the_second_acts():
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
        signals = Signals()
        assert signals.caught is None
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.caught == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def test_the_commit_is_that_of_the_checkout_or_unknown(tmp_path, monkeypatch):
    monkeypatch.delenv("DIDA_COMMIT", raising=False)
    assert source_commit(tmp_path) is None
    (tmp_path / ".git").mkdir()  # not a repository that git can read
    assert source_commit(tmp_path) is None
    checkout = Path(__file__).parents[2]
    if (checkout / ".git").exists():
        assert len(source_commit(checkout)["commit"]) == 40
        monkeypatch.setenv("DIDA_COMMIT", "0123")  # of copies only
        assert source_commit(checkout)["commit"] != "0123"


def test_results_that_change_are_no_change_of_the_source(tmp_path):
    def git(*command):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *command], check=True)

    (tmp_path / "bench/results").mkdir(parents=True)
    files = tmp_path / "bench/results/record.json", tmp_path / "code.py"
    for file in files:
        file.write_text("1")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "all")
    files[0].write_text("2")
    assert source_commit(tmp_path)["dirty"] is False
    files[1].write_text("2")
    assert source_commit(tmp_path)["dirty"] is True


def test_a_copy_without_git_is_of_the_commit_that_it_was_told(tmp_path, monkeypatch):
    monkeypatch.setenv("DIDA_COMMIT", "0123")
    assert source_commit(tmp_path) == {"commit": "0123", "dirty": False}


def test_the_environment_is_json():
    json.dumps(environment(), allow_nan=False)

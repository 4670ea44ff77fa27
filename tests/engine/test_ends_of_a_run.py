"""Whatever ends a run leaves its last step: faults between and within steps, signals, a full disk, numbers that are not
finite."""

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dida import loop
from dida.assemble import Parts, build_pairs
from dida.batch import Trace
from dida.data.image_file import ImageFileError
from dida.data.pairs import Pairs
from dida.data.workers import WorkerDied
from dida.errors import NonFinite
from dida.machine.files import read_metrics
from dida.machine.signals import STOPPING, Stopped
from dida.precision import Arithmetic
from dida.run.folder import Run
from dida.run.panel import Panel
from dida.state import TrainState, checkpoints, latest, load_checkpoint
from tests.engine.scenes import small_state
from tests.engine.short_runs import options


@pytest.fixture
def quick(toy, tmp_path, monkeypatch) -> Callable[..., Path]:
    """Starts a run of four steps that learn nothing and take no time; its files are real."""

    def step(state, batch, method) -> Trace:
        next(state.student.parameters()).data.add_(1.0)
        state.step += 1
        one = torch.tensor(1.0)
        return Trace({"source": one}, None, (), one, one)

    def start(watch: Any = None, **more: Any) -> Path:
        config = options(toy, tmp_path / "run", workers=0, panel_every=0, **more)
        pairs, _ = build_pairs(config)
        panel = Panel(pairs.source.class_set, 2, 0.1)
        device, arithmetic = torch.device("cpu"), Arithmetic("fp32")
        return loop.train(config, Parts(small_state(), None, pairs, panel, device, arithmetic, watch))

    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(loop, "overview", lambda *parts: [])  # of a network that segments
    return start


FAULTS: dict[str, Exception] = {
    "a picture that was damaged": ImageFileError("a.png: not a readable image"),
    "a disk that is gone": OSError(5, "Input/output error", "a.png"),
    "a process that was killed": WorkerDied("process 7, which read data, was killed by SIGKILL"),
    "no terminal any more": BrokenPipeError(32, "Broken pipe"),
    "a fault of ours": RuntimeError("a shape that nobody thought of"),
    "memory for a look": torch.OutOfMemoryError("CUDA out of memory"),
}


def failing_from(at: int, error: BaseException) -> Callable[[int], None]:
    def fail(number: int) -> None:
        if number >= at:
            raise error

    return fail


@pytest.mark.parametrize("where", ["before a step", "after it"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_between_two_steps_costs_none(quick, tmp_path, monkeypatch, fault, where):
    error = FAULTS[fault]
    if where == "before a step":
        read, fail = Pairs.__getitem__, failing_from(4, error)  # of batches of two, in the third
        monkeypatch.setattr(Pairs, "__getitem__", lambda self, index: fail(index) or read(self, index))
    else:
        fail = failing_from(2, error)
        monkeypatch.setattr(Run, "log", lambda self, step, scalars: fail(step))
    with pytest.raises(type(error)) as ended:
        quick(save_every=100)
    assert ended.value is error
    run = tmp_path / "run"
    assert load_checkpoint(latest(run))["step"] == 2
    notes = error.__notes__.copy()
    error.__notes__.clear()  # of the next test
    assert notes == [f"stopped after step 2, saved; continue with\n    python train.py --resume {run}"]
    assert not (run / "lock").exists()


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), ValueError("sizes"), MemoryError(), KeyboardInterrupt()],
    ids=repr,
)
def test_a_fault_within_a_step_saves_nothing_and_names_the_last_checkpoint(quick, tmp_path, monkeypatch, error):
    step, fail = loop.train_step, failing_from(2, error)

    def half(state, batch, method) -> Trace:
        next(state.student.parameters()).data.add_(1.0)
        fail(state.step)
        return step(state, batch, method)

    monkeypatch.setattr(loop, "train_step", half)
    with pytest.raises(type(error)) as ended:
        quick(save_every=2)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step_000002.pt"]
    if isinstance(error, Exception):
        assert ended.value.__notes__ == [
            f"stopped after step 2, saved; continue with\n    python train.py --resume {tmp_path / 'run'}"
        ]


def test_a_fault_after_steps_that_were_not_saved_names_the_last_that_was(quick, tmp_path, monkeypatch):
    step, fail = loop.train_step, failing_from(3, ValueError("sizes"))
    monkeypatch.setattr(loop, "train_step", lambda state, *rest: fail(state.step) or step(state, *rest))
    with pytest.raises(ValueError) as ended:
        quick(save_every=2)
    (note,) = ended.value.__notes__
    assert note.startswith("stopped after step 3, step_000002.pt is the last that was saved; continue with")


def test_a_fault_before_the_first_step_has_nothing_to_save(quick, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Pairs, "__getitem__", lambda self, index: failing_from(0, ImageFileError("a.png"))(index))
        with pytest.raises(ImageFileError) as ended:
            quick()
    assert ended.value.__notes__ == ["stopped after step 0, nothing is saved yet; the same command starts again"]
    assert checkpoints(tmp_path / "run") == []
    quick()  # as it says


@pytest.mark.parametrize("kind", STOPPING)
def test_a_signal_between_or_within_steps_costs_none(quick, tmp_path, monkeypatch, kind, capsys):
    step = loop.train_step

    def signalled(state, *rest) -> Trace:
        if state.step == 2:
            os.kill(os.getpid(), kind)
        return step(state, *rest)

    monkeypatch.setattr(loop, "train_step", signalled)
    with pytest.raises(Stopped) as stopped:
        quick(save_every=100)
    assert stopped.value.code == 128 + kind
    assert load_checkpoint(latest(tmp_path / "run"))["step"] == 3
    assert f"{kind.name} after step 3, saved; continue with" in capsys.readouterr().out


def test_a_line_has_the_rate_that_was_used(quick, tmp_path):
    quick(log_every=1)
    schedule = small_state().schedule
    rates = [schedule.base_lrs[-1] * schedule.lr_lambdas[-1](i) for i in range(4)]
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["lr_head"] for line in lines] == pytest.approx(rates)


def test_a_signal_while_it_looks_ends_the_run_at_once_and_costs_no_line(quick, tmp_path):
    class Slow:
        def look(self, networks, earlier) -> dict[str, float]:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
            return {}

    begin = time.monotonic()
    with pytest.raises(Stopped):
        quick(Slow(), eval_every=2, save_every=100, log_every=2)
    assert time.monotonic() - begin < 30
    assert load_checkpoint(latest(tmp_path / "run"))["step"] == 2
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [2]


def test_a_signal_while_it_waits_for_data_ends_the_run_at_once(quick, tmp_path, monkeypatch):
    read = Pairs.__getitem__

    def slow(self, index):
        if index == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return read(self, index)

    monkeypatch.setattr(Pairs, "__getitem__", slow)
    begin = time.monotonic()
    with pytest.raises(Stopped):
        quick(save_every=100)
    assert time.monotonic() - begin < 30
    assert load_checkpoint(latest(tmp_path / "run"))["step"] == 2


def test_on_a_full_disk_the_last_checkpoint_is_named(quick, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writes: list[int] = []
    save = TrainState.save

    def filling(self, *args, **options):
        if writes:  # the second one does not fit
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        writes.append(self.step)
        return save(self, *args, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TrainState, "save", filling)
        try:
            with pytest.raises(OSError, match=r"1\.\d MB are needed, .*step_000002\.pt") as ended:
                quick(save_every=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "step_000001.pt is the last that was saved" in ended.value.__notes__[0]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000001.pt"]


@pytest.mark.parametrize("part", ["student", "teacher", "bank", "optimizer"])
def test_whatever_is_not_finite_is_never_saved(quick, tmp_path, monkeypatch, part):
    step = loop.train_step

    def spoiling(state, *rest) -> Trace:
        trace = step(state, *rest)
        values = (
            next(iter(state.optimizer.state.values())) if part == "optimizer" else getattr(state, part).state_dict()
        )
        next(t for t in values.values() if t.is_floating_point() and t.dim()).view(-1)[0] = torch.nan
        return trace

    monkeypatch.setattr(loop, "train_step", spoiling)
    with pytest.raises(NonFinite, match=rf"^{part}\..* is not finite after step 1; it is not saved"):
        quick(save_every=1)
    assert checkpoints(tmp_path / "run") == []

"""The training loop: what it keeps, what it writes, and what a signal leaves."""

import itertools
import json
import shlex
import signal
import weakref
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from torch import Tensor

from dida import loop
from dida.assemble import Parts, assemble
from dida.config import DataConfig, changed
from dida.data import domains
from dida.data.domains import UnlabelledDomain
from dida.errors import NonFinite
from dida.loop import due
from dida.machine.distributed import ALONE
from dida.machine.signals import Stopped
from dida.state import checkpoints, latest, load_checkpoint
from tests.engine.short_runs import options, signalled_after


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [tensor for part in value for tensor in tensors(part)] if isinstance(value, tuple) else []


def test_nothing_that_the_last_step_left_is_alive_when_the_next_one_starts(toy, tmp_path, monkeypatch):
    """A trace holds maps at image resolution: those of two steps at once would be memory for nothing.

    Its losses are not meant: they are scalars, which the meter keeps until it is asked.
    """
    left: list[weakref.ref] = []
    found: list[int] = []
    train_step = loop.train_step

    def watched(state, batch, method):
        found.append(sum(ref() is not None for ref in left))
        trace = train_step(state, batch, method)
        left[:] = [weakref.ref(tensor) for tensor in tensors((trace.target, trace.mixed))]
        assert len(left) > 8
        return trace

    monkeypatch.setattr(loop, "train_step", watched)
    config = options(toy, tmp_path / "run")  # it logs, draws and saves in between
    loop.train(config, assemble(config))
    assert found == [0] * 4


def test_the_watch_would_see_a_trace_that_was_kept(toy, tmp_path, monkeypatch):
    kept, seen = [], []
    train_step = loop.train_step

    def keeping(state, batch, method):
        seen.extend(ref() is not None for ref in map(weakref.ref, tensors(tuple(kept))))
        trace = train_step(state, batch, method)
        kept[:] = [trace.target]
        return trace

    monkeypatch.setattr(loop, "train_step", keeping)
    config = options(toy, tmp_path / "run")
    loop.train(config, assemble(config))
    assert any(seen)


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_things_happen_at_their_steps(toy, tmp_path, capsys):
    config = options(toy, tmp_path / "run", steps=5, log_every=2, panel_every=3, save_every=4)
    folder = loop.train(config, assemble(config))
    assert folder == tmp_path / "run"
    assert [line["step"] for line in metrics(folder)] == [2, 4, 5]  # and before it saves, at the latest at the end
    assert [path.name for path in (folder / "panels").iterdir()] == ["step_000003.png"]
    assert [path.name for path in checkpoints(folder)] == ["step_000004.pt", "step_000005.pt"]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"run folder {folder}"
    assert [line.split()[1] for line in said if line.startswith("step ")] == ["2/5", "4/5", "5/5"]
    assert said[-2:] == ["done after step 5; score it with", f"    python eval.py {folder} --tgt toy-cityscapes"]


def test_the_log_has_the_rates_that_its_steps_had(toy, tmp_path, monkeypatch):
    used = []
    train_step = loop.train_step

    def watched(state, batch, method):
        rates = [group["lr"] for group in state.optimizer.param_groups]
        used.append([min(rates), max(rates)])
        return train_step(state, batch, method)

    monkeypatch.setattr(loop, "train_step", watched)
    config = options(toy, tmp_path / "run", log_every=1)
    folder = loop.train(config, assemble(config))
    assert all(before != after for before, after in itertools.pairwise(used))  # warm-up, then decay
    assert [[line["lr"], line["lr_head"]] for line in metrics(folder)] == used


@pytest.mark.parametrize("checked, steps", [(False, [4, 5]), (True, [1, 2, 3, 4, 5])])
def test_processes_are_held_to_one_state_before_it_is_saved(toy, tmp_path, monkeypatch, checked, steps):
    """And with DIDA_DEBUG=1 after every step."""
    asked = []
    monkeypatch.setattr(type(ALONE), "require_same", lambda world, named, when: asked.append((when, len(list(named)))))
    monkeypatch.setattr(loop, "CHECKED", checked)
    config = options(toy, tmp_path / "run", steps=5, save_every=4)
    loop.train(config, assemble(config))
    assert [when for when, _ in asked] == [f"after step {step}" for step in steps]
    assert all(count > 100 for _, count in asked)  # tensors


def test_a_resume_of_a_finished_run_says_that_nothing_was_left(toy, tmp_path, capsys):
    config = options(toy, tmp_path / "run")
    folder = loop.train(config, assemble(config))
    assert "nothing was left to do" not in capsys.readouterr().out
    again = changed(config, resume=folder)
    loop.train(again, assemble(again))
    assert "nothing was left to do: --resume with a larger --steps" in capsys.readouterr().out


@pytest.mark.parametrize("step, every, expected", [(3, 3, True), (6, 3, True), (4, 3, False), (4, 0, False)])
def test_due(step, every, expected):
    assert due(step, every) is expected


def test_a_signal_ends_the_run_early_with_a_checkpoint(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "train_step", signalled_after(2, loop.train_step))
    config = options(toy, tmp_path / "run", save_every=100, log_every=100)
    folder = tmp_path / "run"
    with pytest.raises(Stopped) as stopped:
        loop.train(config, assemble(config))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert load_checkpoint(latest(folder))["step"] == 2
    assert [line["step"] for line in metrics(folder)] == [2]
    assert (
        f"SIGTERM after step 2, saved; continue with\n    python train.py --resume {folder}" in capsys.readouterr().out
    )


def test_a_folder_that_holds_something_is_left_alone(toy, tmp_path):
    (tmp_path / "mine").touch()
    config = options(toy, tmp_path)
    with pytest.raises(FileExistsError, match="never overwritten"):
        loop.train(config, assemble(config))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def poisoned(parts: Parts) -> Parts:
    """Of a network that has learnt nothing but NaN."""
    with torch.no_grad():
        next(parts.state.student.parameters()).fill_(torch.nan)
    return parts


def test_what_is_not_finite_is_never_saved(toy, tmp_path):
    config = options(toy, tmp_path / "run", log_every=100, save_every=2)
    with pytest.raises(NonFinite, match="not finite at step 1"):
        loop.train(config, poisoned(assemble(config)))
    assert checkpoints(tmp_path / "run") == []


def test_a_class_set_is_kept_with_the_run_and_in_its_checkpoints(toy, tmp_path):
    config = options(toy, tmp_path / "run")
    parts = assemble(config)
    folder = loop.train(config, parts)
    assert json.loads((folder / "classes.json").read_text())["names"] == list(parts.class_set.names)
    assert parts.class_set.from_dict(load_checkpoint(latest(folder))["classes"]) == parts.class_set


def test_the_last_line_of_a_run_opens_no_download_that_is_not_whole(tmp_path):
    folder = tmp_path / "cityscapes"
    folder.mkdir()
    (folder / "gtFine_trainvaltest.zip").write_bytes(b"PK half of it")
    for place, pictures in (("leftImg8bit", f"{folder}/leftImg8bit"), ("leftImg8bit.zip/leftImg8bit", "PICTURES")):
        (folder / place.split("/")[0]).touch() if "zip" in place else (folder / place).mkdir()
        target = UnlabelledDomain("cityscapes", "train", folder, (folder / place / "0.png",))
        said = loop.next_command(Path("r"), DataConfig(tgt="cityscapes", data_root=tmp_path), target)
        assert said.endswith(f"eval.py r --images {shlex.quote(pictures)}")


@pytest.mark.parametrize(
    "target, folders, command",
    [
        ("cityscapes", ("leftImg8bit/val", "gtFine/val"), "eval.py r --tgt cityscapes"),
        ("toy-cityscapes", ("leftImg8bit/val", "gtFine/val"), "eval.py r --tgt toy-cityscapes"),
        ("cityscapes", ("leftImg8bit/val",), "eval.py r --images {}/some"),  # labels were not downloaded
        ("acdc", ("rgb_anon/fog/val", "gt/fog/val"), "eval.py r --tgt acdc"),
        ("gta5", ("images", "labels"), "eval.py r --images {}/some"),  # it has no val split
        ("cityscapes", ("all.zip",), "eval.py r --tgt cityscapes"),
        ("folder:x", ("images/val", "labels/val"), "eval.py r --images {}"),
    ],
)
def test_the_last_line_of_a_run_is_a_command_that_works_for_it(tmp_path, target, folders, command):
    root = tmp_path / "my data"
    base = root / domains.LAYOUTS[target][0].folders[0] if target in domains.LAYOUTS else root
    for folder in folders:
        (base / folder).mkdir(parents=True)
    if folders == ("all.zip",):
        (base / "all.zip").rmdir()
        with ZipFile(base / "all.zip", "w") as file:
            for name in ("leftImg8bit/val/x/x_leftImg8bit.png", "gtFine/val/x/x_gtFine_labelIds.png"):
                file.writestr(name, b"")
    pictures = UnlabelledDomain(target, "train", base, (base / "some" / "0.png", base / "other" / "1.png"))
    said = loop.next_command(Path("r"), DataConfig(tgt=target, data_root=root), pictures)
    place = command.partition("{}")[2]
    wanted = command.partition("{}")[0] + (shlex.quote(f"{base}{place}") if "{}" in command else "")
    assert said.endswith(f"\n    python {wanted}")

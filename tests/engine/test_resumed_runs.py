"""A run that was stopped and gone on with is the run that was not, in every bit, however its steps are computed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tests.machine.several  # noqa: F401  registers mit_tiny
from dida import loop, recipes
from dida.assemble import assemble
from dida.config import changed
from dida.machine.signals import Stopped
from dida.models import mit
from dida.state import PARTS, latest, leaves, load_checkpoint
from tests.engine.short_runs import options, signalled_after

SPEEDS: list[dict[str, Any]] = [
    {"precision": "bf16"},
    {"compile": True},
    {"checkpoint_activations": True},
    {"accumulate": 2},
    {"precision": "bf16", "compile": True, "checkpoint_activations": True, "accumulate": 2},
]


def saved(run: Path) -> dict[str, Any]:
    """All that the newest checkpoint of a run holds of its state, by name."""
    checkpoint = load_checkpoint(latest(run))
    return dict(leaves({part: checkpoint[part] for part in ("step", *PARTS)}))


@pytest.mark.parametrize("speed", SPEEDS, ids=lambda speed: "+".join(speed))
def test_a_run_that_was_stopped_goes_on_bit_for_bit(toy, tmp_path, monkeypatch, speed):
    torch._dynamo.reset()
    monkeypatch.setattr(mit, "COMPILER", "eager")  # blocks are traced, but no compiler is waited for
    tiny = {"backbone": "mit_tiny", "crop": 32, "drop_path": 0.3, "save_every": 100, "panel_every": 0}
    whole = options(toy, tmp_path / "whole", **tiny, **speed)
    loop.train(whole, assemble(whole))

    stopped = changed(whole, out=tmp_path / "stopped")
    parts = assemble(stopped)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", signalled_after(2, loop.train_step))
        with pytest.raises(Stopped):
            loop.train(stopped, parts)
    assert saved(tmp_path / "stopped")["step"] == 2
    again = recipes.from_command_line(["--resume", str(tmp_path / "stopped")])
    torch.manual_seed(1)  # what else was drawn in the meantime
    loop.train(again, assemble(again))

    one, other = (saved(tmp_path / name) for name in ("whole", "stopped"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name]
        assert same, name
    assert one["step"] == 4

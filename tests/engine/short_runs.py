"""Runs of four steps on a toy of a few pictures, from disk to their last checkpoint."""

import os
import signal
from pathlib import Path
from typing import Any

from dida import recipes
from dida.config import Config, changed


def options(toy: Path, out: Path, **more: Any) -> Config:
    small = {
        "crop": 64, "batch_size": 2, "embed_dim": 16, "bank_size": 40, "steps": 4, "bank_start": 1, "bank_fill": 1,
        "workers": 0, "device": "cpu", "log_every": 1, "panel_every": 2, "save_every": 1, "out": out,
    }  # fmt: skip
    return changed(recipes.toy(Config()), data_root=toy, **small | more)


def signalled_after(step: int, train_step):
    """A step that somebody stops the run during."""

    def stopped(state, batch, method):
        trace = train_step(state, batch, method)
        if state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return trace

    return stopped

"""train.py and eval.py as processes of their own that start at once."""

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dida.config import Config, changed, flat
from dida.data.toy import Counts, generate
from tests.processes import Child

__all__ = ["Script", "arguments", "make_toy"]
ROOT = Path(__file__).parents[2]
SMALL = {
    "src_size": "128x64", "tgt_size": "128x64", "crop": 64, "batch_size": 1, "embed_dim": 16, "bank_size": 40,
    "bank_start": 1, "bank_fill": 1, "bank_every": 1, "workers": 0, "device": "cpu", "log_every": 1, "panel_every": 0,
    "save_every": 1000, "steps": 1000,
}  # fmt: skip


def make_toy(folder: Path) -> Path:
    """A toy data set of a few pictures."""
    generate(folder, counts=Counts(source=4, source_val=1, target=3, val=2, test=1))
    return folder


def arguments(data: Path, out: Path | str, **options: Any) -> list[str]:
    """The command line of a tiny run."""
    named = {"src": "toy-gta5", "tgt": "toy-cityscapes", "data_root": data, "out": out} | SMALL | options
    assert set(named) <= set(flat(changed(Config())))
    return [part for name, value in named.items() for part in ("--" + name.replace("_", "-"), str(value))]


class Script(Child):
    """A script with a command line. `before` is called in its process first."""

    def __init__(self, script: str, args: list[str], said: Path, before: Callable[[], object] | None = None) -> None:
        super().__init__(said, _run, script, args, before)


def _run(script: str, args: list[str], before: Callable[[], object] | None) -> None:
    os.chdir(ROOT)
    if before:
        before()
    sys.argv = [script, *args]
    runpy.run_path(str(ROOT / script), run_name="__main__")

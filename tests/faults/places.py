"""What bad inputs are made from: a toy data set, a short run of it, its checkpoints."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from dida.config import Config
from dida.recipes import from_command_line
from dida.state import checkpoints
from tests.faults.scripts import Script, arguments, make_toy

__all__ = ["Places"]


@dataclass(frozen=True)
class Places:
    """Made once, and copied before anything is done to it."""

    toy: Path
    run: Path  # two steps, a checkpoint after each
    config: Config

    @classmethod
    def make(cls, folder: Path) -> "Places":
        toy, run = make_toy(folder / "data"), folder / "run"
        given = arguments(toy, run, steps=2, save_every=1, backbone="test_resnet", weights="none")
        assert Script("train.py", given, folder / "said").wait(600) == 0, (folder / "said").read_text()
        return cls(toy, run, from_command_line(given))

    @property
    def checkpoint(self) -> Path:
        """The newest."""
        return checkpoints(self.run)[-1]

    def copy_of_run(self, to: Path) -> Path:
        """The whole folder; its older checkpoint is a link, which nothing writes through."""
        shutil.copytree(self.run, to, ignore=shutil.ignore_patterns("*.pt", "panels"))
        for path in checkpoints(self.run):
            (to / "checkpoints").mkdir(exist_ok=True)
            (to / "checkpoints" / path.name).hardlink_to(path)
        return to

    def copy_of_data(self, to: Path) -> Path:
        return Path(shutil.copytree(self.toy, to))

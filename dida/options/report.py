"""Every option of a report. Only the standard library and tyro are imported here, as in config.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dida.options import Range


@dataclass(frozen=True)
class ReportConfig:
    """Write what is known of a run into one HTML file: its curves, scores, calibration and pictures.

    The first run is what the report is of; each further one, such as a run of --method source, is set beside it.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, of which the newest checkpoints are taken, or checkpoint files."""
    out: Path | None = None
    """File to write; by default report.html in the folder of the first run."""
    tgt: str | None = None
    """Domain to look at; by default the target of the first run."""
    data_root: Path | None = None
    """Folder that holds the data sets; by default that of the first run."""
    split: Literal["val", "test", "train"] = "val"
    """Part of the domain to look at."""
    labels: bool = True
    """Score against the labels of the domain; without, only what needs none is reported."""
    network: Literal["student", "teacher"] = "student"
    """Whose scores are broken down and whose label maps are drawn."""
    pictures: Annotated[int, Range(0, 20)] = 3
    """So many of the best, of the worst, and of those that gain and lose most beside a second run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: Annotated[int | None, Range(0, 256)] = None
    """Processes that load images; by default as many as in the first run."""
    debug: bool = False
    """Show the traceback of an error, not its message alone."""

    def check(self) -> None:
        """Raises ValueError where no run is named."""
        if not self.runs:
            raise ValueError("name at least one run folder or checkpoint")

"""The options of drawing the toy. Only the standard library and tyro are imported here, as in config.py."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dida.options import Range


@dataclass(frozen=True)
class ToyOptions:
    """Draw the toy benchmark, two domains of procedural streets, into DATA_ROOT/toy."""

    data_root: Path = Path("data")
    """Folder of all data sets."""
    weather: tuple[Literal["day", "night", "fog"], ...] = ("day",)
    """day is the benchmark; night and fog draw the target's streets again, as toy-night and toy-fog."""
    jobs: Annotated[int, Range(1, 1024)] = os.cpu_count() or 1
    """Processes that draw."""

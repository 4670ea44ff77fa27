"""The options of the doctor, apart from what it imports, so that --help answers at once."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DoctorOptions:
    """Report versions, hardware, the backend of every operation, and the data sets that are there."""

    data_root: Path = Path("data")
    """Folder that holds the data sets."""

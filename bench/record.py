"""What every recorded number travels with: the commit, the versions and the machine; and how it is printed."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
RESULTS_FOLDER = Path(__file__).parent / "results"
NONE = "–"  # a cell without a value
END = "<!-- /results -->"  # of a block in the README


def header(device: str) -> dict[str, Any]:
    """Where, when and from what a result was made. `device`: cpu, cuda, or counted (nothing ran)."""
    found = {
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device,
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "triton")},
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(x, 1) for x in os.getloadavg()],  # processes that wanted a core, over 1, 5 and 15 minutes
    }
    if device == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(), "clocks": _clocks(), "cuda": torch.version.cuda}
    return found


def commit() -> str:
    """What git says of this tree, else what DIDA_COMMIT says of a copy that travels without git; else "unknown"."""
    if head := _answer("git", "rev-parse", "--short=12", "HEAD"):
        sources = (".", ":(exclude)bench/results")  # results change while a table is made, and nothing reads them
        return head + ("+changes" if _answer("git", "status", "--porcelain", "-uno", "--", *sources) else "")
    return os.environ.get("DIDA_COMMIT", "unknown")


def machine(device: str) -> str:
    """The folder of a machine's results, such as nvidia-h200 or cpu."""
    return torch.cuda.get_device_name().lower().replace(" ", "-") if device == "cuda" else device


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table with aligned columns."""
    cells = [list(head), *([str(x) for x in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(x.ljust(width) for x, width in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def render_header(found: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in found.items())


def replaced(text: str, marker: str, block: str) -> str:
    """`text` with what stands between `<!-- results:MARKER -->` and the next `<!-- /results -->` replaced.

    Raises ValueError if one of the two is missing, or the first is there twice.
    """
    start = f"<!-- results:{marker} -->"
    if text.count(start) != 1:
        raise ValueError(f"expected one line {start}, found {text.count(start)}")
    before, _, after = text.partition(start)
    old, end, after = after.partition(END)
    if not end or "<!-- results:" in old:
        raise ValueError(f"expected a line {END} after {start}")
    return f"{before}{start}\n{block.strip()}\n{END}{after}"


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1) + "\n")


def _answer(program: str, *arguments: str) -> str:
    """What a program prints; nothing where it fails or is not there."""
    if shutil.which(program) is None:
        return ""
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _clocks() -> str:
    found = _answer("nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,clocks.max.sm", "--format=csv,noheader")
    return found.splitlines()[0] if found else "unknown"

"""What every recorded number travels with: its source, the machine and the date; and how it is printed."""

import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from dida.machine.provenance import machine, source_commit, source_digest

ROOT = Path(__file__).parent.parent
RESULTS_FOLDER = Path(__file__).parent / "results"
NONE = "–"  # a cell without a value
UNKNOWN = "unknown"  # the digest of a record that is older than digests; the commit where nothing says it
END = "<!-- /results -->"  # of a block in a page


# ---- where a number comes from -------------------------------------------------------------------------------------


def header(device: str) -> dict[str, Any]:
    """Where, when and from what a result was made. `device`: cpu, cuda, or counted (nothing ran)."""
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    known = {name: value for name, value in machine().items() if value is not None}
    return {"commit": commit(), "digest": source_digest(ROOT), "date": date, "device": device, **known}


def commit() -> str:
    """Of this tree, its first 12 digits, "+changes" after it where files differ from it; or "unknown"."""
    return origin([{"git": source_commit(ROOT)}])["commit"]


def origin(environments: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The commits and the digests of the source that a run's environment files name, joined by "+"."""
    found = list(environments)
    known = [environment["git"] for environment in found if environment["git"]]
    commits = sorted({git["commit"][:12] for git in known}) or [UNKNOWN]
    changes = ["changes"] if any(git["dirty"] for git in known) else []
    digests = sorted({environment.get("digest", UNKNOWN) for environment in found})
    return {"commit": "+".join(commits + changes), "digest": "+".join(digests)}


def changed_files() -> list[str]:
    """What differs from the commit of this tree, files that git does not know included; results are no source."""
    if not (ROOT / ".git").exists():
        return []  # a copy that travelled: its digest tells it from the commit it says it is of
    command = ["git", "-C", str(ROOT), "status", "--porcelain", "--", ".", ":(exclude)bench/results"]
    quietly = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=quietly).stdout
    return [line[3:] for line in said.splitlines()]


def machine_name(device: str) -> str:
    """The folder of a machine's results, such as nvidia-h200 or cpu."""
    return torch.cuda.get_device_name().lower().replace(" ", "-") if device == "cuda" else device


# ---- how it is printed ---------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table with aligned columns."""
    cells = [list(head), *([str(x) for x in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(x.ljust(width) for x, width in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def render_header(found: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in found.items())


def start_of(block: str) -> str:
    """The line in front of what a page has from us."""
    return f"<!-- results:{block} -->"


def replaced(text: str, block: str, content: str) -> str:
    """`text` with what stands between `<!-- results:BLOCK -->` and the next `<!-- /results -->` replaced.

    Raises ValueError if one of the two is missing, or the first is there twice.
    """
    start = start_of(block)
    if text.count(start) != 1:
        raise ValueError(f"expected one line {start}, found {text.count(start)}")
    before, _, after = text.partition(start)
    old, end, after = after.partition(END)
    if not end or "<!-- results:" in old:
        raise ValueError(f"expected a line {END} after {start}")
    return f"{before}{start}\n{content.strip()}\n{END}{after}"


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1) + "\n")

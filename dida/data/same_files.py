"""Whether a run that goes on draws from the files that it began with, of which its samples are a function."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dida.data.pairs import Pairs

FILE = "data.json"  # in the folder of a run


def file_digests(pairs: Pairs) -> dict[str, dict[str, Any]]:
    """Number of images, and a digest of the names of all files in order, of source and target."""
    source, target = pairs.source, pairs.target
    return {
        "source": {"images": len(source.images), "digest": _digest((*source.images, *source.labels))},
        "target": {"images": len(target.images), "digest": _digest(target.images)},
    }


def require_same_files(before: Mapping[str, Any], now: Mapping[str, Any], run: Path) -> None:
    """Raise ValueError that says what changed between two fingerprints, and how to go on all the same."""
    for domain, files in now.items():
        was = before.get(domain)
        if was != files:
            count = was.get("images") if isinstance(was, dict) else "other"
            change = f"{count} images, and now has {files['images']}"
            if count == files["images"]:
                change = f"{count} images, and now has as many with other names"
            raise ValueError(
                f"--resume {run}: the {domain} had {change}, so the samples would be others than the run began with. "
                f"To go on with what is there now, remove {run / FILE}"
            )


def _digest(paths: Iterable[Path]) -> str:
    """Of names and the folders right above them: where a data set lies may change."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.parent.name}/{path.name}\n".encode())
    return digest.hexdigest()

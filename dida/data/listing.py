"""Which files lie below a folder: links that lead in circles, and things that are no files, are found here."""

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_log = logging.getLogger(__name__)


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, hidden ones apart (macOS leaves ._NAME.png in archives), sorted by path.

    A link to a folder is followed where it leads out of the tree, and once: one that leads back into it, or above it,
    would show the same files again. Raises ValueError for a pipe, a socket or a device, and for a name that is not
    UTF-8; OSError for a folder that cannot be listed.
    """
    if not folder.is_dir():
        return []
    found = list(_walk(folder, {_identity(folder)}, folder.resolve()))
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _walk(folder: Path, seen: set[tuple[int, int]], top: Path) -> Iterator[Path]:
    links = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        _require_utf8(path)
        if entry.is_dir(follow_symlinks=False):
            seen.add(_identity(path))
            yield from _walk(path, seen, top)
        elif path.is_dir():
            links.append(path)
        elif entry.is_symlink() or entry.is_file():  # a link that leads nowhere is named when it is read
            yield path
        else:
            raise ValueError(f"{path} is a pipe, a socket or a device where files are looked for")
    for path in links:
        target = path.resolve()
        if target.is_relative_to(top) or top.is_relative_to(target) or _identity(path) in seen:
            _log.warning("%s is not followed: it leads to %s, whose files are looked at anyway", path, target)
            continue
        seen.add(_identity(path))
        yield from _walk(path, seen, top)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _require_utf8(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{str(path)!a}: the name of this file is not UTF-8; rename it") from None


def what_lies_there(folder: Path, wanted: Iterable[str]) -> str:
    """What a folder holds, as an answer to files of the endings `wanted` not being found in it."""
    if not folder.exists():
        above = next(parent for parent in folder.parents if parent.exists())
        if not above.is_dir():
            return f"{above} is a file, not a folder"
        names = sorted(os.listdir(above))
        return f"{folder} does not exist; {above} holds {', '.join(map(ascii_if_odd, names[:12])) or 'nothing'}"
    files = files_below(folder)
    endings = " or ".join(wanted)
    if not files:
        return f"{folder} holds no files"
    return f"{folder} holds {len(files)} files, none ends in {endings}, e.g. {files[0].relative_to(folder)}"


def say_left_out(folder: Path, taken: Iterable[Path], endings: Iterable[str]) -> None:
    """Say in one line which files below a folder are not taken, because they end in none of `endings`."""
    left = sorted(set(files_below(folder)) - set(taken))
    if left:
        _log.warning(
            "%s: %d files end in none of %s and are left out, e.g. %s",
            folder, len(left), ", ".join(endings), left[0].relative_to(folder),
        )  # fmt: skip


def ascii_if_odd(name: str) -> str:
    """A file's name that any terminal can show."""
    return name if name.isprintable() else ascii(name)


def likely_cause(examples: Iterable[Path]) -> str | None:
    """Why label files are not what is looked for, by their names; None where nothing comes to mind."""
    names = [path.name.lower() for path in examples]
    if any(name.endswith((".jpg", ".jpeg")) for name in names):
        return "JPEG changes the numbers that it stores, so labels need a format that does not: PNG"
    if any("color" in name or "colour" in name or "rgb" in name for name in names):
        return (
            "these look like colour renderings of labels; the maps of label ids come beside them or in another archive"
        )
    if any("instance" in name or "panoptic" in name for name in names):
        return "these look like maps of instances; the maps of label ids are other files"
    if names and all(name.endswith((".json", ".xml", ".txt")) for name in names):
        return "these are outlines or lists, and have to be drawn into label maps first"
    return None

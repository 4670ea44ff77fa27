"""Zip archives, as data sets are downloaded, read where they lie: a path may lead into one.

    gta/01_images.zip/images/00001.png

Nothing is unpacked. An archive is opened once a process, because its list of files is long.
"""

import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO
from zipfile import BadZipFile, ZipFile

_ENDING = ".zip"
# What zipfile raises: KeyError for a name that is gone, RuntimeError for a password, NotImplementedError for a method.
_DAMAGE = (BadZipFile, zlib.error, EOFError, KeyError, RuntimeError, NotImplementedError)


class ArchiveError(ValueError):
    """A zip archive cannot be read. The message names it and the reason."""


def archives_in(folder: Path) -> list[Path]:
    """The zip files right in a folder, sorted."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.suffix.lower() == _ENDING and not path.name.startswith("."))
    return sorted(path for path in found if path.is_file())


def folders_in(archive: Path, part: str) -> list[tuple[str, Path]]:
    """The folders `part` of an archive, at its top or in one of its folders; each with what a * in it stands for.

    Raises ArchiveError.
    """
    wanted = re.compile("((?:[^/]+/)?" + re.escape(part).replace(r"\*", "([^/]+)") + ")/.+")
    found = {match.groups() for name in _names(archive) if (match := wanted.fullmatch(name))}
    return sorted((f"{star[0]}/" if star else "", archive / folder) for folder, *star in found)


def is_packed(path: Path) -> bool:
    """Whether a path leads into an archive."""
    return _parted(path) is not None


def packed_below(folder: Path) -> list[Path]:
    """All files below a folder of an archive, sorted. Raises ArchiveError."""
    parted = _parted(folder)
    if parted is None:
        return []
    archive, top = parted
    return [archive / name for name in _names(archive) if name.startswith(f"{top}/")]


def content(path: Path) -> bytes:
    """The bytes of a file, in an archive or not. Raises OSError, ArchiveError."""
    parted = _parted(path)
    if parted is None:
        return path.read_bytes()
    with _named(parted[0]):
        return _zip(parted[0], os.getpid()).read(parted[1])


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file to read the beginning of, in an archive or not. Raises OSError, ArchiveError."""
    parted = _parted(path)
    if parted is None:
        with path.open("rb") as file:
            yield file
        return
    with _named(parted[0]):
        packed = _zip(parted[0], os.getpid()).open(parted[1])
    with packed:
        yield packed


def stamp(path: Path) -> tuple[int, int]:
    """What changes when a file does: its size, and when it was modified or, in an archive, its checksum.

    Raises OSError, ArchiveError.
    """
    parted = _parted(path)
    if parted is None:
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    with _named(parted[0]):
        info = _zip(parted[0], os.getpid()).getinfo(parted[1])
    return info.file_size, info.CRC


def _parted(path: Path) -> tuple[Path, str] | None:
    """The archive and the name in it."""
    if _ENDING not in str(path).lower():  # almost always, and then no file system is asked
        return None
    for above in path.parents:
        if above.suffix.lower() == _ENDING and above.is_file():
            return above, path.relative_to(above).as_posix()
    return None


@lru_cache(maxsize=256)
def _names(archive: Path) -> tuple[str, ...]:
    """Files, hidden ones apart (macOS leaves __MACOSX/._NAME.png), sorted by path."""
    with _named(archive):
        names = [name for name in _zip(archive, os.getpid()).namelist() if not name.endswith("/")]
    parts = (tuple(name.split("/")) for name in names)
    shown = (p for p in parts if not any(q.startswith(".") or q in ("", "__MACOSX") for q in p))
    return tuple("/".join(p) for p in sorted(shown))


@lru_cache(maxsize=256)
def _zip(archive: Path, process: int) -> ZipFile:
    """`process`: a handle that two processes inherit has one position, so each opens its own."""
    return ZipFile(archive)


@contextmanager
def _named(archive: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise ArchiveError(f"{archive}: not a readable zip file ({error}); is it there as a whole?") from error

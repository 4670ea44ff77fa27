"""Files that are whole or not there: written beside their name, on the disk, then renamed."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL = ".*.partial"  # what a process that was killed while it wrote leaves behind
_LARGEST_JSON = 100_000_000  # bytes
_TOO_SMALL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that takes its name when the block ends well; until then the old one stays.

    Folders above it are made; a link is followed. Raises OSError if it cannot be written, and for what is there and no
    regular file (a device would be replaced by one); nothing half-written is left behind.
    """
    path = Path(os.path.realpath(path))
    _require_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of this process, because two may write the same file; cut, because a name may be as long as names can be.
    partial = path.with_name(f".{path.name[:40]}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a failed write names no file
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def reserve(file: BinaryIO, size: int) -> None:
    """Room for `size` bytes in an empty file, to be cut to what is then written.

    Raises OSError that says how much is missing, before anything is written and not in the middle of it.
    """
    if not hasattr(os, "posix_fallocate"):  # not on macOS: there the write itself has to tell
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in _TOO_SMALL:
            free = shutil.disk_usage(os.path.dirname(file.name)).free
            needed = f"{megabytes(size)} are needed, {megabytes(free)} are free"
            raise OSError(error.errno, f"{error.strerror} ({needed})") from error
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that reserves nothing
            raise


def megabytes(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 1e6:.1f} MB"


class Appended:
    """A file that grows by whole records, each on its way to the disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)  # a buffer would try again, and fail again, when it is closed

    def write(self, record: bytes) -> None:
        """Raises OSError, and takes back the part of the record that was written."""
        end = self._file.seek(0, os.SEEK_END)
        try:
            while record:
                record = record[self._file.write(record) :]
        except OSError as error:
            self._file.truncate(end)
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        """Writing again is an error."""
        self._file.close()


def require_writable(path: Path, *, option: str, folder: bool = False) -> None:
    """Raise OSError, naming the option, where a file `path` (or files in a folder `path`) could not be written.

    Asked before the work whose result is to go there. It tries, and leaves nothing behind.
    """
    place, made = path / "file" if folder else path, []
    try:
        place = Path(os.path.realpath(place))
        _require_replaceable(place)
        try:
            for parent in reversed([parent for parent in place.parents if not parent.exists()]):
                parent.mkdir()
                made.append(parent)
            trial = place.with_name(f".{os.getpid()}.partial")
            trial.touch()
            trial.unlink()
            if not place.exists():  # a name that the file system does not take
                os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
                place.unlink()
        finally:
            for parent in reversed(made):
                parent.rmdir()
    except OSError as error:
        raise OSError(f"{option} {path}: cannot be written to ({error.strerror or error})") from error


def regular(path: Path) -> Path:
    """The path itself, to be read. Raises OSError for a pipe, a socket or a device: one would be waited for, or has no
    end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(f"{path}: no file, but a pipe, a socket or a device")
    return path


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises OSError, and ValueError that names the file where it holds none."""
    if (size := regular(path).stat().st_size) > _LARGEST_JSON:
        raise ValueError(f"{path}: {megabytes(size)}, which no file of settings or scores comes to")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path}: not JSON ({what})") from error


def write_json(path: Path, content: Any) -> None:
    """`content` as indented JSON. Raises OSError."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """UTF-8. Raises OSError."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Raises OSError."""
    with whole_file(path) as file:
        file.write(content)


def _require_replaceable(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_metrics(path: Path) -> Iterator[dict[str, float]]:
    """The lines of a metrics.jsonl, if there is one; a last line that was cut off is left out. Raises ValueError."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):  # the machine went down here
            return
        try:
            yield {str(k): float(v) for k, v in json.loads(line).items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error

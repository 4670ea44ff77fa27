"""One writer per folder: a lock that says who holds it, and is gone with the process that holds it, however it ends."""

import errno
import fcntl
import logging
import os
import socket
from datetime import datetime
from pathlib import Path

from dida.errors import UserError

LOCK = "lock"  # the file, in the folder that is claimed
_HELD = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_log = logging.getLogger(__name__)


class Claimed(UserError):
    """Another process holds the folder. The message says which."""


class Claim:
    """The sole right to write into a folder, until `release` or the end of this process.

    It is a lock of the process (`lockf`), not of the open file (`flock`): that one would live on for seconds in the
    loader processes of a run that was killed, and keep it from being resumed.
    """

    def __init__(self, folder: Path) -> None:
        """Raises Claimed, or OSError where the folder cannot be written to."""
        self._path = folder / LOCK
        while True:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.pread(self._file, 1000, 0).decode(errors="replace") or "a process that is just starting"
                os.close(self._file)
                if error.errno in _HELD:
                    raise Claimed(f"{folder}: {holder} writes here; one folder has one writer") from error
                if error.errno not in _NO_LOCKS:
                    raise
                self._file = -1
                _log.warning("%s: its file system has no locks; see to it that no second process writes there", folder)
                return
            if _is_file(self._path, self._file):  # and was not removed by its last holder in between
                break
            os.close(self._file)
        who = f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S},"
        try:
            os.truncate(self._file, 0)
            os.pwrite(self._file, who.encode(), 0)
        except OSError as error:  # a full disk
            self.release()
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def release(self) -> None:
        """Let others have it; nothing of it stays in the folder."""
        if self._file >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1


def require_unclaimed(folder: Path) -> None:
    """Raise Claimed if another process holds the folder. For this one's own claims it says nothing, and ends them."""
    if (folder / LOCK).exists():
        Claim(folder).release()


def _is_file(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False

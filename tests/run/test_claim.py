"""One folder has one writer: another process is told who it is, and a dead one holds nothing."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dida.run.claim import LOCK, Claim, Claimed, require_unclaimed


def in_a_child(act: Callable[[], str]) -> str:
    """What `act` returns in a forked process, or the error that ends it."""
    read, write = os.pipe()
    if not os.fork():
        try:
            said = act()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    os.wait()
    return text


def claim(folder: Path) -> str:
    Claim(folder)
    return "mine"


def test_a_second_process_is_told_who_holds_the_folder(tmp_path):
    held = Claim(tmp_path)
    for ask in (lambda: claim(tmp_path), lambda: str(require_unclaimed(tmp_path))):
        said = in_a_child(ask)
        assert said.startswith(f"Claimed: {tmp_path}: process {os.getpid()} on ")
        assert "one folder has one writer" in said
    held.release()
    assert list(tmp_path.iterdir()) == []
    assert in_a_child(lambda: claim(tmp_path)) == "mine"


def test_a_claim_ends_with_its_process_and_not_with_its_children(tmp_path):
    """Loader processes outlive a run that was killed by seconds; it can be resumed at once all the same."""
    ready, write = os.pipe()
    run = os.fork()
    if not run:
        Claim(tmp_path)
        loader = os.fork()
        if loader:
            os.write(write, f"{loader}\n".encode())
        time.sleep(60)
        os._exit(0)
    loader = int(os.read(ready, 100))
    try:
        with pytest.raises(Claimed, match=f"process {run} on"):
            Claim(tmp_path)
        os.kill(run, signal.SIGKILL)
        os.waitpid(run, 0)
        os.kill(loader, 0)  # is there
        assert (tmp_path / LOCK).exists()
        require_unclaimed(tmp_path)
        Claim(tmp_path).release()
    finally:
        os.kill(loader, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_says_nothing_holds_nothing(tmp_path):
    for content in (b"", b"process 1 on here, since 2000-01-01 00:00:00,", b"\xff\xfe" * 10_000):
        (tmp_path / LOCK).write_bytes(content)
        require_unclaimed(tmp_path)
        Claim(tmp_path).release()


def test_a_place_that_cannot_be_written_to_is_an_error(tmp_path):
    for folder in (tmp_path / "nowhere", Path("/proc")):
        with pytest.raises(OSError):
            Claim(folder)


def test_many_at_once_are_one_after_the_other(tmp_path):
    """Claims that come while another is released, whose file is removed: no two hold the folder at the same time."""
    children = []
    for _ in range(6):
        pid = os.fork()
        if not pid:
            status = 3
            try:
                status = _worked(tmp_path)
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 6


def _worked(folder: Path) -> int:
    deadline, done = time.monotonic() + 20, 0
    while done < 20 and time.monotonic() < deadline:
        try:
            mine = Claim(folder)
        except Claimed:
            continue
        try:
            (folder / "alone").touch(exist_ok=False)
            (folder / "alone").unlink()
        except OSError:
            return 1
        done += 1
        mine.release()
    return 0 if done == 20 else 2

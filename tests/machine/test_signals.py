"""Requests to stop: remembered, raised where that is safe, and passed on when they are repeated."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from dida.machine import signals
from dida.machine.signals import STOPPING, Signals, Stopped, ignore_signals, starting_workers


@pytest.mark.parametrize("kind", STOPPING)
def test_a_signal_is_remembered_and_nothing_else_happens(kind):
    with Signals() as listening:
        assert listening.caught is None
        listening.raise_caught()
        os.kill(os.getpid(), kind)
        assert listening.caught == kind.name
        with pytest.raises(Stopped) as stopped:
            listening.raise_caught()
    assert stopped.value.code == 128 + kind
    assert signal.getsignal(kind) in (signal.SIG_DFL, signal.default_int_handler)


@pytest.mark.parametrize("kind", STOPPING)
def test_a_block_that_may_be_given_up_ends_at_once(kind):
    def block(act: Callable[[], object]) -> None:
        with listening.interrupting():
            act()
            time.sleep(90)

    begin = time.monotonic()
    with Signals() as listening:
        with pytest.raises(Stopped):
            block(lambda: os.kill(os.getpid(), kind))
        with pytest.raises(Stopped):
            block(lambda: pytest.fail("begun after a signal"))
    assert time.monotonic() - begin < 60


class Swallows:
    """What ends in here gets no exception out."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def __del__(self) -> None:
        self.act()


def catch_all(act: Callable[[], object]) -> None:
    with contextlib.suppress(BaseException):
        act()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("wait", [time.sleep, lambda seconds: Future().result(seconds)])
@pytest.mark.parametrize("swallow", [Swallows, catch_all])
def test_a_request_that_is_lost_on_its_way_is_made_again(swallow, wait, monkeypatch):
    monkeypatch.setattr(signals, "LOOK_AGAIN", 0.02)

    def block() -> None:
        with listening.interrupting():
            swallow(lambda: os.kill(os.getpid(), signal.SIGTERM))
            assert listening.caught == "SIGTERM"
            wait(60)
            pytest.fail("went on")

    with Signals() as listening, pytest.raises(Stopped):
        block()


class NamedWhileStopped:
    """Python 3.11 makes a RuntimeError of whatever comes up where a class gets its names, Stopped included."""

    def __set_name__(self, owner: type, name: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def make_a_class() -> None:
    type("Made", (), {"part": NamedWhileStopped()})


def wrap() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException as error:
        raise ValueError("what a library says of it") from error


@pytest.mark.parametrize("work", [make_a_class, wrap])
def test_a_request_that_others_made_an_error_of_is_still_one(work):
    with pytest.raises(Stopped, match="143"), Signals() as listening, listening.interrupting():
        work()


def fail_on_the_way_out() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        raise OSError("no space left on the disk")


def test_an_error_of_its_own_on_the_way_out_is_told():
    with pytest.raises(OSError, match="disk"), Signals() as listening, listening.interrupting():
        fail_on_the_way_out()


def test_what_a_block_does_at_its_end_is_not_ended(monkeypatch):
    monkeypatch.setattr(signals, "LOOK_AGAIN", 0.02)
    done = []

    @contextlib.contextmanager
    def tidied():
        try:
            yield
        finally:
            time.sleep(0.2)
            with contextlib.suppress(KeyError):
                {}["another error"]
            done.append("tidied")

    def block() -> None:
        with listening.interrupting(), tidied():
            os.kill(os.getpid(), signal.SIGTERM)

    with Signals() as listening, pytest.raises(Stopped):
        block()
    assert done == ["tidied"]
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


@pytest.mark.parametrize("made", ["while they start", "before, and lost"])
def test_workers_are_started_all_or_none(made, monkeypatch):
    """A signal finds a thread that does not block it, if there is one."""
    monkeypatch.setattr(signals, "LOOK_AGAIN", 0.01)
    threading.Thread(target=time.sleep, args=(0.5,), daemon=True).start()
    started = []

    def block() -> None:
        with listening.interrupting():
            if made == "before, and lost":
                catch_all(lambda: os.kill(os.getpid(), signal.SIGTERM))
            with starting_workers():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)
                started.append(True)
            pytest.fail("went on")

    with Signals() as listening, pytest.raises(Stopped):
        block()
    assert started


def test_a_thread_that_starts_workers_ends_nothing():
    ended = []

    def start() -> None:
        with starting_workers():
            pass
        ended.append("in good order")

    with Signals() as listening:
        os.kill(os.getpid(), signal.SIGTERM)
        assert listening.caught
        listening._interrupts = True  # as where the main thread is in a block that a signal has not reached yet
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    assert ended == ["in good order"]


def test_an_alarm_of_somebody_else_is_left_alone():
    heard = []
    signal.signal(signal.SIGALRM, lambda *_: heard.append("alarm"))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with Signals() as listening, listening.interrupting():
        time.sleep(0.1)
    assert heard == ["alarm"]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_an_alarm_ends_nobody_who_listens_to_it_no_more():
    """Python hands signals back to the system before a program is quite at its end."""
    with Signals() as listening:
        os.kill(os.getpid(), signal.SIGTERM)
        assert listening.caught == "SIGTERM"
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_the_inner_listener_ends_with_what_the_outer_one_has_lost():
    with Signals() as outer:
        os.kill(os.getpid(), signal.SIGTERM)
        with Signals() as inner, pytest.raises(Stopped):
            inner.raise_caught()
    assert outer.caught == "SIGTERM"


def test_the_first_of_several_kinds_counts():
    with Signals() as listening:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert listening.caught == "SIGTERM"


@pytest.mark.parametrize("kind", STOPPING)
def test_the_same_request_twice_is_one_and_a_later_one_acts(kind, monkeypatch):
    """`timeout` sends its signal to the process and to the group."""
    heard = []
    signal.signal(kind, lambda *_: heard.append(kind))
    with Signals():
        os.kill(os.getpid(), kind)
        os.kill(os.getpid(), kind)
        assert heard == []
        monkeypatch.setattr(signals, "ONE_REQUEST", 0.0)
        os.kill(os.getpid(), kind)
        assert heard == [kind]


def test_two_listeners_hand_over():
    """The outer one, of the program, ends it; the inner one, of the loop, lets it end in good order."""
    with Signals() as outer:

        def program() -> None:
            with outer.interrupting():
                with Signals() as inner:
                    os.kill(os.getpid(), signal.SIGTERM)
                    assert (inner.caught, outer.caught) == ("SIGTERM", None)
                os.kill(os.getpid(), signal.SIGTERM)
                pytest.fail("went on")

        with pytest.raises(Stopped):
            program()


def test_hang_ups_stay_ignored_under_nohup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Signals() as listening:
        os.kill(os.getpid(), signal.SIGHUP)
        assert listening.caught is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_process_that_works_for_another_hears_nothing():
    ignore_signals()
    for kind in STOPPING:
        os.kill(os.getpid(), kind)

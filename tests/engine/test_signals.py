"""The first request to stop is remembered, the second acts. A fixture puts back whatever listened before a test."""

import os
import signal

import pytest

from dida.signals import STOPPING, Signals


def test_the_first_signal_is_remembered_and_the_second_acts():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
    signals = Signals()
    assert signals.caught is None
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.caught == "SIGINT"
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_of_two_kinds_the_first_is_named():
    signals = Signals()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGHUP)
    assert signals.caught == "SIGTERM"


def test_whatever_listened_before_listens_again():
    heard = []
    signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    before = {kind: signal.getsignal(kind) for kind in STOPPING}
    signals = Signals()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert (signals.caught, heard) == ("SIGUSR1", [])
    signals.restore()
    assert {kind: signal.getsignal(kind) for kind in STOPPING} == before
    os.kill(os.getpid(), signal.SIGUSR1)
    assert heard == [signal.SIGUSR1]

"""Signals: the first is remembered, the second acts."""

import os
import signal

import pytest

from croc_jax.training.stopping import StopRequest, exit_status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_the_first_signal_is_remembered(number):
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number.name


def test_the_second_signal_acts():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.received == "SIGINT"


def test_handlers_are_as_before_outside_the_block():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before


def test_what_schedulers_repeat_changes_nothing():
    with StopRequest() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.received == "SIGUSR1"


def test_the_status_tells_schedulers_what_to_do():
    assert [exit_status(name) for name in ("SIGTERM", "SIGUSR1", "SIGINT")] == [75, 75, 130]

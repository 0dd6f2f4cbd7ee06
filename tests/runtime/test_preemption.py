"""Signals ask a process that is alone to stop after its step."""

import os
import signal

import pytest

from croc_jax.runtime.preemption import StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_a_request_to_stop(number):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert not signals.should_stop(1)
        os.kill(os.getpid(), number)
        assert signals.should_stop(2) and signals.received == number.name
    assert signal.getsignal(number) == before


def test_a_second_interrupt_has_its_usual_effect_and_repeated_requests_have_none():
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert signals.received == "SIGUSR1"
        os.kill(os.getpid(), signal.SIGINT)

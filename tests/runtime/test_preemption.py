"""Signals ask a process that is alone to stop after its step."""

import os
import signal

import jax
import pytest
from jax.experimental import multihost_utils

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


def test_a_signal_that_came_before_the_first_step_of_a_resumed_run_is_not_lost(monkeypatch):
    # JAX's service names step 1 if nobody has asked before.
    asked = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: asked.append(step) or step == 1)
    assert StopSignals().arrived_before(5000) and asked == [0, 1]
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: asked.append(step))
    asked.clear()
    assert not StopSignals().arrived_before(3) and asked == [0, 1, 2, 3]


@pytest.mark.parametrize(("received", "status"), [("SIGTERM", 75), ("SIGUSR1", 75), (None, 75), ("SIGINT", 130)])
def test_only_an_interrupt_asks_for_no_other_start(received, status):
    signals = StopSignals()
    signals.received = received
    assert signals.exit_status == status

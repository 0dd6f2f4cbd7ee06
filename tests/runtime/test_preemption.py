"""Signals ask a process that is alone to stop after its step."""

import os
import signal
import threading

import jax
import pytest
from jax.experimental import multihost_utils

from croc_jax.runtime import preemption
from croc_jax.runtime.preemption import StopSignals
from croc_jax.training.loop import Interrupted


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_a_wait(number):
    with StopSignals() as signals:
        threading.Timer(0.05, os.kill, [os.getpid(), number]).start()
        with pytest.raises(Interrupted), signals.interruptible(3):
            threading.Event().wait(60)
        assert signals.should_stop(3) and signals.received == number.name
        # Later ones disturb no save.
        os.kill(os.getpid(), signal.SIGTERM)
        # One that came before ends a wait, too.
        with pytest.raises(Interrupted), signals.interruptible(3):
            pytest.fail("must not start to wait")


def test_a_signal_outside_of_a_wait_raises_nothing():
    with StopSignals() as signals:
        with signals.interruptible(3):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == "SIGTERM"


@pytest.mark.parametrize(("stops_after", "ends"), [(4, True), (6, True), (None, False)])
def test_one_of_several_processes_ends_a_wait_that_is_too_long(monkeypatch, stops_after, ends):
    ended, looked_again, asked = threading.Event(), threading.Event(), []

    def reached(step):
        asked.append(step)
        if asked.count(4) == 2:
            looked_again.set()
        return step == stops_after

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", reached)
    monkeypatch.setattr(preemption, "end_at_once", lambda status, message: (asked.append(message), ended.set()))
    monkeypatch.setattr(preemption, "_SECONDS_TO_WAIT", 0.0)
    monkeypatch.setattr(preemption, "_SECONDS_BETWEEN_LOOKS", 0.01)
    with StopSignals() as signals, signals.interruptible(4):
        assert (ended if ends else looked_again).wait(60)
    # The service takes the last number for the step of this process.
    numbers = [one for one in asked if isinstance(one, int)]
    assert numbers[: preemption._STEPS_AHEAD] == list(range(11, 3, -1))
    assert any("images of step 5 have not come" in str(one) for one in asked) is ends

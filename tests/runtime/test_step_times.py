"""Step times, by a clock that does as it is told."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from croc_jax.runtime import step_times
from croc_jax.runtime.step_times import StepTimes, device_memory, find_straggler, summarize


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_summary_of_known_times():
    seconds = np.arange(1.0, 102.0)
    assert summarize(seconds) == {"step_seconds": 51.0, "step_seconds_p95": 96.0, "step_seconds_max": 101.0}


def test_each_report_is_of_its_own_steps_and_tells_host_from_devices():
    clock = Clock()
    times = StepTimes(clock)
    for seconds in (1.0, 2.0, 6.0):
        clock.now += 0.25
        with times.waiting():
            clock.now += seconds - 0.25
        times.tick()
    first = times.take()
    assert (first["step_seconds"], first["step_seconds_max"]) == (2.0, 6.0)
    assert first["host_seconds"] == pytest.approx(0.25) and "straggler" not in first
    clock.now += 3.0
    times.tick()
    second = times.take()
    assert (second["step_seconds"], second["step_seconds_max"], second["host_seconds"]) == (3.0, 3.0, 3.0)


def test_the_straggler_is_the_process_whose_host_is_busiest():
    found = find_straggler(np.array([0.1, 0.1, 0.9, 0.2, 0.1]))
    assert found == pytest.approx({"host_seconds": 0.9, "straggler": 2, "straggler_excess": 0.8})
    assert find_straggler(np.array([0.4])) == {"host_seconds": 0.4}


def test_several_processes_gather_and_one_does_not(monkeypatch):
    gathered = []

    def allgather(value):
        gathered.append(float(value))
        return np.array([[value], [2 * value]])

    monkeypatch.setattr(step_times.multihost_utils, "process_allgather", allgather)
    np.testing.assert_array_equal(step_times.gather(0.5), [0.5])
    assert gathered == []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    np.testing.assert_array_equal(step_times.gather(0.5), [0.5, 1.0])
    assert gathered == [0.5]


def test_memory_is_of_the_fullest_device_that_tells(monkeypatch):
    stats = [{"bytes_in_use": 2**30, "peak_bytes_in_use": 3 * 2**30}, {"bytes_in_use": 2**31}, None]
    devices = [SimpleNamespace(memory_stats=lambda each=each: each) for each in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert device_memory() == {"memory_gib": 2.0, "memory_peak_gib": 3.0}
    monkeypatch.setattr(jax, "local_devices", lambda: devices[2:])
    assert device_memory() == {}

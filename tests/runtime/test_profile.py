"""Times of steps, by a fake clock, and which steps are traced."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.runtime import profile
from croc_jax.runtime.profile import Profiler, StepTimer, parse_steps


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_each_report_is_of_its_own_steps_and_separates_host_from_device():
    clock = Clock()
    timer = StepTimer(batch_size=6, count_skipped=lambda: 3, clock=clock)
    with timer.waiting_for("data"):
        clock.now += 50.0
    timer.restart()
    for seconds in (1.0, 2.0, 6.0):
        with timer.waiting_for("data"):
            clock.now += 0.25
        with timer.waiting_for("device"):
            clock.now += seconds - 0.25
        timer.tick()
    numbers = timer.take()
    assert numbers["step_seconds"] == 2 and numbers["step_seconds_p95"] == pytest.approx(5.6)
    assert numbers["step_seconds_max"] == 6 and numbers["images_per_sec"] == 2 and numbers["skipped"] == 3
    assert numbers["data_wait_fraction"] == pytest.approx(0.75 / 9, abs=1e-4) and numbers["host_seconds"] == 0.25
    assert "straggler" not in numbers
    clock.now += 3.0
    timer.tick()
    numbers = timer.take()
    assert (numbers["step_seconds"], numbers["host_seconds"], numbers["data_wait_fraction"]) == (3, 3, 0)


def test_of_several_processes_the_straggler_is_the_one_whose_host_is_busiest(monkeypatch):
    others = np.array([[0.1, 0], [0.1, 1], [0.9, 0], [0.2, 1], [0.1, 0]], np.float32)
    monkeypatch.setattr(profile.multihost_utils, "process_allgather", lambda own: others)
    timer = StepTimer(batch_size=1)
    timer.tick()
    numbers = timer.take()
    assert (numbers["straggler"], numbers["skipped"]) == (2, 2)
    assert numbers["host_seconds"] == pytest.approx(0.9) and numbers["straggler_excess"] == pytest.approx(0.8)


def test_memory_is_of_the_fullest_device(monkeypatch):
    stats = [{"bytes_in_use": 2**30, "peak_bytes_in_use": 3 * 2**30}, {"bytes_in_use": 2**31}, None]
    devices = [SimpleNamespace(memory_stats=lambda each=each: each) for each in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert profile._device_memory() == {"memory_gib": 2.0, "memory_peak_gib": 3.0}
    monkeypatch.setattr(jax, "local_devices", lambda: devices[2:])
    assert profile._device_memory() == {}


def test_a_range_of_steps_is_read():
    assert parse_steps("3:5", total_steps=10) == range(3, 5)
    assert parse_steps("10:11", total_steps=10) == range(10, 11)
    reasons = dict.fromkeys(("5", "a:b", "-1:5"), "expected START:STOP, such as 100:105")
    reasons |= dict.fromkeys(("0:5", "5:5", "9:12"), "expected 1 <= START < STOP <= 11")
    for text, reason in reasons.items():
        with pytest.raises(ValueError, match=re.escape(f"--profile_steps={text}: {reason}")):
            parse_steps(text, total_steps=10)


@pytest.fixture
def calls(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop",)))
    return calls


def trace(folder, steps, calls, *, first=1, last=8):
    lines = []
    profiler = Profiler(folder, steps, log=lines.append)
    for number in range(first, last + 1):
        with profiler.step(number, jnp.zeros(())):
            calls.append(number)
    profiler.close()
    return lines


def test_the_steps_of_the_range_are_traced_and_no_others(tmp_path, calls):
    lines = trace(tmp_path, range(3, 5), calls)
    assert calls == [1, 2, ("start", tmp_path), 3, 4, ("stop",), 5, 6, 7, 8]
    assert len(lines) == 1 and "steps 3 to 4" in lines[0] and f"xprof --logdir={tmp_path}" in lines[0]


@pytest.mark.parametrize("steps, first", [(range(8, 9), 1), (range(3, 5), 5), (range(0), 1)])
def test_a_trace_ends_with_the_run_and_past_steps_are_not_traced(tmp_path, calls, steps, first):
    trace(tmp_path, steps, calls, first=first)
    traced = [("start", tmp_path), 8, ("stop",)] if 8 in steps else [8]
    assert calls == [*range(first, 8), *traced]


@pytest.mark.parametrize("name", ["start_trace", "stop_trace"])
def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path, calls, monkeypatch, name):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jax.profiler, name, refuse)
    (line,) = trace(tmp_path, range(3, 5), calls)
    assert line.startswith(f"warning: no trace is written to {tmp_path}: [Errno 28]") and calls[-1] == 8

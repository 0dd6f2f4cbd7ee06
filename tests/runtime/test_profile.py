"""Which steps are traced, and where the trace is."""

import re

import jax
import jax.numpy as jnp
import pytest

from croc_jax.runtime.profile import Profiler, StepRange, parse_steps


def test_a_range_is_read():
    assert parse_steps("3:5", total_steps=10) == StepRange(3, 5)
    assert parse_steps("10:11", total_steps=10) == StepRange(10, 11)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("5", "expected START:STOP, such as 100:105"),
        ("a:b", "expected START:STOP"),
        ("-1:5", "expected START:STOP"),
        ("0:5", "START must be 1 or more, and STOP more than START"),
        ("5:5", "START must be 1 or more, and STOP more than START"),
        ("9:12", "STOP is 11 at most in a run of 10 steps"),
    ],
)
def test_a_bad_range_is_refused(text, reason):
    with pytest.raises(ValueError, match=re.escape(f"--profile_steps={text}: ") + ".*" + re.escape(reason)):
        parse_steps(text, total_steps=10)


@pytest.fixture
def calls(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop",)))
    return calls


def trace(folder, steps, calls, *, first=1, last=8):
    said = []
    with Profiler(folder, steps, say=said.append) as profiler:
        for number in range(first, last + 1):
            with profiler.step(number, jnp.zeros(())):
                calls.append(number)
    return said


def test_the_steps_of_the_range_are_traced_and_no_others(tmp_path, calls):
    said = trace(tmp_path, StepRange(3, 5), calls)
    assert calls == [1, 2, ("start", tmp_path), 3, 4, ("stop",), 5, 6, 7, 8]
    assert len(said) == 1 and "steps 3 to 4" in said[0] and f"xprof --logdir={tmp_path}" in said[0]


def test_a_trace_ends_with_the_run_and_a_range_that_is_past_is_told_once(tmp_path, calls):
    assert len(trace(tmp_path, StepRange(8, 9), calls)) == 1
    assert calls[-3:] == [("start", tmp_path), 8, ("stop",)]
    calls.clear()
    for first in (4, 5):
        said = trace(tmp_path, StepRange(3, 5), calls, first=first)
        assert said == ["step 3, where the trace would begin, is past: nothing is traced"]
        assert calls == [*range(first, 9)]
        calls.clear()
    calls.clear()
    assert trace(tmp_path, None, calls) == [] and calls == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("INTERNAL: no\nmore")])
def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path, calls, monkeypatch, error):
    def refuse():
        raise error

    monkeypatch.setattr(jax.profiler, "stop_trace", refuse)
    (said,) = trace(tmp_path, StepRange(3, 5), calls)
    assert said.startswith(f"warning: the trace of steps 3 to 4 cannot be written to {tmp_path}: ")
    assert said.endswith("; training goes on") and "\n" not in said and calls[-1] == 8


def test_a_real_trace_lies_in_the_folder(tmp_path):
    said = []
    with Profiler(tmp_path / "profile", StepRange(1, 2), say=said.append) as profiler:
        for number in (1, 2):
            with profiler.step(number, jnp.zeros(())):
                jnp.ones(3).block_until_ready()
    names = [file.name for file in (tmp_path / "profile").rglob("*") if file.is_file()]
    assert any(name.endswith(".xplane.pb") for name in names), names
    assert any(name.endswith("trace.json.gz") for name in names), names

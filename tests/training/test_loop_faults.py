"""What ends a run early, or refuses what it writes: nothing that is good is lost, nothing bad is saved."""

import errno
import itertools
import logging
import math
import time

import jax
import jax.numpy as jnp
import pytest

from croc_jax.data.bad_records import ReadersLostError
from croc_jax.runtime.health import NonFiniteError
from croc_jax.runtime.metrics_writer import MetricsWriter
from croc_jax.runtime.stopping import StopRequest
from croc_jax.training import loop
from croc_jax.training.config import RuntimeConfig
from croc_jax.training.loop import SaveError
from tests.training.counting import LOGGED, Full, Numbers, expected_weights, make_step, rows, run


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_is_never_saved(tmp_path, loss):
    runtime = RuntimeConfig(log_every_steps=1, checkpoint_every_minutes=0)
    with pytest.raises(NonFiniteError) as failure:
        run(tmp_path, step=make_step(loss_at={7: loss}), runtime=runtime)
    assert failure.value.step == 7
    assert list(failure.value.saver.saved) == [1, 2, 3, 4, 5, 6]  # pyright: ignore[reportAttributeAccessIssue]
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_bad_loss_between_logged_steps_is_found_too(tmp_path):
    with pytest.raises(NonFiniteError) as failure:
        run(tmp_path, step=make_step(loss_at={7: math.nan}))
    assert failure.value.step == 7 and not failure.value.saver.saved  # pyright: ignore[reportAttributeAccessIssue]


def test_a_bad_state_behind_a_good_loss_is_not_saved(tmp_path):
    runtime = RuntimeConfig(checkpoint_every_minutes=1e9, keep_every_epochs=2)
    with pytest.raises(NonFiniteError, match="step 16: weight has values") as failure:
        run(tmp_path, step=make_step(weight_at={16: math.nan}), runtime=runtime)
    assert list(failure.value.saver.saved) == [8]  # pyright: ignore[reportAttributeAccessIssue]


def requesting(stop, name="SIGTERM"):
    def request():
        stop.received = name

    return request


def test_a_signal_ends_the_run_after_the_step_and_saves_it(tmp_path):
    stop = StopRequest()
    # The batch of step 9, number 8 from 0, is read while step 8 runs.
    outcome, saver = run(tmp_path, dataset=Numbers({8: requesting(stop)}), stop=stop)
    assert (outcome.step, outcome.finished) == (8, False)
    assert list(saver.saved) == [8] and saver.waited == [8]
    assert float(saver.saved[8].weight) == expected_weights(20)[8]
    resumed, _ = run(tmp_path, state=jax.tree.map(jnp.asarray, saver.saved[8]))
    assert float(resumed.state.weight) == expected_weights(20)[20]
    assert [row["step"] for row in rows(tmp_path)] == LOGGED


def test_a_signal_before_the_first_step_leaves_nothing_to_do(tmp_path):
    stop = StopRequest()
    outcome, saver = run(tmp_path, dataset=Numbers({0: requesting(stop)}), stop=stop)
    assert (outcome.step, outcome.finished) == (0, False) and not saver.saved


def test_readers_that_die_of_the_same_signal_do_not_matter(tmp_path):
    stop = StopRequest()

    def die():
        stop.received = "SIGINT"
        raise RuntimeError("worker process was terminated")

    outcome, saver = run(tmp_path, dataset=Numbers({8: die}), stop=stop)
    assert (outcome.step, outcome.finished, list(saver.saved)) == (8, False, [8])


def test_readers_that_fail_otherwise_fail_the_run(tmp_path):
    def fail():
        raise OSError("disk gone")

    dataset = Numbers({8: fail})
    with pytest.raises(OSError, match="disk gone"):
        run(tmp_path, dataset=dataset)
    assert dataset.closed


def test_a_full_disk_does_not_end_a_run_and_costs_no_step(tmp_path, caplog):
    runtime = RuntimeConfig(checkpoint_every_minutes=1e9, keep_every_epochs=1)
    with caplog.at_level(logging.WARNING):
        outcome, saver = run(tmp_path, runtime=runtime, saver=Full({4, 12}))
    assert outcome.finished and list(saver.saved) == [8, 16, 20]
    assert [text for text in caplog.messages if "no room" in text] == [
        f"step {step} is not saved: no room; training goes on, and a later state is saved as soon as it can be"
        for step in (4, 12)
    ]


def test_a_state_that_could_not_be_saved_is_followed_by_one_that_can_be(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_SECONDS_TO_RETRY", 0.0)
    runtime = RuntimeConfig(checkpoint_every_minutes=1e9, keep_every_epochs=2)
    _, saver = run(tmp_path, runtime=runtime, saver=Full({8, 9, 10}))
    assert list(saver.saved) == [11, 16, 20]


def test_only_one_process_warns(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with caplog.at_level(logging.WARNING):
        run(tmp_path, runtime=RuntimeConfig(checkpoint_every_minutes=1e9, keep_every_epochs=1), saver=Full({4}))
    assert caplog.messages == []


def test_the_last_state_must_be_saved(tmp_path):
    with pytest.raises(SaveError, match="step 20 is not saved: no room"):
        run(tmp_path, saver=Full({20}))


def test_a_log_that_cannot_be_written_keeps_the_state_from_being_saved(tmp_path, monkeypatch):
    def refuse(log):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MetricsWriter, "sync", refuse)
    with pytest.raises(SaveError, match="step 20 is not saved, as metrics.jsonl cannot be written: No space left"):
        run(tmp_path)


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    wall, jumps = time.time, itertools.cycle([0, 3600, -86400, 86400])
    monkeypatch.setattr(time, "time", lambda: wall() + next(jumps))
    _, saver = run(tmp_path, runtime=RuntimeConfig(log_every_steps=5, checkpoint_every_minutes=1))
    assert list(saver.saved) == [20]
    assert all(0 < row["images_per_sec"] < 1e6 for row in rows(tmp_path))


def test_lost_readers_end_a_run_with_its_state_saved(tmp_path):
    def lose():
        raise ReadersLostError("killed")

    with pytest.raises(ReadersLostError) as failure:
        run(tmp_path, dataset=Numbers({8: lose}))
    assert list(failure.value.saver.saved) == [8]  # pyright: ignore[reportAttributeAccessIssue]

"""The loop, around a small step whose numbers can be foretold."""

import dataclasses
import errno
import io
import itertools
import json
import logging
import math
import time

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from croc_jax.data.damage import ReadersLostError
from croc_jax.training.config import OptimizerConfig, Recipe, RuntimeConfig, WatchdogConfig
from croc_jax.training.health import NonFiniteError
from croc_jax.training.loop import Outputs, RunLength, SaveError, run_training
from croc_jax.training.metrics_log import MetricsLog
from croc_jax.training.profiling import Profiler, StepRange
from croc_jax.training.progress import RunProgress
from croc_jax.training.sharding import make_mesh
from croc_jax.training.stopping import StopRequest
from croc_jax.training.watchdog import CollapseError, Watchdog

LENGTH = RunLength(20, steps_per_epoch=4, batch_size=2)
NEVER = RuntimeConfig(
    num_workers=0, num_threads=2, log_every_steps=5, checkpoint_every_minutes=1e9, keep_every_epochs=1000
)
LOGGED = [1, 5, 10, 15, 20]
CONTRACT = "step epoch loss loss_dense loss_global lr images_per_sec num_clusters valid_fraction".split()
CONTRACT += ["teacher_entropy", "teacher_entropy_c"]


@flax.struct.dataclass
class State:
    step: jax.Array
    weight: jax.Array


class Numbers:
    """Batches that hold their own step; `at` maps a step to something that happens when it is read."""

    def __init__(self, at=None):
        self.at, self.skipped, self.closed, self.starts = at or {}, {}, False, []

    def iterate(self, start_step, *, num_workers, num_threads):
        self.starts.append((start_step, num_workers, num_threads))
        self.step = start_step
        return self

    def __next__(self):
        happening = self.at.get(self.step)
        if happening is not None:
            happening()
        batch = np.full((2, 1), self.step, np.float32)
        self.step += 1
        return batch

    def close(self):
        self.closed = True


class Memory:
    """Keeps what is saved, and whether the loop waited for it."""

    def __init__(self):
        self.saved = {}
        self.waited = []

    def save(self, step, state, *, wait=False):
        self.saved[step] = jax.tree.map(np.array, state)
        self.waited += [step] if wait else []


def make_step(loss_at=None, weight_at=None):
    """Returns weight' = 0.5 weight + batch; the loss is the old weight, or what the tables say."""

    def value_at(table, step, otherwise):
        for when, value in (table or {}).items():
            otherwise = jnp.where(step == when, value, otherwise)
        return otherwise

    def step(state, batch):
        number = state.step + 1
        loss = value_at(loss_at, number, state.weight)
        weight = value_at(weight_at, number, 0.5 * state.weight + batch.mean())
        rest = {name: jnp.float32(0) for name in CONTRACT if name not in ("step", "epoch", "images_per_sec")}
        return State(number, weight), rest | {"loss": loss}

    return jax.jit(step, donate_argnums=0)


def fresh():
    return State(jnp.zeros((), jnp.int32), jnp.ones(()))


def run(workdir, *, step=None, state=None, dataset=None, runtime=NEVER, stop=None, length=LENGTH, saver=None, **more):
    state, dataset, saver = state or fresh(), dataset or Numbers(), saver or Memory()
    workdir.mkdir(exist_ok=True)
    log = MetricsLog(workdir, restored_step=int(state.step))
    display = RunProgress(Console(file=io.StringIO()), start=0, total=length.total_steps)
    try:
        outcome = run_training(
            step or make_step(),
            state,
            dataset,
            outputs=Outputs(saver=saver, log=log, display=display, **more),
            length=length,
            runtime=runtime,
            mesh=make_mesh(jax.devices()[:1]),
            stop=stop or StopRequest(),
        )
    except Exception as error:
        error.saver = saver  # pyright: ignore[reportAttributeAccessIssue]
        raise
    finally:
        log.close()
    return outcome, saver


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def expected_weights(steps):
    weights = [np.float32(1)]
    for number in range(steps):
        weights.append(np.float32(0.5) * weights[-1] + np.float32(number))
    return [float(weight) for weight in weights]


def test_a_run_takes_every_batch_once_in_order_and_logs_the_right_steps(tmp_path):
    dataset = Numbers()
    outcome, saver = run(tmp_path, dataset=dataset)
    weights = expected_weights(20)
    assert (outcome.step, outcome.finished, float(outcome.state.weight)) == (20, True, weights[20])
    assert [row["step"] for row in rows(tmp_path)] == LOGGED
    assert [row["loss"] for row in rows(tmp_path)] == [weights[step - 1] for step in LOGGED]
    assert [row["epoch"] for row in rows(tmp_path)] == [step / 4 for step in LOGGED]
    assert dataset.starts == [(0, 0, 2)] and dataset.step == 20 and dataset.closed
    assert list(saver.saved) == [20] and saver.waited == [20]


def test_every_row_has_the_keys_of_the_contract(tmp_path):
    run(tmp_path)
    for row in rows(tmp_path):
        assert set(CONTRACT) <= set(row)
        assert row["images_per_sec"] > 0 and 0 <= row["data_wait_fraction"] <= 1


def test_replaced_images_are_counted(tmp_path):
    dataset = Numbers()
    dataset.skipped = {"a.jpg": 2, "b.jpg": 1}
    run(tmp_path, dataset=dataset)
    assert [row["skipped"] for row in rows(tmp_path)] == [3] * 5


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, _ = run(tmp_path / "a")
    runtime = RuntimeConfig(log_every_steps=5, checkpoint_every_minutes=0)
    _, saver = run(tmp_path / "b", runtime=runtime)
    # The log was ahead of the state that is restored: those lines come again, once.
    dataset = Numbers()
    outcome, _ = run(tmp_path / "b", state=jax.tree.map(jnp.asarray, saver.saved[7]), dataset=dataset)
    assert dataset.starts == [(7, 0, 2)]
    assert float(outcome.state.weight) == float(whole.state.weight)
    for ours, theirs in zip(rows(tmp_path / "b"), rows(tmp_path / "a"), strict=True):
        assert (ours["step"], ours["loss"]) == (theirs["step"], theirs["loss"])


def test_a_finished_run_is_left_alone(tmp_path):
    state = State(jnp.int32(20), jnp.float32(3))
    dataset = Numbers()
    outcome, saver = run(tmp_path, state=state, dataset=dataset)
    assert outcome.finished and outcome.state is state and not saver.saved and not dataset.starts


def test_saves_fall_on_kept_epochs_and_on_the_end(tmp_path):
    runtime = RuntimeConfig(checkpoint_every_minutes=1e9, keep_every_epochs=2)
    _, saver = run(tmp_path, runtime=runtime)
    assert list(saver.saved) == [8, 16, 20] and saver.waited == [20]
    weights = expected_weights(20)
    for step, state in saver.saved.items():
        assert (state.step, state.weight) == (step, weights[step])


def test_saves_come_before_too_much_time_has_passed(tmp_path):
    _, saver = run(tmp_path, runtime=RuntimeConfig(checkpoint_every_minutes=0))
    assert list(saver.saved) == list(range(1, 21))


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


class Watched:
    """A number on a device that notes when it is read."""

    def __init__(self, note):
        self.note = note

    def copy_to_host_async(self):
        pass

    def __float__(self):
        self.note()
        return 1.0


def watched_step(events):
    """Returns a step that notes when it is started and when its loss is read."""

    def step(state, batch):
        number = int(state.step) + 1
        events.append(("start", number))
        loss = Watched(lambda: events.append(("read", number)))
        return State(jnp.int32(number), state.weight), {"loss": loss, "num_clusters": Watched(lambda: None)}

    return step


def test_the_device_never_waits_for_the_host(tmp_path):
    events = []
    dataset = Numbers({step: lambda step=step: events.append(("batch", step + 1)) for step in range(4)})
    run(tmp_path, step=watched_step(events), dataset=dataset, length=RunLength(4, 1000, 2))
    # While a step runs, the next batch is read, and the numbers of the step before.
    expected = "batch 1, start 1, batch 2, start 2, batch 3, read 1, start 3, batch 4, read 2, start 4, read 3, read 4"
    assert ", ".join(f"{what} {number}" for what, number in events) == expected


class Full(Memory):
    """Refuses the states of some steps."""

    def __init__(self, refused):
        super().__init__()
        self.refused = refused

    def save(self, step, state, *, wait=False):
        if step in self.refused:
            raise SaveError(f"step {step} is not saved: no room")
        super().save(step, state, wait=wait)


def test_a_full_disk_does_not_end_a_run_and_costs_no_step(tmp_path, caplog):
    runtime = RuntimeConfig(checkpoint_every_minutes=1e9, keep_every_epochs=1)
    with caplog.at_level(logging.WARNING):
        outcome, saver = run(tmp_path, runtime=runtime, saver=Full({4, 12}))
    assert outcome.finished and list(saver.saved) == [8, 16, 20]
    assert [text for text in caplog.messages if "no room" in text] == [
        f"step {step} is not saved: no room; training goes on, and tries again later" for step in (4, 12)
    ]


def test_the_last_state_must_be_saved(tmp_path):
    with pytest.raises(SaveError, match="step 20 is not saved: no room"):
        run(tmp_path, saver=Full({20}))


def test_a_log_that_cannot_be_written_keeps_the_state_from_being_saved(tmp_path, monkeypatch):
    def refuse(log):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MetricsLog, "sync", refuse)
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


def guard(*, stop):
    """Returns a watchdog that the constant K = 0 of these steps alarms at the second row that it looks at."""
    watchdog = WatchdogConfig(window=2, grace_steps=5, stop_on_collapse=stop, min_valid_fraction=0.0)
    recipe = Recipe(runtime=RuntimeConfig(watchdog=watchdog))
    return Watchdog(dataclasses.replace(recipe, optimizer=OptimizerConfig(warmup_epochs=0)), steps_per_epoch=4)


def test_a_collapse_is_told_once_and_the_run_goes_on(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(RunProgress, "say", lambda _, text: said.append(text))
    outcome, _ = run(tmp_path, watchdog=guard(stop=False))
    assert outcome.finished
    (warning,) = [text for text in said if "two clusters" in text]
    assert warning.startswith("warning: step 10: ") and "num_clusters is 0.00" in warning


def test_a_collapse_ends_the_run_after_its_state_is_saved_if_asked(tmp_path):
    with pytest.raises(CollapseError, match=r"step 11: .*stop_on_collapse is set: .*num_clusters is 0.00") as caught:
        run(tmp_path, watchdog=guard(stop=True))
    saver = caught.value.saver  # pyright: ignore[reportAttributeAccessIssue]
    assert list(saver.saved) == saver.waited == [11]
    assert rows(tmp_path)[-1]["step"] == 10


def test_rows_say_how_long_steps_took(tmp_path):
    run(tmp_path, dataset=Numbers({7: lambda: time.sleep(0.3)}))
    slow = {row["step"]: row["step_seconds_max"] for row in rows(tmp_path)}
    assert slow[10] >= 0.3 > slow[20]
    for row in rows(tmp_path):
        assert 0 < row["step_seconds"] <= row["step_seconds_p95"] <= row["step_seconds_max"]
        assert 0 <= row["host_seconds"] and "straggler" not in row


def test_the_profiler_sees_each_step_and_the_state_before_it(tmp_path):
    seen = []

    class Spy(Profiler):
        def step(self, number, state):
            seen.append((number, int(state.step)))
            return super().step(number, state)

    run(tmp_path, profiler=Spy(tmp_path, StepRange(50, 51), say=print))
    assert seen == [(number, number - 1) for number in range(1, 21)]


def test_the_latest_row_is_there_for_prometheus(tmp_path):
    run(tmp_path)
    assert f'croc_step{{run="{tmp_path.name}"}} 20.0' in (tmp_path / "metrics.prom").read_text().splitlines()

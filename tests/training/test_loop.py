"""The loop, around a small step whose numbers can be foretold."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import pytest

from croc_jax.runtime.collapse import CollapseError, Watchdog
from croc_jax.runtime.profile import Profiler, StepRange
from croc_jax.runtime.progress import RunProgress
from croc_jax.training.config import OptimizerConfig, Recipe, RuntimeConfig, WatchdogConfig
from croc_jax.training.loop import RunLength
from tests.training.counting import CONTRACT, LOGGED, Numbers, State, expected_weights, rows, run


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

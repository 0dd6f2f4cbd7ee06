"""The loop, around a small step with known numbers."""

import contextlib
import errno
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.training import loop
from croc_jax.training.loop import RunLength
from tests.training.counting import LOGGED, Memory, NoTimes, Rows, State, expected_weights, make_step, run

FULL = OSError(errno.ENOSPC, "no space")


def test_a_run_takes_every_batch_once_in_order_and_logs_the_right_steps():
    outcome, rows, saver = run()
    weights = expected_weights(20)
    assert (outcome.step, outcome.finished, float(outcome.state.weight)) == (20, True, weights[20])
    assert [row["step"] for row in rows] == LOGGED
    assert [row["loss"] for row in rows] == [weights[step - 1] for step in LOGGED]
    assert [row["epoch"] for row in rows] == [step / 4 for step in LOGGED]
    assert [row["step_seconds"] for row in rows] == [0.5] * 5
    assert list(saver.saved) == saver.waited == [20]


def test_a_resumed_run_equals_an_uninterrupted_one():
    whole, rows, saver = run(saver=Memory(every=1), every=1)
    assert list(saver.saved) == list(range(1, 21)) and saver.waited == [20]
    for step, state in saver.saved.items():
        assert (state.step, state.weight) == (step, expected_weights(20)[step])
    resumed, again, _ = run(state=jax.tree.map(jnp.asarray, saver.saved[7]), every=1)
    assert float(resumed.state.weight) == float(whole.state.weight)
    assert again == rows[7:]


def test_a_finished_run_is_left_alone():
    state = State(jnp.int32(20), jnp.float32(3))
    outcome, rows, saver = run(state=state, at={20: lambda: pytest.fail("no batch is needed")})
    assert outcome.finished and outcome.state is state and not saver.saved and not rows


class Watched:
    """A number on a device that notes when it is read."""

    def __init__(self, note):
        self.note = note

    def copy_to_host_async(self):
        pass

    def __float__(self):
        self.note()
        return 1.0


def test_the_device_never_waits_for_the_host():
    events = []

    def step(state, batch):
        number = int(np.asarray(batch)[0, 0]) + 1
        events.append(f"start {number}")
        return State(state.step, state.weight), {"loss": Watched(lambda: events.append(f"read {number}"))}

    at = {step: lambda step=step: events.append(f"batch {step + 1}") for step in range(4)}
    with jax.transfer_guard("allow"):
        run(step=step, at=at, length=RunLength(4, 1000, 2))
    # While a step runs, the next batch is loaded, and the numbers of the previous step are read.
    expected = "batch 1, start 1, batch 2, start 2, batch 3, read 1, start 3, batch 4, read 2, start 4, read 3, read 4"
    assert ", ".join(events) == expected


def test_several_processes_exchange_nothing_while_a_step_runs(monkeypatch):
    events = []

    class Times(NoTimes):
        def take(self):
            events.append("times")
            return {}

    class Due(Memory):
        def should_save(self, step):
            events.append(f"due {step}")
            return False

    def step(state, batch):
        number = int(np.asarray(batch)[0, 0]) + 1
        events.append(f"start {number}")
        return State(state.step, state.weight), {"loss": Watched(lambda: events.append(f"read {number}"))}

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(loop, "shard_batch", lambda batch, mesh: batch)

    def evaluate(step, state):
        events.append(f"evaluate {step}")
        return {"knn_top1": 0.5}

    hooks = {"evaluate": evaluate, "epochs": 2}
    with jax.transfer_guard("allow"):
        _, rows, _ = run(step=step, saver=Due(), timer=Times(), every=3, length=RunLength(5, 2, 2), **hooks)
    expected = (
        "start 1, read 1, times, due 1, start 2, read 2, due 2, start 3, read 3, times, due 3, start 4, read 4, "
        "evaluate 4, times, due 4, start 5, read 5, times"
    )
    assert [row["step"] for row in rows if "knn_top1" in row] == [4]
    assert ", ".join(events) == expected


def test_unnamed_transfers_are_errors():
    def step(state, batch):
        jax.device_put(np.ones(3))
        return state, {"loss": state.weight}

    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        run(step=step)


@pytest.mark.parametrize("asked_after, steps", [(8, 8), (0, 0)])
def test_a_request_to_stop_ends_the_run_and_saves_it(asked_after, steps):
    outcome, _, saver = run(should_stop=lambda step: step >= asked_after)
    assert (outcome.step, outcome.finished) == (steps, False)
    assert list(saver.saved) == saver.waited == ([steps] if steps else [])


def test_a_reason_of_a_hook_ends_the_run_and_saves_it():
    outcome, rows, saver = run(on_row=lambda row: "collapsed" if row["step"] == 10 else "")
    # The row of step 10 is read while step 11 runs.
    assert (outcome.step, outcome.finished, outcome.reason) == (11, False, "collapsed")
    assert list(saver.saved) == [11] and rows[-1]["step"] == 10


def test_evaluations_come_at_the_ends_of_epochs_in_the_rows_of_their_steps():
    seen = []

    def evaluate(step, state):
        seen.append((step, float(state.weight)))
        return {"knn_top1": 0.5}

    _, rows, _ = run(evaluate=evaluate, epochs=2)
    weights = expected_weights(20)
    assert seen == [(8, weights[8]), (16, weights[16])]
    assert [(row["step"], row["epoch"], row["loss"]) for row in rows if row.get("knn_top1") == 0.5] == [
        (step, step / 4, weights[step - 1]) for step in (8, 16)
    ]
    assert [row["step"] for row in rows] == sorted([*LOGGED, 8, 16])


def test_an_evaluation_that_fails_ends_the_run_with_its_row_and_its_state_saved():
    rows, saver = Rows(), Memory()

    def evaluate(step, state):
        raise ValueError("no such image")

    with pytest.raises(ValueError, match="no such image"):
        run(evaluate=evaluate, epochs=2, rows=rows, saver=saver)
    assert [row["step"] for row in rows] == [1, 5, 8] and list(saver.saved) == saver.waited == [8]


class FullFile(Rows):
    """A writer whose file takes rows again after a number of attempts."""

    def __init__(self, refusals):
        self.refusals = refusals

    def flush(self):
        self.refusals -= 1
        return self.refusals < 0


def test_no_checkpoint_is_newer_than_the_rows_on_the_disk(monkeypatch):
    monkeypatch.setattr(loop, "_SECONDS_TO_RETRY", 0.0)
    assert list(run(rows=FullFile(1), saver=Memory(every=8))[2].saved) == [9, 16, 20]
    saver = Memory()
    with pytest.raises(OSError, match="metrics.jsonl cannot be written"):
        run(rows=FullFile(99), saver=saver)
    assert not saver.saved


def test_the_hook_of_a_profiler_sees_each_step_and_the_state_before_it():
    seen = []

    def trace(number, state):
        with jax.transfer_guard("allow"):
            seen.append((number, int(state.step)))
        return contextlib.nullcontext()

    run(trace=trace)
    assert seen == [(number, number - 1) for number in range(1, 21)]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("every", [1, 5])
def test_a_loss_that_is_not_finite_ends_the_run_and_is_never_saved(loss, every):
    rows, saver = Rows(), Memory(every=1)
    with pytest.raises(FloatingPointError, match=rf"^step 7: the loss is {loss} \(loss_dense {loss}\)$"):
        run(step=make_step(loss_at={7: loss}), rows=rows, saver=saver, every=every)
    assert list(saver.saved) == [1, 2, 3, 4, 5, 6] and all(row["step"] < 7 for row in rows)


def test_a_bad_state_behind_a_good_loss_is_not_saved():
    saver = Memory(every=8)
    with pytest.raises(FloatingPointError, match="step 16: the state has values that are not finite"):
        run(step=make_step(weight_at={16: math.nan}), saver=saver)
    assert list(saver.saved) == [8]


def test_a_stream_that_fails_ends_the_run_with_its_state_saved():
    def fail():
        raise RuntimeError("a worker was killed")

    saver = Memory()
    with pytest.raises(RuntimeError, match="a worker was killed"):
        run(at={8: fail}, saver=saver)
    assert list(saver.saved) == saver.waited == [8]


def refuse():
    raise loop.Interrupted


@pytest.mark.parametrize("step, saved", [(0, []), (1, [1]), (8, [8])])
def test_a_wait_for_images_that_is_interrupted_ends_the_run_with_its_state_saved(step, saved):
    outcome, rows, saver = run(at={step: refuse}, every=1)
    assert (outcome.step, outcome.finished, outcome.is_waiting) == (step, False, True)
    assert list(saver.saved) == saver.waited == saved and [row["step"] for row in rows] == list(range(1, step + 1))


def test_an_evaluation_that_is_interrupted_ends_the_run_with_its_state_saved():
    asked = []

    def evaluate(step, state):
        asked.append(step)
        refuse()

    outcome, rows, saver = run(evaluate=evaluate, epochs=2, should_stop=lambda step: bool(asked))
    assert (outcome.step, outcome.finished, outcome.is_waiting) == (8, False, False)
    assert [row["step"] for row in rows] == [1, 5] and list(saver.saved) == saver.waited == [8]


def test_waits_and_evaluations_are_interruptible_and_steps_are_not():
    entered, inside = [], []

    @contextlib.contextmanager
    def interruptible(step):
        entered.append(step)
        yield
        entered.append("out")

    def trace(number, state):
        inside.append(entered[-1])
        return contextlib.nullcontext()

    run(interruptible=interruptible, trace=trace, length=RunLength(3, 4, 2), evaluate=lambda step, state: {})
    assert entered.count(0) == 1 and set(entered) == {0, 1, 2, 3, "out"} and set(inside) == {"out"}


def test_a_full_disk_does_not_end_a_run_and_the_save_is_tried_again(monkeypatch, caplog):
    monkeypatch.setattr(loop, "_SECONDS_TO_RETRY", 0.0)
    with caplog.at_level(logging.WARNING):
        outcome, _, saver = run(saver=Memory(every=8, refused=dict.fromkeys((8, 9, 10), FULL)))
    assert outcome.finished and list(saver.saved) == [11, 16, 20]
    assert [text.partition(":")[0] for text in caplog.messages] == [f"step {step} is not saved" for step in (8, 9, 10)]


def test_a_save_that_is_refused_waits_for_its_turn():
    _, _, saver = run(saver=Memory(every=8, refused={8: FULL}))
    assert list(saver.saved) == [20]


@pytest.mark.parametrize("step, error", [(20, FULL), (8, OSError(errno.ESTALE, "stale")), (20, OSError(errno.EIO, ""))])
def test_other_errors_of_the_disk_and_those_of_the_last_save_end_the_run(step, error):
    with pytest.raises(OSError) as caught:
        run(saver=Memory(every=8, refused={step: error}))
    assert caught.value is error

"""The training loop: steps, logged numbers, evaluations, saves and the end of a run, in that order."""

import dataclasses
import errno
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from croc_jax.training.sharding import shard_batch

# Between two attempts to save on a full disk.
_SECONDS_TO_RETRY = 60.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Interrupted(BaseException):
    """A request to stop has ended a wait for images, or an evaluation.

    It is no Exception, which a decoder could take for a damaged image.
    """


class HasStep(Protocol):
    """A pytree of arrays that counts its updates."""

    @property
    def step(self) -> Array:
        """Updates so far, a scalar."""
        ...


State = TypeVar("State", bound=HasStep)
Metrics = Mapping[str, Array]
Row = Mapping[str, float]


class Checkpointer(Protocol):
    """Where states are saved."""

    def should_save(self, step: int) -> bool:
        """Returns whether the state after `step` is to be saved; all processes get the same answer."""
        ...

    def save(self, step: int, state: HasStep, *, wait: bool = False) -> None:
        """Copies a state and writes it, in the background unless `wait`; raises OSError if the disk refuses it."""
        ...


class MetricsWriter(Protocol):
    """Where rows of numbers go."""

    def write(self, row: Row) -> None:
        """Takes a row that holds `step`."""
        ...

    def flush(self) -> bool:
        """Returns whether all rows are on the disk."""
        ...


class Timer(Protocol):
    """Measures what a step takes."""

    def waiting_for(self, what: str) -> AbstractContextManager[None]:
        """Counts the time of a block as spent waiting for "data" or for the "device"."""
        ...

    def tick(self) -> None:
        """Marks the end of a step."""
        ...

    def restart(self) -> None:
        """Starts the clock of a step anew: what has passed since the last one belongs to none."""
        ...

    def take(self) -> Row:
        """Returns numbers of the steps since the last call; all processes call it after the same steps."""
        ...


@dataclasses.dataclass(frozen=True)
class RunLength:
    """How long a run is.

    Attributes:
        total_steps: updates of the whole run.
        steps_per_epoch: updates an epoch.
        batch_size: images an update, over all processes.
    """

    total_steps: int
    steps_per_epoch: int
    batch_size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hooks(Generic[State]):
    """What a run calls between its steps; nothing by default.

    Attributes:
        trace: (number of the next step, state before it) -> context in which the step is dispatched.
        on_step: (steps done), once their numbers are known.
        on_row: (a logged row) -> a reason to end the run, or "".
        should_stop: (steps done) -> whether to save and end; all processes get the same answer.
        interruptible: (steps done) -> context in which a request to stop may raise `Interrupted`.
        agree: (flag of this process) -> flag of process 0, for decisions that depend on a clock.
        is_evaluation_due: (steps done, at the end of an epoch) -> whether to evaluate; all get the same answer.
        evaluate: (steps done, state) -> numbers by name, which are added to the row of that step.
    """

    trace: Callable[[int, State], AbstractContextManager[None]] = lambda number, state: nullcontext()
    on_step: Callable[[int], None] = lambda step: None
    on_row: Callable[[Row], str] = lambda row: ""
    should_stop: Callable[[int], bool] = lambda step: False
    interruptible: Callable[[int], AbstractContextManager[None]] = lambda step: nullcontext()
    agree: Callable[[bool], bool] = lambda flag: flag
    is_evaluation_due: Callable[[int], bool] = lambda step: False
    evaluate: Callable[[int, State], Row] = lambda step, state: {}


class Outcome(NamedTuple, Generic[State]):
    """The end of a run.

    Attributes:
        state: state after the last step.
        step: steps done in all.
        finished: whether these are all steps of the run.
        reason: what `Hooks.on_row` returned, if that ended the run.
        is_waiting: whether a wait for images was given up, so that a thread of the stream may wait forever.
    """

    state: State
    step: int
    finished: bool
    reason: str = ""
    is_waiting: bool = False


def run_training(
    train_step: Callable[[State, object], tuple[State, Metrics]],
    state: State,
    stream: Iterator[object],
    *,
    mesh: Mesh,
    length: RunLength,
    checkpointer: Checkpointer,
    writer: MetricsWriter,
    timer: Timer,
    hooks: Hooks[State] | None = None,
    log_every_steps: int = 10,
) -> Outcome[State]:
    """Trains from a state to the end of the run, or until a hook stops it, and saves the last state.

    The device never waits for the host (but for exchanges between processes): each step is dispatched before the
    numbers of the previous one are read, and the next batch is loaded while it runs. Transfers other than those
    named here are errors.

    Args:
        train_step: compiled (state, batch) -> (state, metrics); may donate the state.
        state: state to start from; used up.
        stream: host batches from step `state.step` on, trees of arrays with the rows of this process.
        mesh: mesh of all devices.
        length: length of the whole run.
        checkpointer: saves states.
        writer: writes rows.
        timer: measures steps.
        hooks: what else to call.
        log_every_steps: steps between two rows; the first and the last step have one, too.

    Raises:
        FloatingPointError: if a loss or a state is not finite; that state is not saved.
        OSError: if the last state cannot be saved, or an earlier one for another reason than a full disk.
        Exception: what the stream or an evaluation raises; a process that is alone saves the last state first.
    """
    hooks = hooks or Hooks()
    start = step = int(jax.device_get(state.step))
    total = length.total_steps
    report = _Reporter(writer, timer, hooks, length=length, every=log_every_steps)
    saver = _Saver(checkpointer, report, agree=hooks.agree)
    # What processes exchange between steps (times, whether to save) are programs with collectives, which can deadlock
    # beside those of a step on CPU. Several processes exchange it at logged steps and ends of epochs only, and wait
    # for the step before.
    is_alone = jax.process_count() == 1

    is_waiting = False

    def load() -> object:
        nonlocal is_waiting
        try:
            with timer.waiting_for("data"), hooks.interruptible(step):
                batch = next(stream)
        except Interrupted:
            is_waiting = True
            return None
        with _transfer("a batch to the devices"):
            return shard_batch(batch, mesh)

    with jax.transfer_guard("disallow_explicit"):
        batch = load() if step < total else None
        timer.restart()
        while step < total and not is_waiting and not report.reason and not hooks.should_stop(step):
            with hooks.trace(step + 1, state):
                state, metrics = train_step(state, batch)
            step += 1
            if step < total:
                try:
                    batch = load()
                except Exception:
                    if is_alone:
                        report.push(step, metrics)
                        saver.save(step, state, wait=True)
                    raise
            report.push(step, metrics)
            ends_epoch = step % length.steps_per_epoch == 0
            may_exchange = is_alone or report.is_logged(step) or ends_epoch
            if may_exchange and not is_alone:
                with timer.waiting_for("device"):
                    jax.block_until_ready(metrics)
            with _transfer("a flag between processes"):
                evaluates = ends_epoch and hooks.is_evaluation_due(step)
            if evaluates:
                try:
                    report.drain(functools.partial(hooks.evaluate, step, state))
                except Exception:
                    if is_alone:
                        saver.save(step, state, wait=True)
                    raise
                timer.restart()
            elif may_exchange and not is_alone:
                report.drain()
            if step < total and may_exchange and saver.is_due(step):
                saver.save(step, state, wait=False)
        if step > start:
            saver.save(step, state, wait=True)
    finished = step >= total
    return Outcome(state, step, finished, "" if finished else report.reason, is_waiting)


def _transfer(what: str) -> AbstractContextManager[None]:
    """Allows transfers in a block; `what` names them for the reader."""
    del what
    return jax.transfer_guard("allow")


class _Reporter:
    """Reads the numbers of a step while the next one runs, checks them, and logs some of them."""

    def __init__(self, writer: MetricsWriter, timer: Timer, hooks: Hooks, *, length: RunLength, every: int) -> None:
        self.writer, self._timer, self._hooks, self._length, self._every = writer, timer, hooks, length, every
        self._pending: tuple[int, Metrics] | None = None
        self.reason = ""

    def push(self, step: int, metrics: Metrics) -> None:
        """Reports the previous step, and keeps this one."""
        with _transfer("metrics to the host, while the next step runs"):
            for value in metrics.values():
                value.copy_to_host_async()
        self.drain()
        self._pending = (step, metrics)

    def is_logged(self, step: int) -> bool:
        """Says whether the numbers of a step are a row."""
        return step % self._every == 0 or step in (1, self._length.total_steps)

    def drain(self, evaluate: Callable[[], Row] = dict) -> None:
        """Waits for the kept step and reports it, with the numbers of its evaluation, if there are any."""
        if self._pending is None:
            return
        (step, arrays), self._pending = self._pending, None
        with self._timer.waiting_for("device"), _transfer("metrics to the host"):
            metrics = {name: float(value) for name, value in arrays.items()}
        self._timer.tick()
        if not math.isfinite(metrics["loss"]):
            parts = ", ".join(f"{name} {value}" for name, value in metrics.items() if name.startswith("loss_"))
            raise FloatingPointError(f"step {step}: the loss is {metrics['loss']} ({parts})")
        self._hooks.on_step(step)
        scores: Row = {}
        failure: Exception | None = None
        try:
            # Several processes must all end it, and a long one is no wait for images.
            is_alone = jax.process_count() == 1
            with _transfer("what an evaluation reads"), self._hooks.interruptible(step) if is_alone else nullcontext():
                scores = evaluate()
        except Interrupted:
            pass  # The run ends after this step.
        except Exception as error:  # raised below, so that the row is not lost
            failure = error
        if scores or failure or self.is_logged(step):
            with _transfer("times between processes"):
                times = self._timer.take()
            row = {"step": step, "epoch": step / self._length.steps_per_epoch, **metrics, **times, **scores}
            self.writer.write(row)
            self.reason = self.reason or self._hooks.on_row(row)
        if failure is not None:
            raise failure


class _Saver:
    """Saves states whose losses and arrays are finite, after the rows that lead to them."""

    def __init__(self, checkpointer: Checkpointer, report: _Reporter, *, agree: Callable[[bool], bool]) -> None:
        self._checkpointer, self._report, self._agree = checkpointer, report, agree
        self._retry_at: float | None = None

    def is_due(self, step: int) -> bool:
        with _transfer("a flag between processes"):
            if self._retry_at is None:
                return self._checkpointer.should_save(step)
            return self._agree(time.monotonic() >= self._retry_at)

    def save(self, step: int, state: HasStep, *, wait: bool) -> None:
        """Raises OSError if the disk refuses the state, unless it is full and there will be a later state."""
        self._report.drain()
        with _transfer("a state to the host"):
            if not _is_finite(state):
                raise FloatingPointError(f"step {step}: the state has values that are not finite")
            try:
                # A checkpoint without the rows that lead to it would lose them for good.
                if not self._agree(self._report.writer.flush()):
                    raise OSError(errno.ENOSPC, "metrics.jsonl cannot be written")
                self._checkpointer.save(step, state, wait=wait)
            except OSError as error:
                if wait or error.errno not in _DISK_FULL:
                    raise
                logging.warning(
                    "step %d is not saved: %s; training continues, and a later state is saved as soon as there is room",
                    step,
                    error,
                )
                self._retry_at = time.monotonic() + _SECONDS_TO_RETRY
            else:
                self._retry_at = None


@jax.jit
def _is_finite(state: HasStep) -> Bool[Array, ""]:
    leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))

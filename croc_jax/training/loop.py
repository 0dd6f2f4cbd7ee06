"""The loop of a run: which phases, in which order, and what happens between two steps."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
from absl import logging
from jax.sharding import Mesh

from croc_jax.data.bad_records import ReadersLostError, UnreadableImagesError
from croc_jax.runtime.agreement import Ballot
from croc_jax.runtime.collapse import CollapseError, Finding, Watchdog, explain_stop
from croc_jax.runtime.health import check_losses, check_state
from croc_jax.runtime.metrics_writer import Log
from croc_jax.runtime.processes import gather_texts
from croc_jax.runtime.profile import Profiler
from croc_jax.runtime.progress import RunProgress
from croc_jax.runtime.step_times import StepTimes
from croc_jax.runtime.stopping import StopRequest
from croc_jax.training.config import RuntimeConfig
from croc_jax.training.sharding import shard_batch

# Between two tries to save, where the disk refuses.
_SECONDS_TO_RETRY = 60.0

State = Any
Metrics = Mapping[str, jax.Array]


class Stream(Protocol):
    """Host batches in order."""

    @property
    def skipped(self) -> Mapping[str, int]:
        """How often each unreadable image was replaced by another one, by name."""
        ...

    def __next__(self) -> Any:
        """Returns the next batch: a tree of arrays with this process's rows first."""
        ...

    def close(self) -> None:
        """Stops reading ahead."""
        ...


class Dataset(Protocol):
    """Where batches come from."""

    def iterate(self, start_step: int, *, num_workers: int, num_threads: int) -> Stream:
        """Returns the batches from a step on."""
        ...


class SaveError(RuntimeError):
    """A state, or the log that leads to it, cannot be saved, and no process has; earlier ones are as they were."""


class Saver(Protocol):
    """Where states go."""

    def save(self, step: int, state: State, *, wait: bool = False) -> None:
        """Takes a copy of a state at once, and writes it, by default later; may raise SaveError."""
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
class Outputs:
    """Where the results of a run go, and who looks at them; without a watchdog or a profiler, nobody does."""

    saver: Saver
    log: Log
    display: RunProgress
    watchdog: Watchdog | None = None
    profiler: Profiler | None = None

    def profile(self, step: int, state: State) -> contextlib.AbstractContextManager[None]:
        """Marks the dispatch of a step from a state for the profiler, if there is one."""
        return self.profiler.step(step, state) if self.profiler else contextlib.nullcontext()


class Outcome(NamedTuple):
    """The end of a run.

    Attributes:
        state: after the last step.
        step: steps done in all.
        finished: False if a signal ended it early.
        stopped_by: the name of that signal, which may have reached another process.
    """

    state: State
    step: int
    finished: bool
    stopped_by: str | None = None


def run_training(
    train_step: Callable[[State, Any], tuple[State, Metrics]],
    state: State,
    dataset: Dataset,
    *,
    outputs: Outputs,
    length: RunLength,
    runtime: RuntimeConfig,
    mesh: Mesh,
    stop: StopRequest,
) -> Outcome:
    """Trains from a state to the end of the run, or to a signal; saves the last state in any case.

    The device never waits for the host: a step is started before the one ahead of it is read, and
    the next batch travels while it runs. Several processes save and stop after the same step.

    Args:
        train_step: compiled (state, batch) -> (state, metrics); may donate the state.
        state: with `step`, the number of steps done; used up.
        dataset: of host batches.
        outputs: where checkpoints and numbers go.
        length: of the whole run.
        runtime: how often to log and save.
        mesh: of all devices.
        stop: the signals of this process; asked after each step.

    Raises:
        NonFiniteError: for a loss or a state that is not finite; nothing of it is saved.
        CollapseError: for a collapse, if the watchdog stops runs; the last state is saved.
        SaveError: if the last state cannot be saved; where an earlier one cannot, the run goes on.
        ReadersLostError: if a process that reads was killed; a process that is alone saves the last state.
        UnreadableImagesError: for too many unreadable images; alike.
    """
    step, total = int(state.step), length.total_steps
    if step >= total:
        return Outcome(state, step, finished=True)
    stream = dataset.iterate(step, num_workers=runtime.num_workers, num_threads=runtime.num_threads)
    with contextlib.closing(stream):
        # 1. The first batch.
        ballot = Ballot(mesh, stop)
        feed = _Feed(stream, mesh, stop)
        batch = feed.next()
        verdict = ballot.settle()
        if verdict.stopped_by:
            return Outcome(state, step, finished=False, stopped_by=verdict.stopped_by)
        # 2. Steps.
        reporter = _Reporter(outputs, length, runtime, feed=feed, ballot=ballot, start=step)
        schedule = _SaveSchedule(runtime, length)
        while step < total and not verdict.stopped_by and not reporter.collapse:
            with outputs.profile(step + 1, state):
                state, metrics = train_step(state, batch)
            step += 1
            if step < total:
                try:
                    batch = feed.next()
                except (ReadersLostError, UnreadableImagesError):
                    if ballot.alone:
                        reporter.push(step, metrics)
                        _save(step, state, reporter=reporter, outputs=outputs, wait=True)
                    raise
            reporter.push(step, metrics)
            verdict = ballot.cast(save=schedule.is_late(), skipped=feed.skipped)
            if schedule.is_due(step, late=verdict.save) and not _save(
                step, state, reporter=reporter, outputs=outputs, wait=False
            ):
                schedule.retry()
        # 3. The end: nothing is left to be written when this returns.
        _save(step, state, reporter=reporter, outputs=outputs, wait=True)
    finished = step == total
    if reporter.collapse and not finished:
        raise CollapseError(explain_stop(step, reporter.collapse))
    return Outcome(state, step, finished=finished, stopped_by=None if finished else verdict.stopped_by)


def _save(step: int, state: State, *, reporter: "_Reporter", outputs: Outputs, wait: bool) -> bool:
    """Saves a state whose losses and tensors are finite, after the log that leads to it; must do so if it waits.

    Returns:
        Whether it could be saved, as far as is known.
    """
    reporter.drain()
    check_state(step, state)
    try:
        _sync(step, outputs.log)
        outputs.saver.save(step, state, wait=wait)
    except SaveError as error:
        if wait:
            raise
        if jax.process_index() == 0:
            logging.warning("%s; training goes on, and a later state is saved as soon as it can be", error)
        return False
    return True


def _sync(step: int, log: Log) -> None:
    """Agrees on whether the log is on the disk; one process writes it."""
    reason = ""
    try:
        log.sync()
    except OSError as error:
        reason = f"step {step} is not saved, as metrics.jsonl cannot be written: {error.strerror}"
    found = next(filter(None, gather_texts(reason)), None)
    if found:
        raise SaveError(found)


class _Feed:
    """Puts host batches on the devices, and measures how long it waited for them."""

    def __init__(self, stream: Stream, mesh: Mesh, stop: StopRequest) -> None:
        self._stream, self._mesh, self._stop = stream, mesh, stop
        self.seconds_waited = 0.0

    def next(self) -> Any:
        """Returns the next batch; None if this process is alone, and its readers died of the signal that stops it."""
        begin = time.perf_counter()
        try:
            batch = next(self._stream)
        except Exception:
            if self._stop.received and jax.process_count() == 1:
                return None
            raise
        self.seconds_waited += time.perf_counter() - begin
        return shard_batch(batch, self._mesh)

    @property
    def skipped(self) -> int:
        return sum(self._stream.skipped.values())


class _Reporter:
    """Reads a step's numbers when the next one is under way, checks them, and logs some of them."""

    def __init__(
        self, outputs: Outputs, length: RunLength, runtime: RuntimeConfig, *, feed: _Feed, ballot: Ballot, start: int
    ) -> None:
        self._outputs, self._length, self._feed, self._ballot = outputs, length, feed, ballot
        self._every = runtime.log_every_steps
        self._pending: tuple[int, Metrics] | None = None
        self._lap = (start, time.perf_counter(), feed.seconds_waited)
        self._times = StepTimes()
        self.collapse: list[Finding] = []

    def push(self, step: int, metrics: Metrics) -> None:
        """Reports the step before, and keeps this one."""
        for value in metrics.values():
            value.copy_to_host_async()
        self.drain()
        self._pending = (step, metrics)

    def drain(self) -> None:
        """Waits for the kept step and reports it."""
        if self._pending is None:
            return
        step, arrays = self._pending
        self._pending = None
        with self._times.waiting():
            metrics = {name: float(value) for name, value in arrays.items()}
        self._times.tick()
        check_losses(step, metrics)
        self._outputs.display.advance(step)
        if step % self._every == 0 or step in (1, self._length.total_steps):
            row = {"step": step, "epoch": step / self._length.steps_per_epoch, **metrics, **self._speed(step)}
            row |= {name: round(value, 6) for name, value in self._times.take().items()}
            self._outputs.log.write(row)
            self._outputs.display.show(row)
            self._watch(row)

    def _watch(self, row: Mapping[str, float]) -> None:
        """Tells what the watchdog finds: the same in all processes, as it looks at nothing that differs."""
        watchdog = self._outputs.watchdog
        findings = watchdog.look(row) if watchdog else []
        for finding in findings:
            self._outputs.display.say(f"warning: step {row['step']}: {finding.text}")
        if watchdog and watchdog.stops:
            self.collapse += findings

    def _speed(self, step: int) -> dict[str, float]:
        """Returns means since the last logged step."""
        lap = (step, time.perf_counter(), self._feed.seconds_waited)
        steps, seconds, waited = (now - before for now, before in zip(lap, self._lap, strict=True))
        self._lap = lap
        return {
            "images_per_sec": round(steps * self._length.batch_size / seconds, 2),
            "data_wait_fraction": round(waited / seconds, 4),
            "skipped": self._ballot.last.skipped,
        }


class _SaveSchedule:
    """Says when to save: at epochs that are kept for good, and before too much work could be lost."""

    def __init__(self, runtime: RuntimeConfig, length: RunLength) -> None:
        self._every = runtime.keep_every_epochs * length.steps_per_epoch
        self._total = length.total_steps
        self._seconds = 60 * runtime.checkpoint_every_minutes
        self._next = time.monotonic() + self._seconds
        self._asked = False

    def is_late(self) -> bool:
        """Says, once a save, that so much time has passed that more should not be lost."""
        late = not self._asked and time.monotonic() >= self._next
        self._asked |= late
        return late

    def is_due(self, step: int, *, late: bool) -> bool:
        if step == self._total:
            return False  # the end of the loop saves
        due = step % self._every == 0 or late
        if due:
            self._next, self._asked = time.monotonic() + self._seconds, False
        return due

    def retry(self) -> None:
        """Asks for another save soon."""
        self._next = min(self._next, time.monotonic() + _SECONDS_TO_RETRY)

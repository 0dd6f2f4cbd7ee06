"""Times of steps, and traces of some of them for JAX's profiler."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

_GIB = 2**30


class StepTimer:
    """Times between the ends of steps, since the last report."""

    def __init__(
        self,
        *,
        batch_size: int,
        count_skipped: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Starts the clock of the first step.

        Args:
            batch_size: images of a step, over all processes.
            count_skipped: returns the number of unreadable images that this process has replaced so far.
            clock: returns seconds.
        """
        self._batch_size, self._count_skipped, self._clock = batch_size, count_skipped, clock
        self._last, self._seconds = clock(), list[float]()
        self._waited = {"data": 0.0, "device": 0.0}
        self._waited_before = self._waited.copy()

    @contextlib.contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Counts the time of the block as spent waiting for "data" or for the "device"."""
        begin = self._clock()
        yield
        self._waited[what] += self._clock() - begin

    def tick(self) -> None:
        """Marks the end of a step."""
        now = self._clock()
        self._seconds.append(now - self._last)
        self._last, self._waited_before = now, self._waited.copy()

    def restart(self) -> None:
        """Starts the clock of the next step now: what came before, such as an evaluation, belongs to no step."""
        self._last, self._waited = self._clock(), self._waited_before.copy()

    def take(self) -> dict[str, float]:
        """Returns the numbers of the steps since the last call, one or more, and resets them.

        All processes must call this after the same steps: it gathers from them. Processes step together, so all
        have the same step time; the one that the others wait for is the one that waits least for its devices.

        Returns:
            Numbers as docs/watching.md describes them.
        """
        seconds, waited = np.array(self._seconds), self._waited
        self._seconds, self._waited = [], dict.fromkeys(waited, 0.0)
        self._waited_before = self._waited.copy()
        total = float(seconds.sum())
        own = np.array([max(0.0, total - waited["device"]) / len(seconds), self._count_skipped()], np.float32)
        host_seconds, all_skipped = np.reshape(multihost_utils.process_allgather(own), (-1, 2)).T
        numbers = {
            "images_per_sec": round(len(seconds) * self._batch_size / total, 2),
            "data_wait_fraction": round(waited["data"] / total, 4),
            "skipped": int(all_skipped.sum()),
            "step_seconds": float(np.median(seconds)),
            "step_seconds_p95": float(np.percentile(seconds, 95)),
            "step_seconds_max": float(np.max(seconds)),
            "host_seconds": float(host_seconds.max()),
        }
        if len(host_seconds) > 1:
            numbers["straggler"] = int(host_seconds.argmax())
            numbers["straggler_excess"] = float(host_seconds.max() - np.median(host_seconds))
        return {name: round(value, 6) for name, value in (numbers | _device_memory()).items()}


def _device_memory() -> dict[str, float]:
    """Returns GiB in use and their peak on the fullest local device; nothing if the backend does not report it."""
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    fields = {"memory_gib": "bytes_in_use", "memory_peak_gib": "peak_bytes_in_use"}
    return {name: max(one.get(field, 0) for one in stats) / _GIB for name, field in fields.items() if stats}


def parse_steps(text: str, *, total_steps: int) -> range:
    """Reads START:STOP, a range of step numbers from 1 on.

    Examples:
        >>> parse_steps("100:105", total_steps=1000)
        range(100, 105)

    Raises:
        ValueError: for another form, an empty range, or one that goes beyond the run.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match:
        raise ValueError(f"--profile_steps={text}: expected START:STOP, such as 100:105")
    steps = range(int(match[1]), int(match[2]))
    if not 1 <= steps.start < steps.stop <= total_steps + 1:
        raise ValueError(f"--profile_steps={text}: expected 1 <= START < STOP <= {total_steps + 1}")
    return steps


class Profiler:
    """Traces the steps of a range."""

    def __init__(self, folder: Path, steps: range, *, log: Callable[[str], None]) -> None:
        """Traces nothing yet.

        Args:
            folder: where the trace goes.
            steps: numbers of the steps to trace, from 1; may be empty.
            log: prints a line.
        """
        self._folder, self._steps, self._log, self._is_tracing = folder, steps, log, False

    @contextlib.contextmanager
    def step(self, number: int, state: object) -> Iterator[None]:
        """Marks the dispatch of a step; starts and stops the trace around the range.

        Args:
            number: number of the step, from 1.
            state: state before it, which is waited for where the trace starts or ends.
        """
        if number in self._steps and not self._is_tracing:
            jax.block_until_ready(state)
            with self._warning():
                jax.profiler.start_trace(self._folder)
                self._is_tracing = True
        elif self._is_tracing and number not in self._steps:
            jax.block_until_ready(state)
            self.close()
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def close(self) -> None:
        """Ends a trace under way."""
        if self._is_tracing:
            self._is_tracing = False
            with self._warning():
                jax.profiler.stop_trace()
                self._log(
                    f"the trace of steps {self._steps.start} to {self._steps.stop - 1} is in {self._folder}; to see "
                    f"it: pip install xprof, then xprof --logdir={self._folder}"
                )

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            self._steps = range(0)
            reason = (str(error) or type(error).__name__).splitlines()[0][:300]
            self._log(f"warning: no trace is written to {self._folder}: {reason}; training continues")

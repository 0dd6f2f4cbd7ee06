"""A trace of a few steps for the profiler of JAX."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax


class StepRange(NamedTuple):
    """Steps from `start` up to, not including, `stop`; the first step of a run is 1."""

    start: int
    stop: int


def parse_steps(text: str, *, total_steps: int) -> StepRange:
    """Reads START:STOP.

    Args:
        text: such as "100:105".
        total_steps: of the run.

    Raises:
        ValueError: for another form, an empty range, or one that the run does not reach.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match:
        raise ValueError(f"--profile_steps={text}: expected START:STOP, such as 100:105")
    steps = StepRange(int(match[1]), int(match[2]))
    if not 1 <= steps.start < steps.stop:
        raise ValueError(f"--profile_steps={text}: START must be 1 or more, and STOP more than START")
    if steps.stop > total_steps + 1:
        raise ValueError(f"--profile_steps={text}: STOP is {total_steps + 1} at most in a run of {total_steps} steps")
    return steps


class Profiler:
    """Traces the steps of a range; it must be entered first, and leaving it ends a trace under way."""

    def __init__(self, folder: Path, steps: StepRange | None, *, say: Callable[[str], None]) -> None:
        """Traces nothing yet.

        Args:
            folder: where the trace goes.
            steps: to trace; None for none.
            say: prints a line.
        """
        self._folder, self._steps, self._say = folder, steps, say
        self._running = False

    def __enter__(self) -> Self:
        """Does nothing."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends a trace under way."""
        self._end()

    @contextlib.contextmanager
    def step(self, number: int, state: Any) -> Iterator[None]:
        """Marks the dispatch of a step.

        Args:
            number: of the step.
            state: before it; waited for only where a trace begins or ends, so that it holds whole steps.
        """
        if self._steps and not self._running and number > self._steps.start:
            self._say(f"step {self._steps.start}, where the trace would begin, is past: nothing is traced")
            self._steps = None
        steps = self._steps
        if steps is None:
            yield
            return
        if self._running and number >= steps.stop:
            jax.block_until_ready(state)
            self._end()
            yield
            return
        if not self._running and number == steps.start:
            jax.block_until_ready(state)
            self._begin()
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def _begin(self) -> None:
        try:
            jax.profiler.start_trace(self._folder)
        except (OSError, RuntimeError) as error:
            self._steps = None
            self._say(f"warning: no trace can be made: {error}; training goes on")
            return
        self._running = True

    def _end(self) -> None:
        if not self._running or self._steps is None:
            return
        steps, self._steps, self._running = self._steps, None, False
        name = f"the trace of steps {steps.start} to {steps.stop - 1}"
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:300]
            self._say(f"warning: {name} cannot be written to {self._folder}: {reason}; training goes on")
            return
        self._say(
            f"{name} is in {self._folder}; to see it: "
            f"pip install xprof, then xprof --logdir={self._folder}; or open its trace.json.gz in ui.perfetto.dev"
        )

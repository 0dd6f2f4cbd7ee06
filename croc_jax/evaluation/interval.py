"""When a run is evaluated or recorded next, and what that costs."""

import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np

from croc_jax.training.run_config import EvaluationConfig

# In rows of metrics.jsonl, what an evaluation took; its scores follow.
SECONDS = "evaluation_seconds"
# The first evaluation is mostly compilation: of about this share of what a training step takes, or a little.
_COMPILE_SHARE, _LEAST_SECONDS = 0.25, 1.0
# Pictures are recorded at so many moments, start and end among them, and take at most this share of the time.
_NUM_MOMENTS, _PICTURES_SHARE = 13, 0.02


class Budget:
    """The time that something has taken since the start of a run, and whether once more stays below a share of it."""

    def __init__(
        self, max_share: float, *, expected_seconds: float = _LEAST_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Starts the clock.

        Args:
            max_share: the largest share of the time.
            expected_seconds: what the first time may take.
            clock: returns seconds.
        """
        self._max_share, self._clock, self._begin = max_share, clock, clock()
        self.seconds, self._spent = expected_seconds, 0.0

    def allows(self) -> bool:
        """Returns whether there is time for once more."""
        return self._spent + self.seconds <= self._max_share * (self._clock() - self._begin)

    def share(self) -> float:
        """Returns the share of the time so far."""
        return self._spent / max(self._clock() - self._begin, 1e-9)

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        """Counts the time of a block."""
        begin = self._clock()
        yield
        self.seconds = self._clock() - begin
        self._spent += self.seconds


class Interval:
    """The time between evaluations: a number of epochs, or as long as keeps their share of a run's time small."""

    def __init__(
        self,
        config: EvaluationConfig,
        *,
        steps_per_epoch: int,
        total_steps: int,
        compile_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the clock.

        Args:
            config: interval, and largest share.
            steps_per_epoch: updates an epoch.
            total_steps: updates of the whole run; its last state is scored in any case by protocols, and if a score
                chooses the best checkpoint.
            compile_seconds: what the compilation of the training step took.
            clock: returns seconds.
        """
        self._config, self._steps_per_epoch, self._total_steps = config, steps_per_epoch, total_steps
        expected = max(_LEAST_SECONDS, _COMPILE_SHARE * compile_seconds)
        self._budget = Budget(config.max_share, expected_seconds=expected, clock=clock)
        self.measure = self._budget.measure

    @property
    def seconds(self) -> float:
        """What the last evaluation took, or the first one may take."""
        return self._budget.seconds

    def is_due(self, step: int) -> bool:
        """Returns whether the state after a step, the last one of an epoch, is evaluated."""
        if step == self._total_steps and (self._config.protocols or self._config.best):
            return True
        if self._config.every_epochs:
            return step % (self._config.every_epochs * self._steps_per_epoch) == 0
        return self._budget.allows()

    def describe(self) -> str:
        """Returns what the last evaluation and all of them since the start cost, in words."""
        share = self._budget.share()
        text = f"took {self.seconds:.1f} s; evaluations are {share:.1%} of the time since the start"
        if not self._config.every_epochs:
            return f"{text}, and come as often as at most {self._config.max_share:.0%} allows"
        more = "" if share <= self._config.max_share else "; --config.evaluation.every_epochs=0 keeps them below"
        return f"{text}{f'{more} {self._config.max_share:.0%}' if more else ''}"


class PictureMoments:
    """When the pictures of a run are recorded: at its start, at its end, and at epochs between them."""

    def __init__(
        self,
        config: EvaluationConfig,
        *,
        epochs: int,
        steps_per_epoch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the clock.

        Args:
            config: how many pictures, and the interval; chosen so, those between start and end come only while all take
                less than a small share of the time, and `evaluation.max_share` at most.
            epochs: epochs of the whole run.
            steps_per_epoch: updates an epoch.
            clock: returns seconds.
        """
        every = config.pictures_every_epochs
        between = range(0, epochs, every) if every else np.linspace(0, epochs, _NUM_MOMENTS).round()
        self._ends = {0, epochs * steps_per_epoch} if config.pictures else set()
        self._steps = {int(epoch) * steps_per_epoch for epoch in between} if config.pictures else set()
        self._is_fixed, self.budget = bool(every), Budget(min(_PICTURES_SHARE, config.max_share), clock=clock)

    def is_due(self, step: int) -> bool:
        """Returns whether the state after a step, the last one of an epoch or 0, is recorded."""
        return step in self._ends or (step in self._steps and (self._is_fixed or self.budget.allows()))

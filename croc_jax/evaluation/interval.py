"""When a run is evaluated next, and what its evaluations cost."""

import contextlib
import time
from collections.abc import Callable, Iterator

from croc_jax.training.config import EvaluationConfig

# In rows of metrics.jsonl, what an evaluation took; its scores follow.
SECONDS = "evaluation_seconds"
# The first evaluation is mostly compilation: of about this share of what a training step takes, or a little.
_COMPILE_SHARE, _LEAST_SECONDS = 0.25, 1.0


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
        self._clock, self._begin = clock, clock()
        self.seconds, self._spent = max(_LEAST_SECONDS, _COMPILE_SHARE * compile_seconds), 0.0

    def is_due(self, step: int) -> bool:
        """Returns whether the state after a step, the last one of an epoch, is evaluated."""
        if step == self._total_steps and (self._config.protocols or self._config.best):
            return True
        if self._config.every_epochs:
            return step % (self._config.every_epochs * self._steps_per_epoch) == 0
        return self._spent + self.seconds <= self._config.max_share * (self._clock() - self._begin)

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        """Counts the time of a block as that of an evaluation."""
        begin = self._clock()
        yield
        self.seconds = self._clock() - begin
        self._spent += self.seconds

    def describe(self) -> str:
        """Returns what the last evaluation and all of them since the start cost, in words."""
        share = self._spent / max(self._clock() - self._begin, 1e-9)
        text = f"took {self.seconds:.1f} s; evaluations are {share:.1%} of the time since the start"
        if not self._config.every_epochs:
            return f"{text}, and come as often as at most {self._config.max_share:.0%} allows"
        more = "" if share <= self._config.max_share else "; --config.evaluation.every_epochs=0 keeps them below"
        return f"{text}{f'{more} {self._config.max_share:.0%}' if more else ''}"

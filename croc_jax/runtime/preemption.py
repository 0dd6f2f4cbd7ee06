"""Ends a run in order when a signal asks for it: the step is finished, and the state saved."""

import os
import signal
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h: schedulers can be set to start the same command again.
EXIT_STATUS = 75


class StopSignals:
    """Turns SIGTERM, SIGUSR1 and SIGINT within its block into a request to stop after the current step.

    A process that is alone keeps the request itself. With several, JAX's preemption service receives SIGTERM, the
    other signals are passed on as SIGTERM, and all processes stop after the same step. After the first signal,
    SIGINT has its usual effect, so that a second Ctrl-C ends the process at once; schedulers repeat the
    others, which changes nothing.

    Attributes:
        received: name of the first signal of this process, or None.
    """

    def __init__(self) -> None:
        """Starts with no signal."""
        self.received: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        """Installs the handlers; must be called in the main thread, after the distributed runtime has started."""
        handled = [signal.SIGUSR1, signal.SIGINT]
        if not jax.distributed.is_initialized():
            handled.append(signal.SIGTERM)
        self._previous = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *error: object) -> None:
        """Restores the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def should_stop(self, step: int) -> bool:
        """Returns whether to stop; several processes must ask after each step, and get the same answer.

        Args:
            step: number of steps done.
        """
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self.received is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is None:
            self.received = signal.Signals(number).name
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if jax.distributed.is_initialized():
                os.kill(os.getpid(), signal.SIGTERM)

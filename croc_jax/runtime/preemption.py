"""Ends a run in order when a signal asks for it: the step is finished, and the state saved."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils

from croc_jax.runtime.distributed import end_at_once
from croc_jax.training.loop import Interrupted

# EX_TEMPFAIL of sysexits.h: schedulers can be set to start the same command again.
EXIT_STATUS = 75
# Of a program that Ctrl-C has ended: nobody should start it again.
EXIT_STATUS_OF_SIGINT = 130
# One of several processes that is asked to stop waits for images no longer than this.
_SECONDS_TO_WAIT, _SECONDS_BETWEEN_LOOKS = 30.0, 1.0
# Other processes may be ahead of one that waits by a step or two, and the step to stop after comes next.
_STEPS_AHEAD = 8


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
        self._raises = False
        self._wait: tuple[int, float] | None = None
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        """Installs the handlers; must be called in the main thread, after the distributed runtime has started."""
        handled = [signal.SIGUSR1, signal.SIGINT]
        if jax.distributed.is_initialized():
            threading.Thread(target=self._watch, daemon=True).start()
        else:
            handled.append(signal.SIGTERM)
        self._previous = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *error: object) -> None:
        """Restores the previous handlers."""
        self._ended.set()
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

    def arrived_before(self, start: int) -> bool:
        """Returns whether to stop before the first step; several processes must ask, and get the same answer.

        JAX's service names one step at which all processes stop, the next one of the process that is farthest. A
        signal that arrives before any of them has asked names step 1, which a resumed run has done long ago.

        Args:
            start: number of steps that the restored state has done.
        """
        return any(self.should_stop(step) for step in range(start + 1))

    @contextlib.contextmanager
    def interruptible(self, step: int) -> Iterator[None]:
        """Raises `Interrupted` in its block when a request to stop comes, or has come, in a process that is alone.

        Several processes stop after the same step, which needs what the block waits for. One that is asked to stop,
        and is in the block for half a minute, ends there with status 75, without a save: the state is that of the
        last checkpoint, and the other processes end because this one is gone.

        Args:
            step: number of steps done.
        """
        if jax.distributed.is_initialized():
            self._wait = step, time.monotonic()
        self._raises = True
        try:
            if self.received is not None and self._wait is None:
                raise Interrupted
            yield
        finally:
            self._raises, self._wait = False, None

    def _watch(self) -> None:
        """Ends one of several processes if it is asked to stop, and waits."""
        while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
            if (wait := self._wait) is None or time.monotonic() - wait[1] < _SECONDS_TO_WAIT:
                continue
            # In this order: the last number is what the service takes for the step of this process.
            if any([self.should_stop(wait[0] + ahead) for ahead in reversed(range(_STEPS_AHEAD))]):
                end_at_once(
                    EXIT_STATUS,
                    f"error: a signal asks to stop, and the images of step {wait[0] + 1} have not come for "
                    f"{_SECONDS_TO_WAIT:.0f} s: see to it that the disk answers; the same command goes on from the "
                    "last checkpoint",
                )

    @property
    def exit_status(self) -> int:
        """The exit status of a run that a signal has stopped: 75, or 130 after Ctrl-C in this process."""
        return EXIT_STATUS_OF_SIGINT if self.received == "SIGINT" else EXIT_STATUS

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is None:
            self.received = signal.Signals(number).name
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if jax.distributed.is_initialized():
                os.kill(os.getpid(), signal.SIGTERM)
            elif self._raises:
                raise Interrupted

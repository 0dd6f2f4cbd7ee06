"""A polite end: a signal is remembered until the step is done."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

_UNCAUGHT = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGUSR1: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}
_SIGNALS = tuple(_UNCAUGHT)
# Of sysexits.h: "temporary failure, try again", which job schedulers can be told to requeue.
EX_TEMPFAIL = 75


class StopRequest:
    """Catches SIGTERM, SIGUSR1 (a scheduler's notice) and SIGINT within its block.

    The first one counts. A SIGINT after it acts as if uncaught; schedulers repeat the others, so
    those change nothing.

    Attributes:
        received: name of the first signal, or None.
    """

    def __init__(self) -> None:
        """Starts with no signal."""
        self.received: str | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Starts to listen; only a main thread can."""
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, self._notice) for number in _SIGNALS}
            # From now on there may be a state, so that `end_at_once` has no place any more.
            self._handlers = {n: _UNCAUGHT[n] if handler is _end else handler for n, handler in before.items()}
        return self

    def __exit__(self, *error: object) -> None:
        """Puts the handlers back that were there before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name
            signal.signal(signal.SIGINT, self._handlers.pop(signal.SIGINT))


def end_at_once() -> None:
    """Lets each of these signals end the process at once with its `exit_status`, while there is no state to save.

    Call it in the main thread. `StopRequest` takes over for good.
    """
    for number in _SIGNALS:
        signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    # Below what print needs: this may be in the midst of anything, such as an import.
    os.write(2, f"stopped by {name} before the start; there was nothing to save yet\n".encode())
    os._exit(exit_status(name))


def exit_status(signal_name: str) -> int:
    """Returns the status of a run that a signal has ended: 75 if it is to be started again, 130 after Ctrl-C."""
    return 128 + int(signal.SIGINT) if signal_name == "SIGINT" else EX_TEMPFAIL

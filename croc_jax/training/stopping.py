"""A polite end: a signal is remembered until the step is done."""

import signal
import threading
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Catches the first SIGTERM or SIGINT within its block; a second one acts as if uncaught.

    Attributes:
        received: name of the signal, or None.
    """

    def __init__(self) -> None:
        """Starts with no signal."""
        self.received: str | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Starts to listen; only a main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._notice) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        """Puts the handlers back that were there before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self.__exit__()

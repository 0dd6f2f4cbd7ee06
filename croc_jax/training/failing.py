"""When one of several processes fails, all end soon, and say what the first one died of."""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import jax

from croc_jax.training.lifelines import Lifeline, Listener
from croc_jax.training.processes import connection

_FIRST = "croc_jax/failed/first"
_HEARD = "croc_jax/failed/heard"
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_BE_HEARD = 10.0


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Ends all processes of a run with status 1, within seconds, when its block raises in one of them.

    Each prints the reason of the first. A process that is killed cannot give one: process 0 notices,
    and tells the others; if it is the one, JAX ends them. A host that falls silent is noticed after a
    minute. Does nothing for a process that is alone; SystemExit with a number is no failure.
    """
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch(Listener() if jax.process_index() == 0 else Lifeline())
    watch.start()
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and not isinstance(error.code, str):
            raise
        if isinstance(error, jax.errors.JaxRuntimeError):
            # Most likely another process went first, and it or the watch is about to say so.
            time.sleep(3 * _SECONDS_BETWEEN_LOOKS)
        watch.stop()
        if not isinstance(error, SystemExit | ValueError | FileNotFoundError | jax.errors.JaxRuntimeError):
            traceback.print_exception(error)
        name = f"process {jax.process_index()} of {jax.process_count()} ({socket.gethostname()})"
        _fail(f"{name} failed: {_describe(error)}", listeners=jax.process_count() - 1)
    finally:
        watch.stop()


class _Watch(threading.Thread):
    """Looks for a failure of another process while the main thread may be waiting for it for good."""

    def __init__(self, line: Listener | Lifeline) -> None:
        super().__init__(name="watch", daemon=True)
        self._line, self._done = line, threading.Event()

    def run(self) -> None:
        while not self._done.is_set():
            lost = self._line.wait(_SECONDS_BETWEEN_LOOKS)
            reason = _first_reason()
            if self._done.is_set():
                return
            if reason is not None:
                _end(reason)
            if lost is not None:
                count = jax.process_count()
                _fail(f"process {lost} of {count} was killed", listeners=count - 2)

    def stop(self) -> None:
        if not self._done.is_set():
            self._done.set()
            self.join()
            self._line.close()


def _first_reason() -> str | None:
    """Returns what the first process that failed has left, if any."""
    try:
        return connection().key_value_try_get(_FIRST)
    except jax.errors.JaxRuntimeError:
        # There is none, or process 0 is gone, and JAX ends this one.
        return None


def _fail(reason: str, *, listeners: int) -> None:
    """Tells the others, and ends this process; returns no more."""
    try:
        connection().key_value_set(_FIRST, reason)
    except jax.errors.JaxRuntimeError:
        _end(_first_reason() or reason)
    print(f"error: {reason}", file=sys.stderr)
    if jax.process_index() == 0:
        _wait_until_heard(listeners)
    _leave()


def _describe(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return str(error.code).removeprefix("error: ")
    if isinstance(error, jax.errors.JaxRuntimeError):
        return f"another process was killed, or its host is out of reach ({str(error).splitlines()[0][:300]})"
    return str(error) if isinstance(error, ValueError | FileNotFoundError) else f"{type(error).__name__}: {error}"


def _end(reason: str) -> None:
    """Ends this process because another one has failed; returns no more."""
    print(f"error: {reason}", file=sys.stderr)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        connection().key_value_set(f"{_HEARD}/{jax.process_index()}", "")
    _leave()


def _wait_until_heard(listeners: int) -> None:
    """Keeps the texts, which lie in process 0, until so many others have read them."""
    deadline = time.monotonic() + _SECONDS_TO_BE_HEARD
    heard = 0
    while heard < listeners and time.monotonic() < deadline:
        time.sleep(0.1)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            heard = len(connection().key_value_dir_get(_HEARD))


def _leave() -> None:
    """Ends at once: a polite end would wait for processes that are no more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)

"""When one of several processes fails, all end soon, and say what the first one died of."""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax

from croc_jax.training.processes import connection

_FIRST = "croc_jax/failed/first"
_HEARD = "croc_jax/failed/heard"
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_BE_HEARD = 10.0


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Ends all processes of a run with status 1, within seconds, when its block raises in one of them.

    Each prints the reason of the first. A process that is killed cannot give one: the others end
    when an exchange with it fails, or else after a minute without its heartbeat. Does nothing for
    a process that is alone; SystemExit with a number is no failure.
    """
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch()
    watch.start()
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and not isinstance(error.code, str):
            raise
        watch.stop()
        _fail(error)
    finally:
        watch.stop()


class _Watch(threading.Thread):
    """Looks for a failure of another process while the main thread may be waiting for it for good."""

    def __init__(self) -> None:
        super().__init__(name="watch", daemon=True)
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(_SECONDS_BETWEEN_LOOKS):
            reason = _first_reason()
            if reason is not None and not self._done.is_set():
                _end(reason)

    def stop(self) -> None:
        self._done.set()
        self.join()


def _first_reason() -> str | None:
    """Returns what the first process that failed has left, if any."""
    try:
        return connection().key_value_try_get(_FIRST)
    except jax.errors.JaxRuntimeError:
        # There is none, or process 0 is gone, and JAX ends this one.
        return None


def _fail(error: BaseException) -> None:
    """Tells the others, and ends this process; returns no more."""
    reason = (
        f"process {jax.process_index()} of {jax.process_count()} ({socket.gethostname()}) failed: {_describe(error)}"
    )
    if isinstance(error, jax.errors.JaxRuntimeError):
        # Most likely another one went first; it may be about to say why.
        time.sleep(2 * _SECONDS_BETWEEN_LOOKS)
    try:
        connection().key_value_set(_FIRST, reason)
    except jax.errors.JaxRuntimeError:
        _end(_first_reason() or reason)
    if not isinstance(error, SystemExit | ValueError | FileNotFoundError | jax.errors.JaxRuntimeError):
        traceback.print_exception(error)
    print(f"error: {reason}", file=sys.stderr)
    if jax.process_index() == 0:
        _wait_until_heard()
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


def _wait_until_heard() -> None:
    """Keeps the texts, which lie in process 0, until the others have read them."""
    deadline = time.monotonic() + _SECONDS_TO_BE_HEARD
    while time.monotonic() < deadline:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            heard: Any = connection().key_value_dir_get(_HEARD)
            if len(heard) >= jax.process_count() - 1:
                return
        time.sleep(0.1)


def _leave() -> None:
    """Ends at once: a polite end would wait for processes that are no more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)

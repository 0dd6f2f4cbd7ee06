"""When one of several processes fails, all end soon, and say what the first one died of."""

import contextlib
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import NamedTuple

import jax

from croc_jax.runtime.lifelines import Lifeline, Listener, Lost
from croc_jax.runtime.processes import connection, gather_texts
from croc_jax.runtime.stopping import EX_TEMPFAIL

_FIRST = "croc_jax/failed/first"
_HEARD = "croc_jax/failed/heard"
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_BE_HEARD = 10.0
_ENDING = threading.RLock()
# What an exchange says when the other side is gone; a lack of memory names the exchange's library, too.
_LOST = re.compile(r"^(?!.*RESOURCE_EXHAUSTED).*(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|[Gg]loo|GLOO|NCCL)", re.DOTALL)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Ends all processes of a run within seconds when its block raises in one of them; else all leave it together.

    Each prints the reason of the first, and exits with 1. A process that is killed cannot give one: process 0
    notices, and tells the others; if it is the one, they notice themselves. If a whole host falls silent,
    the others exit with 75 within a minute, as a new start may do. Does nothing for a process that is alone;
    SystemExit with a number is no failure.
    """
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch(Listener() if jax.process_index() == 0 else Lifeline())
    watch.start()
    try:
        yield
        # One that left earlier would not hear of a later failure of another.
        gather_texts("done")
    except BaseException as error:
        if isinstance(error, SystemExit) and not isinstance(error.code, str):
            raise
        if means_lost(error):
            # Most likely another process went first, and it or the watch is about to say so.
            time.sleep(3 * _SECONDS_BETWEEN_LOOKS)
        watch.stop()
        if not isinstance(error, SystemExit | ValueError | FileNotFoundError) and not means_lost(error):
            traceback.print_exception(error)
        name = f"process {jax.process_index()} of {jax.process_count()} ({socket.gethostname()})"
        _fail(_Failure(1, f"{name} failed: {_describe(error)}"), listeners=jax.process_count() - 1)
    finally:
        watch.stop()


class _Failure(NamedTuple):
    """Why a run ends.

    Attributes:
        status: with which all processes exit.
        reason: that they print.
    """

    status: int
    reason: str


class _Watch:
    """Looks for a failure of another process while the main thread may be waiting for it for good."""

    def __init__(self, line: Listener | Lifeline) -> None:
        self._line, self._done = line, threading.Event()
        # Two, as a question to process 0 hangs while its host is silent, which the other one notices.
        self._ear = threading.Thread(target=self._listen, name="listen", daemon=True)
        self._eye = threading.Thread(target=self._look, name="look", daemon=True)

    def start(self) -> None:
        self._ear.start()
        self._eye.start()

    def _listen(self) -> None:
        while not self._done.is_set():
            lost = self._line.wait(_SECONDS_BETWEEN_LOOKS)
            if lost is None or self._done.is_set():
                continue
            if lost.index == 0:
                # All that it kept is gone with it, and JAX is about to abort this process.
                failure = _mourn(lost)
                _say(failure)
                _leave(failure.status)
            # One that has heard of a failure ends without a word, too.
            failure = _first_failure()
            if failure is not None:
                _end(failure)
            _fail(_mourn(lost), listeners=jax.process_count() - 2)

    def _look(self) -> None:
        while not self._done.wait(_SECONDS_BETWEEN_LOOKS):
            failure = _first_failure()
            if failure is not None and not self._done.is_set():
                _end(failure)

    def stop(self) -> None:
        if not self._done.is_set():
            self._done.set()
            self._ear.join()
            self._eye.join(_SECONDS_BETWEEN_LOOKS)
            self._line.close()


def _mourn(lost: Lost) -> _Failure:
    name = f"process {lost.index} of {jax.process_count()}"
    if lost.silent:
        return _Failure(EX_TEMPFAIL, f"the host of {name} does not answer any more")
    return _Failure(1, f"{name} was killed")


def _first_failure() -> _Failure | None:
    """Returns what the first process that failed has left, if any."""
    try:
        status, _, reason = connection().key_value_try_get(_FIRST).partition(" ")
    except jax.errors.JaxRuntimeError:
        # There is none, or process 0 is gone.
        return None
    return _Failure(int(status), reason)


def _fail(failure: _Failure, *, listeners: int) -> None:
    """Tells the others, and ends this process; returns no more."""
    try:
        connection().key_value_set(_FIRST, f"{failure.status} {failure.reason}")
    except jax.errors.JaxRuntimeError:
        _end(_first_failure() or failure)
    _say(failure)
    if jax.process_index() == 0:
        _wait_until_heard(listeners)
    _leave(failure.status)


def _describe(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return str(error.code).removeprefix("error: ")
    if means_lost(error):
        return f"another process was killed, or its host is out of reach ({str(error).splitlines()[0][:300]})"
    return str(error) if isinstance(error, ValueError | FileNotFoundError) else f"{type(error).__name__}: {error}"


def means_lost(error: BaseException) -> bool:
    """Returns whether an error of the runtime tells of another process; it has many that tell of this one."""
    return isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)) is not None


def _end(failure: _Failure) -> None:
    """Ends this process because another one has failed; returns no more."""
    _say(failure)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        connection().key_value_set(f"{_HEARD}/{jax.process_index()}", "")
    if jax.process_index() == 0:
        # All but the first and this one, which has just been counted.
        _wait_until_heard(jax.process_count() - 1)
    _leave(failure.status)


def _wait_until_heard(listeners: int) -> None:
    """Keeps the texts, which lie in process 0, until so many others have read them."""
    deadline = time.monotonic() + _SECONDS_TO_BE_HEARD
    heard = 0
    while heard < listeners and time.monotonic() < deadline:
        time.sleep(0.1)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            heard = len(connection().key_value_dir_get(_HEARD))


def _say(failure: _Failure) -> None:
    # The first thread here is about to end the process; any other waits for that.
    _ENDING.acquire()
    print(f"error: {failure.reason}", file=sys.stderr, flush=True)


def _leave(status: int) -> None:
    """Ends at once: a polite end would wait for processes that are no more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

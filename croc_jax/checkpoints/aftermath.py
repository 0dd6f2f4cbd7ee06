"""What a failed save leaves behind in Orbax: pages of words, and threads that wait for an hour."""

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from absl import logging as absl_logging

_SECONDS_TO_JOIN = 5.0
_ORBAX = str(Path(ocp.__file__).parent)


@functools.cache
def mute_orbax() -> None:
    """Keeps from the log, for good, what Orbax's writers say of a failure: whoever saves tells the reason in a line."""
    absl_logging.get_absl_logger().addFilter(lambda record: not record.pathname.startswith(_ORBAX))
    # Its tasks, for which nobody waits any more, when they are collected; none of ours is of this kind.
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())
    warnings.filterwarnings("ignore", message="coroutine '.*' was never awaited", category=RuntimeWarning)
    sys.unraisablehook = functools.partial(report_unraisable, sys.unraisablehook)


def report_unraisable(report: Callable[[Any], None], unraisable: Any) -> None:
    """Leaves out what Orbax's writers, when one has met a full disk, say one by one: that no one waits for them."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        report(unraisable)


@contextlib.contextmanager
def leaving_writers_behind() -> Iterator[None]:
    """Ends the process, where its block ends the program, even if writers of a failed save still wait.

    Python itself would wait for them, and they wait for the part of the save that has failed.
    """
    try:
        yield
    except BaseException as end:
        deadline = time.monotonic() + _SECONDS_TO_JOIN
        writers = [thread for thread in threading.enumerate() if _is_writer(thread)]
        for thread in writers:
            # Its own join would raise what it has met.
            threading.Thread.join(thread, max(0.0, deadline - time.monotonic()))
        if not any(thread.is_alive() for thread in writers):
            raise
        status = _tell(end)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _tell(end: BaseException) -> int:
    """Says what Python would say of the end of a program, and returns the status that it would give it."""
    if not isinstance(end, SystemExit):
        traceback.print_exception(end)
        return 128 + signal.SIGINT if isinstance(end, KeyboardInterrupt) else 1
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
    return end.code if isinstance(end.code, int) else int(end.code is not None)


def _is_writer(thread: threading.Thread) -> bool:
    return type(thread).__module__.startswith("orbax.") and not thread.daemon

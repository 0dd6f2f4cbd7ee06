"""One training at a time in a workdir: a lock that the kernel releases when its process ends, however it ends."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from absl import logging

from croc_jax.runtime.stopping import StopRequest
from croc_jax.runtime.workdir import WorkdirError

LOCK_NAME = "lock"
# A process that was told to end takes a while to save; a file system takes longer to notice that a host has.
_SECONDS_TO_END, _SECONDS_TO_LOSE_HOST = 30.0, 120.0
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)


# Closed when this process ends.
_held: dict[Path, IO[str]] = {}


def lock_workdir(workdir: Path, *, stop: StopRequest | None = None) -> bool:
    """Takes a workdir, which is made if need be, until this process ends; WORKDIR/lock says who has it.

    Waits a while for another process, which may be about to end.

    Args:
        workdir: of the run.
        stop: signals that end the wait.

    Returns:
        False if a signal has ended the wait.

    Raises:
        WorkdirError: if another process has it, or it cannot be written.
    """
    path = workdir.absolute() / LOCK_NAME
    if path in _held:
        return True
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise WorkdirError(f"cannot write to the workdir {workdir}: {error.strerror}") from error
    try:
        if not _take(file, workdir, stop):
            file.close()
            return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            file.close()
            raise WorkdirError(f"cannot lock {path}: {error.strerror}") from error
        logging.warning("%s has no locks (%s): start no second training there", workdir, error.strerror)
    except WorkdirError:
        file.close()
        raise
    # The lock holds without it.
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    _held[path] = file
    return True


def _take(file: IO[str], workdir: Path, stop: StopRequest | None) -> bool:
    begin, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if stop is not None and stop.received is not None:
                return False
            file.seek(0)
            holder = file.read().strip() or "another process"
            elsewhere = not holder.endswith(f" on {socket.gethostname()}")
            if time.monotonic() - begin > (_SECONDS_TO_LOSE_HOST if elsewhere else _SECONDS_TO_END):
                gone = f", or, if that host is gone, remove {workdir / LOCK_NAME}" if elsewhere else ""
                raise WorkdirError(
                    f"{workdir} is in use by {holder}: wait for it, or choose another --workdir{gone}"
                ) from None
            if not told:
                told = True
                logging.warning("%s is in use by %s; waiting a while for it to end", workdir, holder)
            time.sleep(0.2)

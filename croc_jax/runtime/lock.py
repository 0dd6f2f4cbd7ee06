"""The lock of a workdir, which one running program holds at a time."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from absl import logging

from croc_jax import machine_errors
from croc_jax.paths import file_in_the_way

LOCK_NAME = "lock"
# A preempted run needs time to save while its successor starts; a file system may notice a lost host late.
_SECONDS_TO_WAIT, _SECONDS_TO_LOSE_HOST = 30.0, 120.0
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)

# Open until this process ends, which releases the lock however it ends.
_held: dict[Path, IO[str]] = {}


class WorkdirError(ValueError):
    """A folder cannot be used for a run; the message says why and what to do."""


def lock_workdir(workdir: Path) -> None:
    """Locks a workdir, which is created if need be, until this process ends; waits a while for another program.

    Raises:
        WorkdirError: if another program keeps the lock, or the folder cannot be written.
    """
    path, begin, is_waiting = workdir.absolute() / LOCK_NAME, time.monotonic(), False
    if path in _held:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise explain(workdir, error) from error
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                # Its holder has left nothing: neither this file.
                file.close()
                return lock_workdir(workdir)
            break
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            is_elsewhere = not holder.endswith(f" on {socket.gethostname()}")
            if time.monotonic() - begin > (_SECONDS_TO_LOSE_HOST if is_elsewhere else _SECONDS_TO_WAIT):
                file.close()
                lost = f", or, if that host is lost, remove {path}" if is_elsewhere else ""
                raise WorkdirError(
                    f"{workdir} is in use by {holder}: wait for it, or choose another --workdir{lost}"
                ) from None
            if not is_waiting:
                is_waiting = True
                logging.warning("%s is in use by %s; waiting for it to end", workdir, holder)
            time.sleep(0.2)
        except OSError as error:
            if error.errno in machine_errors.TRANSIENT:
                raise
            if error.errno not in _NO_LOCKS:
                raise WorkdirError(f"cannot lock {path}: {error.strerror}") from error
            logging.warning("%s: no file locks (%s); do not start a second program there", workdir, error.strerror)
            break
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    _held[path] = file


def is_locked(workdir: Path) -> bool:
    """Returns whether this process holds the lock."""
    return workdir.absolute() / LOCK_NAME in _held


def unlock_workdir(workdir: Path) -> None:
    """Releases the lock of this process; its file stays."""
    _held.pop(workdir.absolute() / LOCK_NAME).close()


def explain(workdir: Path, error: OSError) -> Exception:
    """Returns what to raise for an error of the disk: itself, if another start may find the disk well."""
    if error.errno in machine_errors.TRANSIENT:
        return error
    file = file_in_the_way(workdir)
    reason = f"{file} is a file, not a folder" if file else error.strerror
    return WorkdirError(f"--workdir={workdir} cannot be used: {reason}")

"""Which errors of the operating system are faults of the machine, and say nothing about the file that met them."""

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

# At another start, the file system or the process may be able again.
TRANSIENT = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ECONNRESET,
     errno.ECONNABORTED, errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH}
)  # fmt: skip
# Somebody has to raise a limit or free space.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.ENOBUFS})
_REMEDIES = {
    errno.EMFILE: "raise the number of files that a process may open (ulimit -n)",
    errno.ENFILE: "too many files are open on this host: end other programs, or raise fs.file-max",
    errno.ENOMEM: "free memory, or read with fewer processes",
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space on that disk, or raise the quota",
}
# Before each further try of a read; a server that restarts may take longer, and then the program ends.
_SECONDS_TO_WAIT = (0.1, 0.5, 2.0)

Result = TypeVar("Result")


def is_machine_error(error: BaseException) -> bool:
    """Returns whether a disk, the network or a limit of the process caused an error, so that any file would meet it."""
    return isinstance(error, OSError) and error.errno in TRANSIENT | EXHAUSTED


def find_fault(error: BaseException | None, where: str) -> OSError | None:
    """Returns the fault of the machine behind an error, with the name of what was read; None if there is none."""
    while error is not None:
        if isinstance(error, MemoryError):
            return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), where)
        if isinstance(error, OSError) and is_machine_error(error):
            return OSError(error.errno, error.strerror, error.filename or where)
        error = error.__cause__
    return None


def explain(error: OSError) -> str:
    """Returns a line on a fault of the machine, and what to do before the same command runs again."""
    remedy = _REMEDIES.get(error.errno or 0, "see to it that the disk answers")
    return f"{error}: {remedy}, and run the same command again"


def read_patiently(read: Callable[[], Result]) -> Result:
    """Returns what `read` returns; calls it a few times, for some seconds, while it meets a transient fault.

    Raises:
        OSError: of the last call.
    """
    for seconds in _SECONDS_TO_WAIT:
        try:
            return read()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
        time.sleep(seconds)
    return read()


def from_library(error: Exception, where: str) -> OSError:
    """Returns the OSError that a library has put in words, as "open() failed: Too many open files; opening a.jpg"."""
    text = str(error)
    number = next((one for one in sorted(TRANSIENT | EXHAUSTED) if os.strerror(one) in text), None)
    return OSError(f"{where}: {text}") if number is None else OSError(number, os.strerror(number), where)

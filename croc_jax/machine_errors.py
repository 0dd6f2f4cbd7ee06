"""Which errors of the operating system are faults of the machine, and say nothing about the file that met them."""

import errno

# At another start, the file system or the process may be able again.
TRANSIENT = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ECONNRESET,
     errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH}
)  # fmt: skip
# Somebody has to raise a limit or free space.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM})


def is_machine_error(error: BaseException) -> bool:
    """Returns whether a disk, the network or a limit of the process caused an error, so that any file would meet it."""
    return isinstance(error, OSError) and error.errno in TRANSIENT | EXHAUSTED

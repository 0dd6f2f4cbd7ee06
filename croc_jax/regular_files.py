"""Reads regular files alone: a FIFO or a device under the name of an image would block a program for good."""

import errno
import io
import os
import stat


def open_regular(path: str | os.PathLike) -> io.FileIO:
    """Opens a file for reading, without a buffer.

    Raises:
        OSError: if it cannot be opened; without a number for a FIFO, a device, a socket or a folder.
    """
    return open(path, "rb", buffering=0, opener=_open)


def read_regular(path: str | os.PathLike) -> bytes:
    """Returns the contents of a file; errors are those of `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def _open(path: str, flags: int) -> int:
    try:
        # Otherwise, opening a FIFO waits for someone to write.
        descriptor = os.open(path, flags | os.O_NONBLOCK)
    except OSError as error:
        # Sockets, devices without a driver, and files that another program holds by a lease.
        if error.errno not in (errno.ENXIO, errno.ENODEV, errno.EAGAIN):
            raise
        _check_mode(path, os.stat(path).st_mode)
        return os.open(path, flags)
    try:
        _check_mode(path, os.fstat(descriptor).st_mode)
        # Where files move to tape, a read must wait for them.
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_mode(path: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a FIFO, a device or a socket"
        raise OSError(f"{path} is {kind}, not a regular file")

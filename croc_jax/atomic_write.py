"""Files that a crash of the host leaves old or new, never half."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def atomic_write(path: Path, content: bytes) -> None:
    """Writes a file in one move, once its content is on the disk.

    Raises:
        OSError: if it cannot be written; the old file, if any, is left.
    """
    with atomic_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Yields a file to write to, which replaces that of the path in one move when the block ends without an error.

    Raises:
        OSError: if it cannot be written; the old file, if any, is left.
    """
    fresh = path.with_suffix(".tmp")
    with fresh.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    # Not all file systems let a folder be synchronized.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

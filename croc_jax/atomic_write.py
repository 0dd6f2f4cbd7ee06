"""Files that a crash of the host leaves old or new, never half."""

import contextlib
import os
from pathlib import Path


def atomic_write(path: Path, content: bytes) -> None:
    """Writes a file in one move, once its content is on the disk.

    Raises:
        OSError: if it cannot be written; the old file, if any, is left.
    """
    fresh = path.with_suffix(".tmp")
    with fresh.open("wb") as file:
        file.write(content)
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

"""Gives pages of temporary files back to the system, so that they don't pile up in a process that reads them once."""

import mmap

import numpy as np


def release_pages(array: np.ndarray) -> None:
    """Drops what this process has mapped of an array's file; the next look maps it again.

    Args:
        array: a memory-mapped file, or a view of one; nothing happens to others, or where the system
            has no such call.
    """
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)

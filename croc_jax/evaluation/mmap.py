"""Releases pages of memory-mapped temporary files, so that reading them once does not fill the memory."""

import mmap

import numpy as np


def release_pages(array: np.ndarray) -> None:
    """Unmaps the pages that this process holds of an array's file; the next access maps them again.

    Args:
        array: a memory-mapped file, or a view of one. Nothing happens to other arrays, or on systems without
            `madvise`.
    """
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)

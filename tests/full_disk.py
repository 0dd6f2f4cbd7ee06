"""Simulates a full disk."""

import contextlib
import resource


@contextlib.contextmanager
def no_file_beyond(size):
    """Limits the size of files within the block: writing more raises OSError, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

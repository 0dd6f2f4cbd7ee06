"""A disk that takes no more, for the time of a block."""

import contextlib
import resource


@contextlib.contextmanager
def no_file_beyond(size):
    """Lets no file of this process grow beyond so many bytes; writing more is an OSError, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

"""Images in ArrayRecord files, each record an encoded image; launch/prepare.py writes such files."""

import bisect
import functools
import itertools
import os
import re
import resource
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool

from array_record.python.array_record_module import ArrayRecordReader

from croc_jax.data.sources.shards import describe_shard, find_shards
from croc_jax.machine_errors import from_library, is_machine_error

_NAMED = re.compile(r"\.(array_record|arrayrecord)(-\d+-of-\d+)?$")
# What launch/prepare.py calls its shards.
_NUMBERED = re.compile(r"-\d+-of-(\d+)\.array_record$")
# Threads that count records: on a network file system, each file is a few round trips.
_THREADS = 8
# A reader takes 0.3 ms to open and 100 KB of memory.
_MAX_OPEN = 512


class Records:
    """The records of parts of files, one after another; however many files there are, few are open at a time."""

    def __init__(self, parts: Sequence[tuple[str, int, int]]) -> None:
        """Opens nothing.

        Args:
            parts: a file, the number of its first record, and how many to take.
        """
        self._starts = [(file, first) for file, first, _ in parts]
        self._ends = list(itertools.accumulate(count for *_, count in parts))

    def __len__(self) -> int:
        """Returns the number of records."""
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        """Returns a record; raises RuntimeError if it is damaged, and OSError if its file cannot be opened."""
        part = bisect.bisect_right(self._ends, index)
        file, first = self._starts[part]
        return _readers()(file).read([first + index - (self._ends[part - 1] if part else 0)])[0]


class ArrayRecordSource:
    """The records of files, one after another, named PATHS:INDEX."""

    def __init__(self, pattern: str | os.PathLike) -> None:
        """Counts the records; reads none.

        Args:
            pattern: a folder of *.array_record files, a file, or a pattern of several (`find_shards`).

        Raises:
            ValueError: for missing, corrupt or empty files.
            OSError: for a fault of the machine.
        """
        self._files = find_shards(pattern, named=_NAMED, kind="ArrayRecord file (*.array_record)", source="arrayrecord")
        counts = [int(found[1]) for file in self._files if (found := _NUMBERED.search(file))]
        if os.path.isdir(os.path.expanduser(pattern)) and counts and len(counts) != max(counts):
            raise ValueError(
                f"{pattern} holds {len(counts)} of {max(counts)} shards: run the launch/prepare.py that writes it to "
                "its end"
            )
        with ThreadPool(_THREADS) as pool:
            counts = pool.map(_count_records, self._files)
        self._records = Records([(file, 0, count) for file, count in zip(self._files, counts, strict=True)])
        if not len(self._records):
            raise ValueError(f"no images in {pattern}: its ArrayRecord files are empty")
        self._pattern = os.fspath(pattern)

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._records)

    def __getitem__(self, index: int) -> bytes:
        """Returns a record; raises OSError if it cannot be read."""
        try:
            return self._records[index]
        except (RuntimeError, ValueError, IndexError) as error:
            raise from_library(error, self.name(index)) from error

    def name(self, index: int) -> str:
        """Returns PATHS:INDEX."""
        return f"{self._pattern}:{index}"

    def entries(self) -> Iterator[tuple[str, int]]:
        """Yields what identifies each file."""
        with ThreadPool(_THREADS) as pool:
            yield from pool.imap(describe_shard, self._files)


@functools.cache
def _readers() -> Callable[[str], ArrayRecordReader]:
    """Returns a function that opens a file, or finds it open.

    All sources of a process share a quarter of the files that it may have open. A reader that is in use elsewhere
    when others displace it stays open so long.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MAX_OPEN if limit == resource.RLIM_INFINITY else min(_MAX_OPEN, limit // 4)
    return functools.lru_cache(max(1, most))(_open_reader)


def _open_reader(file: str) -> ArrayRecordReader:
    """Returns the reader of a file; raises OSError if it cannot be read."""
    # Records are read at random: nothing is read ahead.
    reader = ArrayRecordReader(file, options="readahead_buffer_size:0", file_reader_buffer_size=2**15)
    if not reader.ok():
        try:
            reader.close()
        except RuntimeError as error:
            raise from_library(error, file) from error
    return reader


def _count_records(file: str) -> int:
    try:
        return _open_reader(file).num_records()
    except OSError as error:
        if is_machine_error(error):
            raise
        reason = str(error).splitlines()[0].removeprefix(f"{file}: ")
        raise ValueError(f"cannot read the ArrayRecord file {file} ({reason}): replace it") from error

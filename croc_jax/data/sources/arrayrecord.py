"""Images in ArrayRecord files, each record an encoded image; launch/prepare.py writes such files."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import cast

from croc_jax.data.sources.shards import describe_shard, find_shards

_NAMED = re.compile(r"\.(array_record|arrayrecord)(-\d+-of-\d+)?$")
# What launch/prepare.py calls its shards.
_NUMBERED = re.compile(r"-\d+-of-(\d+)\.array_record$")


class ArrayRecordSource:
    """The records of files, one after another, named PATHS:INDEX."""

    def __init__(self, pattern: str | os.PathLike) -> None:
        """Counts the records; reads none.

        Args:
            pattern: a folder of *.array_record files, a file, or a pattern of several (`find_shards`).

        Raises:
            ValueError: for missing, corrupt or empty files.
        """
        # Only here: grain and jax, which it imports, take seconds that other sources do not need.
        import grain

        files = find_shards(pattern, named=_NAMED, kind="ArrayRecord file (*.array_record)")
        counts = [int(found[1]) for file in files if (found := _NUMBERED.search(file))]
        if os.path.isdir(pattern) and counts and len(counts) != max(counts):
            raise ValueError(
                f"{pattern} holds {len(counts)} of {max(counts)} shards: run the launch/prepare.py that writes it to "
                "its end"
            )
        try:
            self._records = cast(Sequence[bytes], grain.sources.ArrayRecordDataSource(files))
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"cannot read the ArrayRecord files in {pattern} ({str(error).splitlines()[0]}): replace the file"
            ) from error
        if not len(self._records):
            raise ValueError(f"no images in {pattern}: its ArrayRecord files are empty")
        self._pattern, self._files = os.fspath(pattern), files

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._records)

    def __getitem__(self, index: int) -> bytes:
        """Returns a record; raises OSError if it cannot be read."""
        try:
            return self._records[index]
        except (RuntimeError, ValueError, IndexError) as error:
            raise OSError(f"{self.name(index)}: {error}") from error

    def name(self, index: int) -> str:
        """Returns PATHS:INDEX."""
        return f"{self._pattern}:{index}"

    def entries(self) -> Iterator[tuple[str, int]]:
        """Yields what identifies each file."""
        yield from map(describe_shard, self._files)

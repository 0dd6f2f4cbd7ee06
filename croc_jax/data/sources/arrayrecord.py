"""Images in ArrayRecord files, each record an encoded image."""

import itertools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader

from croc_jax.data.sources.base import SourceError, locate
from croc_jax.data.sources.manifest import JOURNAL_NAME, MANIFEST_NAME, ShardRecord, read_manifest
from croc_jax.data.sources.shards import Handles, find_shards

_NAMED = re.compile(r"\.(array_record|arrayrecord)(-\d+-of-\d+)?$")
# Reading ahead only costs where the next image is anywhere.
_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER_SIZE = 2**15
_THREADS = 16


class ArrayRecordSource:
    """The records of files, one after another.

    Names and numbers of images come from the manifest beside the files if there is one
    (launch/prepare.py writes it); else images are called FILE:INDEX.
    """

    def __init__(self, pattern: str | os.PathLike) -> None:
        """Counts the records; reads none.

        Args:
            pattern: a folder of *.array_record files, a file, or a pattern of several (`find_shards`).

        Raises:
            SourceError: for missing, damaged or empty files, or some that do not fit their
                manifest.
        """
        self._files = find_shards(pattern, named=_NAMED, kind="ArrayRecord file (*.array_record)")
        records = _read_records({os.path.dirname(file) for file in self._files})
        if os.path.isdir(pattern) and records:
            # All that the manifest lists, so that a lost shard does not go unnoticed.
            self._files = sorted({*self._files, *records})
        with ThreadPoolExecutor(_THREADS) as pool:
            counts = list(pool.map(lambda file: _count(file, records.get(file)), self._files))
        self._ends = list(itertools.accumulate(counts))
        if not self._ends[-1]:
            raise SourceError(f"no images in {pattern}: its ArrayRecord files are empty")
        self._readers = Handles(_open)
        self._names = {file: record.names for file, record in records.items()}

    def __len__(self) -> int:
        """Returns the number of records."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:
        """Returns a record; raises OSError if it cannot be read."""
        part, position = locate(self._ends, index)
        try:
            return self._readers[self._files[part]].read([position])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            raise OSError(f"{self._files[part]}: {error}") from error

    def name(self, index: int) -> str:
        """Returns the name of the image before it came into the file, or FILE:INDEX."""
        part, position = locate(self._ends, index)
        file = self._files[part]
        if self._names is None:
            records = _read_records({os.path.dirname(file) for file in self._files})
            self._names = {file: record.names for file, record in records.items()}
        return self._names[file][position] if file in self._names else f"{file}:{position}"

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the names out: a copy reads them again if it ever needs one."""
        return self.__dict__ | {"_names": None}


def _read_records(folders: set[str]) -> dict[str, ShardRecord]:
    """Returns what the manifests of folders say about each file."""
    records = {}
    for folder in folders:
        manifest = read_manifest(folder)
        if manifest is not None:
            records |= {os.path.join(folder, shard.name): shard for shard in manifest.shards}
        elif os.path.exists(os.path.join(folder, JOURNAL_NAME)):
            raise SourceError(f"{folder} is not complete: run the launch/prepare.py that writes it to its end")
    return records


def _count(file: str, record: ShardRecord | None) -> int:
    try:
        if record is None:
            return _open(file).num_records()
        size = os.path.getsize(file)
    except OSError as error:
        raise SourceError(f"cannot read {file}: {error.strerror or error}") from error
    if size != record.bytes:
        raise SourceError(
            f"{file} has {size} bytes, but {record.bytes} by its {MANIFEST_NAME}: run launch/prepare.py again"
        )
    return record.count


def _open(file: str) -> ArrayRecordReader:
    try:
        reader = ArrayRecordReader(file, _RANDOM_ACCESS, file_reader_buffer_size=_BUFFER_SIZE)
    except RuntimeError as error:
        raise OSError(f"{file}: {error}") from error
    if not reader.ok():
        raise OSError(f"{file} is no whole ArrayRecord file")
    return reader

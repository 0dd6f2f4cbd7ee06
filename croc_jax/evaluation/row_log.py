"""Arrays that grow row by row on the disk, and a journal of how many of their rows count after a crash."""

import contextlib
import io
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np

# Between two waits for the disk: what a crash of the host may cost. A crash of the program alone costs nothing.
SECONDS_BETWEEN_SYNCS = 5.0


class RowSpec(NamedTuple):
    """Type and shape of one row of an array."""

    dtype: Any
    shape: tuple[int, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of a row."""
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape, dtype=np.int64))


class Skipped(NamedTuple):
    """An item that has no row, and why."""

    name: str
    reason: str


class _Entry(NamedTuple):
    """A line of the journal: what all batches up to this one have come to, and the checksum of this one's rows."""

    num_done: int
    num_rows: int
    skipped: list[list[str]]
    checksum: int
    is_synced: bool


class RowLog:
    """Appends batches of rows to FOLDER/NAME.npy, each as a whole or not at all, whenever the program is killed.

    The files are .npy files of no rows until `seal`; until then a journal states how many rows are there. Of rows that
    the disk may not have held when the host crashed, the journal has checksums.

    Attributes:
        num_done: items done, those without a row included.
        num_rows: rows.
        skipped: the items without a row.
    """

    def __init__(self, folder: Path, journal: Path, specs: Mapping[str, RowSpec]) -> None:
        """Opens the files, or makes them, and drops what follows the last whole batch.

        Args:
            folder: folder of the arrays; exists.
            journal: file of the journal; its folder exists.
            specs: one row of each array, by name.

        Raises:
            OSError: if a file cannot be read or written.
        """
        self.specs, self._folder = dict(specs), folder
        self._files = {name: _open(self.file(name)) for name in specs}
        self._journal = _open(journal)
        self._last_sync = time.monotonic()
        entries, offset = _parse(self._journal.read(), self._is_whole)
        self.num_done, self.num_rows = (entries[-1].num_done, entries[-1].num_rows) if entries else (0, 0)
        self.skipped = [Skipped(*one) for entry in entries for one in entry.skipped]
        _cut(self._journal, offset)
        for name, file in self._files.items():
            file.seek(0)
            file.write(_header(specs[name], 0))
            file.flush()
            _cut(file, len(_header(specs[name], 0)) + self.num_rows * specs[name].num_bytes)

    def file(self, name: str) -> Path:
        """Returns the file of an array."""
        return self._folder / f"{name}.npy"

    def append(self, rows: Mapping[str, np.ndarray], *, num_done: int, skipped: Sequence[Skipped] = ()) -> None:
        """Adds the rows of a batch.

        Args:
            rows: the same number of rows of each array.
            num_done: items done with this batch.
            skipped: the items of this batch without a row.

        Raises:
            OSError: if the disk is full, or fails.
        """
        whole = {name: np.ascontiguousarray(rows[name], spec.dtype) for name, spec in self.specs.items()}
        checksum, count = 0, len(next(iter(whole.values())))
        for name, content in whole.items():
            if content.shape != (count, *self.specs[name].shape):
                raise ValueError(f"{name} {content.shape}: expected {count} rows of {self.specs[name].shape}")
        for name, content in whole.items():
            checksum = zlib.crc32(content.data.cast("B") if content.size else b"", checksum)
            self._files[name].write(content.tobytes())
            self._files[name].flush()
        is_synced = time.monotonic() - self._last_sync >= SECONDS_BETWEEN_SYNCS
        if is_synced:
            self._sync()
        self.num_done, self.num_rows = num_done, self.num_rows + count
        self.skipped += skipped
        entry = _Entry(num_done, self.num_rows, [list(one) for one in skipped], checksum, is_synced)
        self._journal.write(f"{json.dumps(entry)}\n".encode())
        self._journal.flush()

    def seal(self) -> None:
        """States the number of rows in all files, which are whole then, and on the disk."""
        for name, file in self._files.items():
            file.seek(0)
            file.write(_header(self.specs[name], self.num_rows))
        self._sync()

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns all rows so far, memory-mapped."""
        return {
            name: np.memmap(
                self.file(name), spec.dtype, "r", offset=len(_header(spec, 0)), shape=(self.num_rows, *spec.shape)
            )
            if self.num_rows
            else np.empty((0, *spec.shape), spec.dtype)
            for name, spec in self.specs.items()
        }

    def close(self) -> None:
        """Closes the files."""
        for file in (*self._files.values(), self._journal):
            # What an error of the disk has left in a buffer is no row yet.
            with contextlib.suppress(OSError):
                file.close()

    def __enter__(self) -> Self:
        """Returns itself; leaving the block closes it."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the files."""
        self.close()

    def _sync(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self._last_sync = time.monotonic()

    def _is_whole(self, before: int, entry: _Entry, *, is_known: bool) -> bool:
        """Returns whether the rows of a batch, those after `before`, are there; known ones are only measured."""
        checksum = 0
        for name, file in self._files.items():
            size, start = self.specs[name].num_bytes, len(_header(self.specs[name], 0))
            if file.seek(0, os.SEEK_END) < start + entry.num_rows * size:
                return False
            if not is_known:
                file.seek(start + before * size)
                checksum = zlib.crc32(file.read((entry.num_rows - before) * size), checksum)
        return is_known or checksum == entry.checksum


def _parse(content: bytes, is_whole: Callable[..., bool]) -> tuple[list[_Entry], int]:
    """Returns the entries of a journal whose rows are whole, and where the last of them ends."""
    entries, offset = list[_Entry](), 0
    lines = list(_read_lines(content))
    last_synced = max((number for number, (entry, _) in enumerate(lines) if entry.is_synced), default=-1)
    for number, (entry, end) in enumerate(lines):
        before = entries[-1].num_rows if entries else 0
        if not is_whole(before, entry, is_known=number <= last_synced):
            break
        entries.append(entry)
        offset = end
    return entries, offset


def _read_lines(content: bytes) -> Iterator[tuple[_Entry, int]]:
    """Yields the entries of a journal up to the first line that is not whole, and where each ends."""
    offset = 0
    for line in content.splitlines(keepends=True):
        try:
            entry = _Entry(*json.loads(line))
        except (ValueError, TypeError):
            return
        if not line.endswith(b"\n"):
            return
        offset += len(line)
        yield entry, offset


def _header(spec: RowSpec, num_rows: int) -> bytes:
    """Returns the header of a .npy file; NumPy leaves room in it for any number of rows."""
    stream, dtype = io.BytesIO(), np.dtype(spec.dtype)
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(stream, description | {"shape": (num_rows, *spec.shape)})
    return stream.getvalue()


def _open(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")


def _cut(file: IO[bytes], size: int) -> None:
    """Ends a file at a place, where the next write then goes."""
    file.truncate(size)
    file.seek(size)

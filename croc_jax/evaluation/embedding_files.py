"""Where embeddings are written: Parquet shards or NumPy arrays, and what they are of."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from absl import logging

from croc_jax.atomic_write import atomic_file, atomic_write
from croc_jax.data.bad_records import printable
from croc_jax.evaluation.row_log import RowLog, RowSpec, Skipped

FORMATS = ("parquet", "npy")
# Readers of a folder of Parquet files leave out what begins so.
METADATA_NAME, SKIPPED_NAME, WORKING_NAME = "_metadata.json", "_skipped.txt", "_working"
NAMES_NAME = "names.json"
# Key of the metadata in the schema of a Parquet file.
SCHEMA_KEY = "croc_jax"
_GROUP_BYTES = 2**26
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)


class Part(NamedTuple):
    """Consecutive images of the source that are finished together."""

    number: int
    images: range


class Summary(NamedTuple):
    """What a folder holds in the end.

    Attributes:
        num_rows: images with a row.
        skipped: images without one.
    """

    num_rows: int
    skipped: list[Skipped]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingFiles:
    """A folder of embeddings that several programs may write at once, each other parts of it.

    Attributes:
        folder: the folder.
        format: "parquet" or "npy".
        settings: what the embeddings are of; rows of others are refused.
        notes: what else the metadata state.
        num_images: images of the source.
        shard_size: images of the source a Parquet file.
        specs: one row of each array, by name; among them the index of an image, and its sizes.
        name_of: returns the name of an image by its index.
    """

    folder: Path
    format: str
    settings: Mapping[str, Any]
    notes: Mapping[str, Any]
    num_images: int
    shard_size: int
    specs: Mapping[str, RowSpec]
    name_of: Callable[[int], str]

    def begin(self) -> None:
        """Notes what the folder is going to hold.

        Raises:
            ValueError: if it holds something else already.
            OSError: if it cannot be written.
        """
        file = self.folder / METADATA_NAME
        with locked(self._lock("folder"), wait=True):
            if file.is_file():
                _check_same(file, self.settings)
                return
            others = (*self.folder.glob("*.parquet"), *(self.folder / f"{name}.npy" for name in self.specs))
            if found := [other.name for other in others if other.exists()]:
                raise ValueError(f"{self.folder} holds {found[0]} but no {METADATA_NAME}: choose another --output")
            self._write_metadata({})

    def parts(self) -> list[Part]:
        """Returns all parts, of which some may be there already."""
        size = self.shard_size if self.format == "parquet" else self.num_images
        starts = range(0, self.num_images, size)
        return [Part(n, range(start, min(start + size, self.num_images))) for n, start in enumerate(starts)]

    def is_done(self, part: Part) -> bool:
        """Returns whether a part is there."""
        return self.shard(part).exists() if self.format == "parquet" else "num_rows" in self._read_metadata()

    @contextlib.contextmanager
    def claim(self, part: Part) -> Iterator[RowLog | None]:
        """Yields the rows of a part so far, to which more may be added; None if it is there, or another program's.

        Raises:
            OSError: if the disk fails.
        """
        with locked(self._lock(str(part.number))) as is_mine:
            if not is_mine or self.is_done(part):
                yield None
                return
            folder = self._working(part) if self.format == "parquet" else self.folder
            self._working(part).mkdir(parents=True, exist_ok=True)
            with RowLog(folder, self._working(part) / "journal.jsonl", self.specs) as log:
                yield log

    def finish(self, part: Part, log: RowLog) -> None:
        """Writes what a part is for from its rows, which are complete; OSError if the disk fails."""
        log.seal()
        counts = {"num_rows": log.num_rows, "num_skipped": len(log.skipped)}
        if self.format == "parquet":
            write_table(
                self.shard(part),
                log.arrays(),
                self.name_of,
                metadata={**self.settings, **self.notes, **counts, "skipped": log.skipped},
            )
            # Another program may remove the folder above it, now that all is there.
            shutil.rmtree(self._working(part), ignore_errors=True)
            return
        names = [_text(self.name_of(index)) for index in log.arrays()["index"].tolist()]
        atomic_write(self.folder / NAMES_NAME, json.dumps(names, ensure_ascii=False, indent=0).encode())
        self._list_skipped(log.skipped)
        self._write_metadata(counts)

    def end(self) -> Summary:
        """Lists the images without a row once all parts are there, and removes what only helped to write them.

        Raises:
            ValueError: if no image has a row; nothing is left then.
            OSError: if the disk fails.
        """
        with locked(self._lock("folder"), wait=True):
            return self._end()

    def _end(self) -> Summary:
        if self.format == "parquet":
            footers = [_read_metadata_of(self.shard(part)) for part in self.parts()]
            num_rows = sum(footer["num_rows"] for footer in footers)
            skipped = [Skipped(*one) for footer in footers for one in footer["skipped"]]
            self._list_skipped(skipped)
            self._write_metadata({"num_rows": num_rows, "num_skipped": len(skipped)})
        else:
            num_rows = self._read_metadata()["num_rows"]
            skipped = [] if num_rows == self.num_images else _read_skipped(self.folder / SKIPPED_NAME)
        shutil.rmtree(self.folder / WORKING_NAME, ignore_errors=True)
        if num_rows == 0:
            made = (METADATA_NAME, SKIPPED_NAME, NAMES_NAME, *(f"{name}.npy" for name in self.specs))
            for file in (*(self.folder / name for name in made), *map(self.shard, self.parts())):
                file.unlink(missing_ok=True)
            example = f"{printable(skipped[0].name)} ({printable(skipped[0].reason)})"
            raise ValueError(f"none of the {self.num_images} images can be read, such as {example}")
        return Summary(num_rows, skipped)

    def shard(self, part: Part) -> Path:
        """Returns the Parquet file of a part."""
        count = -(-self.num_images // self.shard_size)
        return self.folder / f"embeddings-{part.number:05d}-of-{count:05d}.parquet"

    def _working(self, part: Part) -> Path:
        return self.folder / WORKING_NAME / f"{part.number:05d}"

    def _lock(self, name: str) -> Path:
        return self.folder / WORKING_NAME / f"{name}.lock"

    def _list_skipped(self, skipped: list[Skipped]) -> None:
        lines = (f"{printable(name)}\t{printable(' '.join(reason.split()))}\n" for name, reason in skipped)
        if skipped:
            atomic_write(self.folder / SKIPPED_NAME, "".join(lines).encode())

    def _write_metadata(self, counts: Mapping[str, int]) -> None:
        content = json.dumps({**self.settings, **self.notes, **counts}, indent=1)
        atomic_write(self.folder / METADATA_NAME, f"{content}\n".encode())

    def _read_metadata(self) -> dict[str, Any]:
        return json.loads((self.folder / METADATA_NAME).read_bytes())


def write_table(
    file: Path, arrays: Mapping[str, np.ndarray], name_of: Callable[[int], str], *, metadata: Mapping[str, Any]
) -> None:
    """Writes a Parquet file in one move.

    Args:
        file: the file.
        arrays: one row an image: index `[n]`, sizes `[n 2]` (height, width), and vectors of any length, as lists of
            fixed size.
        name_of: returns the name of an image by its index.
        metadata: what the schema holds under "croc_jax", as JSON.

    Raises:
        OSError: if it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(rows: np.ndarray) -> pa.Array:
        values = pa.array(np.asarray(rows).reshape(-1))
        return values if rows.ndim == 1 else pa.FixedSizeListArray.from_arrays(values, int(np.prod(rows.shape[1:])))

    def table(part: slice) -> pa.Table:
        rows = {name: array[part] for name, array in arrays.items()}
        sizes, index = rows.pop("sizes"), rows.pop("index")
        names = pa.array([_text(name_of(number)) for number in index.tolist()], pa.string())
        known = {"name": names, "index": pa.array(index), "height": column(sizes[:, 0]), "width": column(sizes[:, 1])}
        return pa.table(known | {name: column(vectors) for name, vectors in rows.items()})

    schema = table(slice(0, 0)).schema.with_metadata({SCHEMA_KEY: json.dumps(metadata)})
    row_bytes = sum(array.dtype.itemsize * int(np.prod(array.shape[1:])) for array in arrays.values())
    group, count = max(1, _GROUP_BYTES // row_bytes), len(arrays["index"])
    # Features do not compress.
    options: Any = {"compression": "none", "use_dictionary": False, "write_statistics": ["name", "index"]}
    with atomic_file(file) as stream, pq.ParquetWriter(stream, schema, **options) as writer:
        for start in range(0, count, group):
            writer.write_table(table(slice(start, start + group)).replace_schema_metadata(schema.metadata))


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Yields whether this program has a lock to itself in the block; a program that ends, however, gives it up.

    Args:
        path: file of the lock; it and its folder are made.
        wait: wait for the lock instead.

    Raises:
        OSError: if the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        yield _try_lock(file, wait=wait)


def _try_lock(file: IO[str], *, wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logging.warning("%s: no file locks (%s); do not start a second program there", file.name, error.strerror)
    return True


def _check_same(file: Path, settings: Mapping[str, Any]) -> None:
    """Raises ValueError, naming what differs, unless a folder holds embeddings of these settings."""
    try:
        there = _flatten(json.loads(file.read_bytes()))
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"cannot read {file} ({error}): remove {file.parent}, or choose another --output") from error
    now, nothing = _flatten(json.loads(json.dumps(settings))), "nothing"
    if changes := [name for name in now if there.get(name, nothing) != now[name]]:
        listed = "; ".join(f"{name}: {there.get(name, nothing)!r} there, {now[name]!r} now" for name in changes)
        raise ValueError(
            f"{file.parent} holds embeddings of other weights, settings or images ({listed}): choose another --output"
        )


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in settings.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _read_metadata_of(file: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    return json.loads(pq.read_schema(file).metadata[SCHEMA_KEY.encode()])


def _read_skipped(file: Path) -> list[Skipped]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [Skipped(*line.partition("\t")[::2]) for line in lines]


def _text(name: str) -> str:
    r"""Returns a name as UTF-8 can hold it: bytes that are none become escapes such as \udce9."""
    return name.encode(errors="backslashreplace").decode()

"""Images in tar files, WebDataset's shards among them."""

import contextlib
import hashlib
import itertools
import os
import re
import tarfile
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from croc_jax.data.sources.base import SUFFIXES, SourceError, locate
from croc_jax.data.sources.shards import Handles, find_shards

_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4)|tgz|tbz2?|txz)$", re.IGNORECASE)
_NAMED = re.compile(rf"\.tar$|{_COMPRESSED.pattern}", re.IGNORECASE)
# The first bytes of gzip, bzip2, xz and Zstandard.
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_INDEX_VERSION = 1
_THREADS = 8
_MANY = 20


class TarSource:
    """The image files in tar files, in the order in which they lie there.

    The headers are read once; after that, where each image lies is known and read directly. The
    index is kept in ~/.cache/croc_jax (or $XDG_CACHE_HOME) until a tar file changes. All members
    with the suffix of an image count; annotations beside them do not.
    """

    def __init__(self, pattern: str | os.PathLike) -> None:
        """Indexes the files, or loads their index.

        Args:
            pattern: a folder of *.tar files, a file, or a pattern of several (`find_shards`).

        Raises:
            SourceError: for missing, compressed or damaged files, or if there are no images.
        """
        self._files = find_shards(pattern, named=_NAMED, kind="tar file (*.tar)")
        for file in self._files:
            _refuse_compressed(file)
        with ThreadPoolExecutor(_THREADS) as pool:
            self._indices = list(pool.map(_make_loader(self._files), self._files))
        self._ends = list(itertools.accumulate(len(index.offsets) for index in self._indices))
        if not self._ends[-1]:
            raise SourceError(f"no images in {pattern}: looked for {', '.join(SUFFIXES)} members (in any case)")
        self._handles = Handles(_OpenFile)

    def __len__(self) -> int:
        """Returns the number of images."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:
        """Returns the bytes of one member; raises OSError if it cannot be read."""
        part, position = locate(self._ends, index)
        offset, size = (int(values[position]) for values in self._indices[part][:2])
        encoded = os.pread(self._handles[self._files[part]].descriptor, size, offset)
        if len(encoded) < size:
            raise OSError(f"{self.name(index)}: the tar file ends within it")
        return encoded

    def name(self, index: int) -> str:
        """Returns FILE:MEMBER."""
        part, position = locate(self._ends, index)
        return f"{self._files[part]}:{self._indices[part].names.split(_SEPARATOR)[position].decode(errors='replace')}"


# No name holds it; and one string pickles faster than many.
_SEPARATOR = b"\0"


class _Index(NamedTuple):
    """Where the images of a tar file lie, in bytes, and their names."""

    offsets: np.ndarray
    sizes: np.ndarray
    names: bytes


class _OpenFile:
    """A descriptor for reads at any place from any thread."""

    def __init__(self, file: str) -> None:
        """Opens the file; raises OSError if it cannot be opened."""
        self.descriptor = os.open(file, os.O_RDONLY)

    def __del__(self) -> None:
        """Closes the file."""
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _refuse_compressed(file: str) -> None:
    try:
        with open(file, "rb") as stream:
            start = stream.read(8)
    except OSError as error:
        raise SourceError(f"cannot read {file}: {error.strerror}") from error
    if _COMPRESSED.search(file) or start.startswith(_MAGIC):
        raise SourceError(
            f"{file} is compressed, so that no image can be read without all before it: unpack it to a plain .tar "
            "(gunzip, unxz, unzstd); images in it are compressed as they are"
        )


def _make_loader(files: list[str]) -> Callable[[str], _Index]:
    missing = sum(not _cache_file(file).exists() for file in files)
    if missing > _MANY:
        logging.warning("reading the headers of %d tar files, once", missing)
    return _load_index


def _load_index(file: str) -> _Index:
    """Returns the index of a tar file from the cache if it is unchanged, or makes it."""
    status, cache = os.stat(file), _cache_file(file)
    stamp = np.array([_INDEX_VERSION, status.st_size, status.st_mtime_ns])
    try:
        with np.load(cache, allow_pickle=False) as saved:
            if np.array_equal(saved["stamp"], stamp):
                return _Index(saved["offsets"], saved["sizes"], saved["names"].tobytes())
    except Exception:  # Whatever a damaged file raises, a new index is the remedy.
        pass
    index = _make_index(file)
    _save_index(cache, index, stamp)
    return index


def _make_index(file: str) -> _Index:
    try:
        with tarfile.open(file, "r:") as archive:
            members = [
                (member.offset_data, member.size, member.name)
                for member in archive
                if member.isreg() and not member.issparse() and member.name.lower().endswith(SUFFIXES)
            ]
            _check_end(archive)
    except (tarfile.TarError, OSError) as error:
        raise SourceError(f"cannot read the tar file {file} ({error}): replace it") from error
    offsets, sizes = np.array([member[:2] for member in members], np.int64).reshape(-1, 2).T
    names = _SEPARATOR.join(name.encode(errors="surrogateescape") for *_, name in members)
    return _Index(offsets, sizes, names)


def _check_end(archive: tarfile.TarFile) -> None:
    """Raises ReadError unless the members end in zeros or with the file: tarfile stops at a damaged header, too."""
    stream = archive.fileobj
    assert stream is not None
    stream.seek(archive.offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0") or 0 < len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"a damaged header at byte {archive.offset}")


def _save_index(cache: Path, index: _Index, stamp: np.ndarray) -> None:
    """Saves it for next time, if there is a place to."""
    fresh = cache.with_name(f"{cache.name}.{uuid.uuid4().hex}.tmp")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with open(fresh, "wb") as stream:
            names = np.frombuffer(index.names, np.uint8)
            np.savez(stream, stamp=stamp, offsets=index.offsets, sizes=index.sizes, names=names)
        fresh.replace(cache)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()


def _cache_file(file: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    key = hashlib.sha256(os.path.realpath(file).encode(errors="surrogateescape")).hexdigest()[:32]
    return Path(home) / "croc_jax" / "tar" / f"{key}.npz"

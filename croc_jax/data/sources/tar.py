"""Images in tar files, WebDataset's shards among them."""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np

from croc_jax.data.sources.base import SUFFIXES, is_image, is_sidecar, report_left_out
from croc_jax.data.sources.shards import find_shards

_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4)|tgz|tbz2?|txz)$", re.IGNORECASE)
_NAMED = re.compile(rf"\.tar$|{_COMPRESSED.pattern}", re.IGNORECASE)
# The first bytes of gzip, bzip2, xz and Zstandard.
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
# Threads that read headers: on a network file system, each header is a round trip.
_THREADS = 16
# WebDataset has few kinds of files a sample; more are names with dots in them.
_MAX_EXTENSIONS = 10

Member = tuple[str, int, int]


class TarSource:
    """The image files in tar files, in the order in which they lie there, named FILE:MEMBER.

    The headers of all members are read at the start, about 25 us each; then an image is one read at
    a known place. Members with the suffix of an image count, and annotations beside them do not.
    """

    def __init__(self, value: str | os.PathLike) -> None:
        """Reads the headers.

        Args:
            value: a folder of *.tar files, a file, or a pattern of several (`find_shards`). Where a
                sample has several pictures, as 7.jpg and 7.seg.png, @EXTENSION at the end chooses,
                as in data/*.tar@jpg.

        Raises:
            ValueError: for missing, compressed or corrupt files, no images, or several a sample.
        """
        pattern, extension = _split_extension(os.fspath(value))
        self._files = find_shards(pattern, named=_NAMED, kind="tar file (*.tar)")
        with ThreadPoolExecutor(_THREADS) as pool:
            members = list(pool.map(_list_members, self._files))
        members = [(number, *member) for number, found in enumerate(members) for member in found]
        report_left_out(pattern, [name for _, name, *_ in members if is_sidecar(name)])
        members = [member for member in members if is_image(member[1])]
        if extension:
            members = [member for member in members if _sample(member[1])[1] == extension]
        else:
            _check_one_a_sample(pattern, [(number, name) for number, name, *_ in members])
        if not members:
            looked_for = f".{extension}" if extension else f"{', '.join(SUFFIXES)} members (in any case)"
            raise ValueError(f"no images in {pattern}: looked for {looked_for}")
        # Arrays instead of millions of strings: each worker process holds a copy.
        self._names = np.array([os.fsencode(name) for _, name, *_ in members])
        self._places = np.array([(number, offset, size) for number, _, offset, size in members], np.int64)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._names)

    def __getitem__(self, index: int) -> bytes:
        """Returns the bytes of one member; raises OSError if it cannot be read."""
        file_index, offset, size = self._places[index].tolist()
        # Opened each time: thousands of shards are more than a process may hold open.
        with open(self._files[file_index], "rb", buffering=0) as file:
            encoded = os.pread(file.fileno(), size, offset)
        if len(encoded) < size:
            raise OSError(f"{self.name(index)}: the tar file ends within it")
        return encoded

    def name(self, index: int) -> str:
        """Returns FILE:MEMBER."""
        return f"{self._files[self._places[index, 0]]}:{os.fsdecode(self._names[index])}"

    def entries(self) -> Iterator[tuple[str, int]]:
        """Yields name and size of each member, whatever the tar files are called."""
        yield from zip(map(os.fsdecode, self._names), self._places[:, 2].tolist(), strict=True)


def _split_extension(value: str) -> tuple[str, str]:
    """Splits PATHS@EXTENSION; without @EXTENSION, the second part is empty."""
    parts = re.fullmatch(r"(.+)@\.?([\w.]+)", value, re.DOTALL)
    if parts is None or os.path.exists(value) or _NAMED.search(value):
        return value, ""
    return parts[1], parts[2].lower()


def _sample(name: str) -> tuple[str, str]:
    """Returns the sample that a member belongs to, and its extension, split at the first dot as WebDataset does."""
    folder, slash, file = name.rpartition("/")
    # Not at a dot that hides a file.
    stem, _, extension = file[1:].partition(".")
    return folder + slash + file[:1] + stem, extension.lower()


def _check_one_a_sample(pattern: str, names: list[tuple[int, str]]) -> None:
    """Raises ValueError if a sample has images of several extensions; 1.2.jpg is a name with a dot in it."""
    samples = sorted({(number, *_sample(name)) for number, name in names})
    extensions = sorted({extension for *_, extension in samples})
    if len(extensions) > _MAX_EXTENSIONS or any(extension[:1].isdigit() for extension in extensions):
        return
    ((_, sample), count), *_ = Counter(sample[:2] for sample in samples).most_common(1) or [((0, ""), 0)]
    if count > 1:
        raise ValueError(
            f"{pattern} has several images a sample, such as {count} of {sample} (.{', .'.join(extensions)}): "
            f"choose one kind, as in tar:{pattern}@{min(extensions, key=len)}"
        )


def _list_members(file: str) -> list[Member]:
    """Returns name, offset and size of each regular file in a tar file, also of several tar files in a row."""
    try:
        with open(file, "rb") as stream:
            if _COMPRESSED.search(file) or stream.read(8).startswith(_MAGIC):
                raise ValueError(
                    f"{file} is compressed, so that no image can be read without all before it: unpack it to a plain "
                    ".tar (gunzip, unxz, unzstd); images in it are compressed already"
                )
            return [member for start in _find_archives(stream) for member in _read_headers(stream, start)]
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"cannot read the tar file {file} ({error}): replace it") from error


def _find_archives(stream: BinaryIO) -> Iterator[int]:
    """Yields where archives begin: at the start, and after the zeros that end the one before, if more follows."""
    start = 0
    while True:
        yield start
        # The reader leaves the stream at the end of the archive.
        start = stream.tell()
        while (block := stream.read(tarfile.BLOCKSIZE)) and not block.strip(b"\0"):
            start += len(block)
        if not block:
            return


def _read_headers(stream: BinaryIO, start: int) -> Iterator[Member]:
    """Yields the regular members of the archive at a place; leaves the stream at its end."""
    stream.seek(start)
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            if member.isreg() and not member.issparse():
                yield member.name, member.offset_data, member.size
    stream.seek(archive.offset)
    block = stream.read(tarfile.BLOCKSIZE)
    # tarfile ends at a corrupt header as at the zeros that end an archive.
    if block.strip(b"\0") or 0 < len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"a corrupt header at byte {archive.offset}")
    stream.seek(archive.offset)

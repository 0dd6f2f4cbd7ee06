"""Images in tar files, WebDataset's shards among them."""

import collections
import functools
import io
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator
from fnmatch import fnmatch
from multiprocessing.pool import ThreadPool
from typing import BinaryIO, NamedTuple

import numpy as np

from croc_jax.data.bad_records import printable
from croc_jax.data.formats import ARRAY_SUFFIX
from croc_jax.data.sources.base import SUFFIXES, find_images, is_array, is_image, kind_of, report_left_out, tell
from croc_jax.data.sources.shards import find_shards
from croc_jax.machine_errors import is_machine_error
from croc_jax.regular_files import open_regular

_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4)|tgz|tbz2?|txz|zip|7z)$", re.IGNORECASE)
_NAMED = re.compile(rf"\.tar$|{_COMPRESSED.pattern}", re.IGNORECASE)
# The first bytes of gzip, bzip2, xz, Zstandard, LZ4, ZIP and 7-Zip.
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"PK\x03\x04", b"7z\xbc\xaf")
# Threads that read headers: on a network file system, each header is a round trip.
_THREADS = 16
# WebDataset has few kinds of images, each in many samples; more and rarer ones are names with dots in them.
_MAX_KINDS = 10
# Links to links; more are a circle.
_MAX_LINKS = 10


class Member(NamedTuple):
    """An image: its name, and where its bytes are in the file."""

    name: str
    offset: int
    size: int


class _Listing(NamedTuple):
    """What a tar file holds: images and arrays, the other members by kind, how many archives, and whether it ends."""

    images: list[Member]
    others: collections.Counter[str]
    num_archives: int
    has_end: bool


class TarSource:
    """The image files in tar files, in the order in which they lie there, named FILE:MEMBER.

    The headers of all members are read at the start, about 25 us each; then an image is one read at
    a known place. Members with the suffix of an image count, and annotations beside them do not; arrays count if no
    member has one.
    """

    def __init__(self, value: str | os.PathLike) -> None:
        """Reads the headers.

        Args:
            value: a folder of *.tar files, a file, or a pattern of several (`find_shards`). Where a
                sample has several pictures, as 7.jpg and 7.seg.png, @EXTENSION at the end chooses,
                as in data/*.tar@jpg; * in it stands for anything.

        Raises:
            ValueError: for missing, compressed or corrupt files, no images, or several a sample.
            OSError: for a fault of the machine.
        """
        pattern, extension = _split_extension(os.fspath(value))
        self._files = find_shards(pattern, named=_NAMED, kind="tar file (*.tar)", source="tar")
        with ThreadPool(_THREADS) as pool:
            listings = pool.map(_list_members, self._files)
        images = [(number, member) for number, found in enumerate(listings) for member in found.images]
        others = sum((found.others for found in listings), collections.Counter())
        if extension:
            images = [(number, member) for number, member in images if _is_chosen(member.name, extension)]
        else:
            taken = set(find_images([member.name for _, member in images]))
            others[ARRAY_SUFFIX] += sum(member.name not in taken for _, member in images)
            images = [(number, member) for number, member in images if member.name in taken]
            _check_one_a_sample(pattern, [(number, member.name) for number, member in images])
        report_left_out(pattern, [], others=+others)
        if not images:
            looked_for = (
                f".{extension}" if extension else f"{', '.join((*SUFFIXES, ARRAY_SUFFIX))} members (in any case)"
            )
            raise ValueError(f"no images in {pattern}: looked for {looked_for}")
        if joined := sum(found.num_archives > 1 for found in listings):
            tell(f"{pattern}: {joined} tar files hold several archives in a row; all of them are read")
        if cut := [file for file, found in zip(self._files, listings, strict=True) if not found.has_end]:
            tell(f"{pattern}: {len(cut)} tar files, such as {cut[0]}, lack the zeros at their end, and may be cut")
        # Arrays instead of millions of strings: each worker process holds a copy.
        self._names = np.array([os.fsencode(member.name) for _, member in images])
        self._places = np.array([(number, member.offset, member.size) for number, member in images], np.int64)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._names)

    def __getitem__(self, index: int) -> bytes:
        """Returns the bytes of one member; raises OSError if it cannot be read."""
        file_index, offset, size = self._places[index].tolist()
        # Opened each time: thousands of shards are more than a process may hold open.
        with open_regular(self._files[file_index]) as file:
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
    parts = re.fullmatch(r"(.+)@\.?([\w.*-]+)", value, re.DOTALL)
    if parts is None or os.path.exists(value) or _NAMED.search(value):
        return value, ""
    return parts[1], parts[2].lower()


def _sample(name: str) -> tuple[str, str]:
    """Returns the sample that a member belongs to, and its extension, split at the first dot as WebDataset does."""
    folder, slash, file = name.rpartition("/")
    # Not at a dot that hides a file.
    stem, _, extension = file[1:].partition(".")
    return folder + slash + file[:1] + stem, extension.lower()


def _kind(extension: str) -> str:
    """Returns an extension without its numbers: WebDataset calls several images of a sample 7.0.jpg and 7.1.jpg."""
    return ".".join(part for part in extension.split(".") if not part[:1].isdigit())


def _is_chosen(name: str, wanted: str) -> bool:
    extension = _sample(name)[1]
    return fnmatch(extension, wanted) or fnmatch(_kind(extension), wanted)


def _check_one_a_sample(pattern: str, names: list[tuple[int, str]]) -> None:
    """Raises ValueError if a sample has images of several kinds, as 7.jpg and 7.seg.png.

    1.2.jpg and 1.3.png are names with dots in them.
    """
    samples: dict[tuple[int, str], frozenset[str]] = {}
    for number, name in names:
        sample, extension = _sample(name)
        samples[number, sample] = _with(samples.get((number, sample), frozenset()), extension)
    counts: collections.Counter[str] = collections.Counter()
    num_samples = collections.Counter(samples.values())
    for extensions, count in num_samples.items():
        counts.update(dict.fromkeys(map(_kind, extensions), count))
    least = max(2, len(samples) / 10) if len(counts) > _MAX_KINDS else 0
    for extensions in num_samples:
        kinds = {kind for kind in map(_kind, extensions) if counts[kind] >= least}
        if len(kinds) > 1 and (kinds <= extensions or any("." in kind for kind in kinds)):
            sample = next(sample for (_, sample), found in samples.items() if found == extensions)
            most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MAX_KINDS]
            listed = ", ".join(f"{count} .{kind}" for kind, count in most)
            shortest = min(counts, key=lambda kind: (len(kind), kind))
            raise ValueError(
                f"{pattern} has several images a sample, such as {len(kinds)} of {printable(sample)}; in all there are "
                f"{listed}: choose one kind, as in tar:{pattern}@{shortest}, or all by @*"
            )


@functools.cache
def _with(extensions: frozenset[str], extension: str) -> frozenset[str]:
    # Millions of samples share few sets.
    return extensions | {extension}


def _list_members(file: str) -> _Listing:
    """Returns what is in a tar file, also of several tar files in a row."""
    try:
        with open_regular(file) as raw, io.BufferedReader(raw) as stream:
            is_compressed = stream.read(8).startswith(_MAGIC)
            listing = None if is_compressed else _read_archives(stream)
    except Exception as error:  # tarfile raises exceptions of many types for damaged headers.
        if is_machine_error(error):
            raise
        raise ValueError(f"cannot read the tar file {file} ({printable(str(error))}): replace it") from error
    if listing is None:
        raise ValueError(
            f"{file} is compressed, so that no image can be read without all before it: unpack it to a plain .tar "
            "(gunzip, unxz, unzstd), or to a folder (unzip); images in it are compressed already"
        )
    return listing


def _read_archives(stream: BinaryIO) -> _Listing:
    others: collections.Counter[str] = collections.Counter()
    archives = [list(_read_headers(stream, start, others)) for start in _find_archives(stream)]
    stream.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
    has_end = not stream.read().strip(b"\0")
    return _Listing([member for found in archives for member in found], others, len(archives), has_end)


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


def _read_headers(stream: BinaryIO, start: int, others: collections.Counter[str]) -> Iterator[Member]:
    """Yields the images of the archive at a place, and counts other members; leaves the stream at its end."""
    stream.seek(start)
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        members = list(archive)
    by_name = {posixpath.normpath(member.name): member for member in members} if any(map(_is_link, members)) else {}
    for member in members:
        found = _follow(member, by_name)
        if found is not None and not found.issparse():
            if is_image(member.name) or is_array(member.name):
                yield Member(member.name, found.offset_data, found.size)
            else:
                others[kind_of(member.name)] += 1
        elif not member.isdir():
            others["sparse" if found else "links to no file in it" if member.linkname else "not regular"] += 1
    stream.seek(archive.offset)
    block = stream.read(tarfile.BLOCKSIZE)
    # tarfile ends at a corrupt header as at the zeros that end an archive.
    if block.strip(b"\0") or 0 < len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"a corrupt header at byte {archive.offset}")
    stream.seek(archive.offset)


def _is_link(member: tarfile.TarInfo) -> bool:
    return member.issym() or member.islnk()


def _follow(member: tarfile.TarInfo, by_name: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """Returns a regular member, or the one that a link leads to, perhaps over others; None if there is none."""
    for _ in range(_MAX_LINKS):
        if not _is_link(member):
            return member if member.isreg() else None
        # A hard link starts at the root of the archive.
        folder = posixpath.dirname(member.name) if member.issym() else ""
        target = by_name.get(posixpath.normpath(posixpath.join(folder, member.linkname)))
        if target is None:
            return None
        member = target
    return None

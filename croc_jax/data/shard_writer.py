"""Writes one shard: reads images, checks them, makes large ones smaller, and counts."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from croc_jax.data.crops import DecodeError, decode
from croc_jax.data.sources.base import ImageSource
from croc_jax.data.sources.manifest import ShardRecord
from croc_jax.data.workers import end_with_parent

TEMPORARY = ".tmp"
JPEG_QUALITY = 95
# Each image on its own, so that one is read at a time; encoded ones do not compress any further.
_OPTIONS = "group_size:1,uncompressed"


class PrepareError(ValueError):
    """Shards cannot be made or used; the message says why and what to do."""


class ShardPlan(NamedTuple):
    """Which images of the source go in which file."""

    name: str
    start: int
    stop: int


class Task(NamedTuple):
    """What all workers share.

    Attributes:
        source: of the images.
        folder: of the shards.
        short_side: largest length of an image's shorter side in pixels; None keeps all sizes.
        counter: of images done, a `multiprocessing.Value`.
        stop: a `multiprocessing.Event` that ends the work between two images.
    """

    source: ImageSource
    folder: Path
    short_side: int | None
    counter: Any
    stop: Any


def shrink(encoded: bytes, short_side: int | None) -> bytes:
    """Returns an image whose shorter side is at most so long; one that is already, as it came.

    Larger ones are resized bicubically with antialiasing and become JPEG files of quality 95.

    Args:
        encoded: the contents of an image file.
        short_side: in pixels; None for any length.

    Raises:
        DecodeError: if this is no whole image.
        OSError: if the smaller image cannot be encoded.
    """
    pixels = decode(encoded)
    height, width, _ = pixels.shape
    shorter = min(height, width)
    if short_side is None or shorter <= short_side:
        return encoded
    size = round(width * short_side / shorter), round(height * short_side / shorter)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def checksum(file: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal; raises OSError if it cannot be read."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_task: Task | None = None


def start_worker(task: Task) -> None:
    """Prepares a process, or a thread of the main one, for `write_shard`."""
    global _task
    _task = task
    end_with_parent()


def write_shard(plan: ShardPlan) -> ShardRecord | None:
    """Writes a shard as a whole or not at all; returns None if it was stopped.

    Raises:
        PrepareError: if the file cannot be written.
    """
    task = _task
    assert task is not None, "start_worker comes first"
    file = task.folder / plan.name
    fresh = file.with_name(file.name + TEMPORARY)
    names, skipped = [], {}
    try:
        writer = ArrayRecordWriter(str(fresh), _OPTIONS)
        for index, encoded in _read(task, plan, skipped):
            writer.write(encoded)
            names.append(task.source.name(index))
        writer.close()
        if task.stop.is_set():
            fresh.unlink()
            return None
        digest, size = checksum(fresh), fresh.stat().st_size
        fresh.replace(file)
    except (RuntimeError, OSError) as error:
        raise PrepareError(
            f"cannot write {fresh} ({error}): make room, and run the same command again; finished shards are kept"
        ) from error
    return ShardRecord(name=plan.name, count=len(names), bytes=size, sha256=digest, names=tuple(names), skipped=skipped)


def _read(task: Task, plan: ShardPlan, skipped: dict[str, str]) -> Iterator[tuple[int, bytes]]:
    """Yields the images of a shard and their numbers until told to stop; notes why others are left out."""
    for index in range(plan.start, plan.stop):
        if task.stop.is_set():
            return
        try:
            encoded = shrink(task.source[index], task.short_side)
        except (DecodeError, OSError) as error:
            skipped[task.source.name(index)] = " ".join(str(error).split())
        else:
            yield index, encoded
        with task.counter.get_lock():
            task.counter.value += 1

"""Writes the images of any source to ArrayRecord shards, with several processes."""

import dataclasses
import functools
import io
import json
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from absl import logging
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from croc_jax.atomic_write import atomic_write
from croc_jax.data.bad_records import printable
from croc_jax.data.channels import decode_pixels
from croc_jax.data.decoding import DecodeError
from croc_jax.data.pools import work_on
from croc_jax.data.resizing import resize_image
from croc_jax.data.sources import ImageSource, open_sources
from croc_jax.data.sources.identity import identify
from croc_jax.data.stored_arrays import write_npy
from croc_jax.machine_errors import find_fault, read_patiently
from croc_jax.pixel_format import RGB8, PixelFormat

SETTINGS_NAME = "prepare.json"
SKIPPED_NAME = "skipped.txt"
JPEG_QUALITY = 95
# Each image on its own, so that one is read at a time; encoded ones do not compress any further.
_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Which images to write, and how.

    Attributes:
        sources: the images, each KIND:VALUE or a folder, one after another.
        short_side: images with a longer shorter side are shrunk to it, in pixels; None keeps every
            image as it is.
        shard_size: images of the source a shard.
        channels: channels of an image; those of others are left out.
        dtype: type of the stored values; images of others are left out.
        window: side in pixels of the windows that larger images are divided into; 0 for none.
    """

    sources: tuple[str, ...]
    short_side: int | None = None
    shard_size: int = 2048
    channels: int = 3
    dtype: str = "uint8"
    window: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        for name in ("short_side", "shard_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be 1 or more")
        if self.window < 0:
            raise ValueError(f"window={self.window}: must be 0 or more")
        _ = self.pixels

    @property
    def pixels(self) -> PixelFormat:
        """The format that images are checked for; their range does not matter here."""
        range_ = (0.0, 1.0) if self.dtype == "float32" else ()
        return PixelFormat(channels=self.channels, dtype=self.dtype, range=range_)


def prepare(
    config: PrepareConfig,
    folder: Path,
    *,
    num_workers: int | None = None,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Writes FOLDER/images-00000-of-000NN.array_record and so on; returns the number of images left out.

    Which image goes to which shard depends on their number and the size of a shard alone. Images that
    cannot be decoded are left out, and listed with the reason in skipped.txt. Shards that exist are
    complete, and are kept: after an interruption, the same call writes those that are missing.

    Args:
        config: the images, and the size of shards.
        folder: folder of the shards; made if it does not exist.
        num_workers: processes; 1 works in this one; by default one a core.
        show: called with the numbers of images done and of all images, after each shard.

    Raises:
        ValueError: if a source cannot be opened, the folder holds something else, a worker died, or no image can
            be read.
        OSError: if a shard cannot be written, or for a fault of the machine.
    """
    source = open_sources(config.sources, window=config.window, pixels=config.pixels)
    count = -(-len(source) // config.shard_size)
    files = [folder / f"images-{shard:05d}-of-{count:05d}.array_record" for shard in range(count)]
    _check_settings(folder, config, source)
    starts = {file: number * config.shard_size for number, file in enumerate(files) if not file.exists()}
    sizes = {file: min(config.shard_size, len(source) - start) for file, start in starts.items()}
    num_done, num_skipped, example = len(source) - sum(sizes.values()), 0, ""
    show(num_done, len(source))
    tasks = [(file, start, sizes[file], config.short_side, config.pixels) for file, start in starts.items()]
    for number, skipped in work_on(source, write_shard, tasks, num_workers=num_workers):
        example = next((f"{name} ({reason})" for name, reason in skipped.items()), example)
        num_skipped += _list_skipped(folder, skipped)
        num_done += sizes[tasks[number][0]]
        show(num_done, len(source))
    if num_skipped == len(source):
        # Shards without images are of no use, and would be kept.
        for file in (*files, folder / SETTINGS_NAME, folder / SKIPPED_NAME):
            file.unlink()
        raise ValueError(f"no image of {', '.join(config.sources)} could be read, such as {printable(example)}")
    return num_skipped


def _check_settings(folder: Path, config: PrepareConfig, source: ImageSource) -> None:
    """Writes the settings beside the shards; raises ValueError if the folder holds shards of others."""
    images = identify(source)
    settings = dataclasses.asdict(config) | {"num_images": images.count, "digest": images.digest}
    file = folder / SETTINGS_NAME
    if file.is_file():
        there = _read_settings(file)
        # The same images may lie in another place.
        names = [name for name in settings if name != "sources" and name in there]
        if changes := [(name, there[name], settings[name]) for name in names if there[name] != settings[name]]:
            listed = "; ".join(f"{name}: {old!r} there, {now!r} now" for name, old, now in changes)
            raise ValueError(f"{folder} holds shards of other settings or images ({listed}): choose another --output")
        if "digest" not in names:
            logging.warning("%s does not state the images of its shards: only their number could be compared", file)
    elif folder.is_dir() and any(folder.glob("*.array_record")):
        raise ValueError(f"{folder} holds ArrayRecord files but no {SETTINGS_NAME}: choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(file, json.dumps(settings, indent=1).encode())


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        # What came later than the first of these files.
        later = {"channels": RGB8.channels, "dtype": RGB8.dtype, "window": 0}
        return later | settings | {name: settings[name] for name in ("short_side", "shard_size", "num_images")}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"cannot read {file} ({error}): remove {file.parent}, or choose another --output") from error


def _list_skipped(folder: Path, skipped: dict[str, str]) -> int:
    """Adds images to the list of those left out; returns their number."""
    if skipped:
        with (folder / SKIPPED_NAME).open("a", encoding="utf-8") as file:
            for name, reason in skipped.items():
                file.write(f"{printable(name)}\t{printable(' '.join(reason.split()))}\n")
    return len(skipped)


def write_shard(
    source: ImageSource, stop: Event, file: Path, start: int, size: int, short_side: int | None, pixels: PixelFormat
) -> dict[str, str]:
    """Writes a shard as a whole or not at all; returns why images are left out, by name.

    Args:
        source: the images.
        stop: ends the work once it is set.
        file: the shard.
        start: index of its first image in the source.
        size: images of the source that it takes.
        short_side: see `PrepareConfig`.
        pixels: format of the images.

    Raises:
        OSError: if the file cannot be written, or for a fault of the machine that says nothing about an image.
    """
    temporary, skipped = file.with_name(f"{file.name}.tmp"), {}
    try:
        writer = ArrayRecordWriter(str(temporary), _OPTIONS)
        for index in range(start, start + size):
            if stop.is_set():
                writer.close()
                temporary.unlink()
                return {}
            try:
                encoded = shrink(read_patiently(functools.partial(source.__getitem__, index)), short_side, pixels)
            except (DecodeError, OSError, MemoryError) as error:
                if fault := find_fault(error, source.name(index)):
                    writer.close()
                    temporary.unlink()
                    raise fault from error
                skipped[source.name(index)] = str(error)
            else:
                writer.write(encoded)
        writer.close()
        temporary.replace(file)
    except RuntimeError as error:
        raise OSError(f"{temporary}: {error}; make room, and run the same command again") from error
    return skipped


def shrink(encoded: bytes, short_side: int | None, pixels: PixelFormat = RGB8) -> bytes:
    """Returns an image whose shorter side is at most so long; one that is short enough is returned unchanged.

    Larger ones are resized bicubically with antialiasing. 8-bit RGB becomes a JPEG file of quality 95, other formats
    a NumPy .npy file of the same type.

    Args:
        encoded: the contents of an image file.
        short_side: in pixels; None for any length.
        pixels: format of the image.

    Raises:
        DecodeError: if this is no complete image of that format.
        OSError: if the smaller image cannot be encoded.
    """
    image = decode_pixels(encoded, pixels)
    height, width, _ = image.shape
    shorter = min(height, width)
    if short_side is None or shorter <= short_side:
        return encoded
    size = round(width * short_side / shorter), round(height * short_side / shorter)
    if not pixels.is_rgb8:
        return write_npy(resize_image(image, size[::-1]))
    stream = io.BytesIO()
    Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()

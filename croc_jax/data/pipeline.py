"""The stream of training batches: which images, which crops, and in which order."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NotRequired, Self, TypedDict

import grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Float32, Real

from croc_jax.data.bad_records import BadRecords, ReadersLostError, UnreadableImagesError, printable
from croc_jax.data.channels import check_readers, decode_pixels
from croc_jax.data.config import LocalViewsConfig, ViewsConfig
from croc_jax.data.crops import NUM_VIEWS, random_crops
from croc_jax.data.decoding import DecodeError
from croc_jax.data.sources.base import ImageSource
from croc_jax.data.workers import BY_MACHINE, choose_workers, init_worker, kill_workers, starting_workers
from croc_jax.machine_errors import find_fault, read_patiently
from croc_jax.pixel_format import RGB8, PixelFormat

_MAX_TRIES = 20
# grain's text, in a plain RuntimeError.
_WORKER_DIED = "Worker process was terminated"


class HostBatch(TypedDict):
    """The rows of one process.

    Attributes:
        views: two crops of each image, of values as they are stored.
        boxes: (top, left, height, width, flip) of each crop in original pixels.
        local_views: smaller crops, only if they are asked for.
        local_boxes: their boxes.
    """

    views: Real[np.ndarray, "b v H W c"]
    boxes: Float32[np.ndarray, "b v 5"]
    local_views: NotRequired[Real[np.ndarray, "b l h w c"]]
    local_boxes: NotRequired[Float32[np.ndarray, "b l 5"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropDataset:
    """An endless stream of batches, each a function of the seed and its step alone.

    Attributes:
        source: the images.
        pixels: their format.
        images_per_epoch: number of images of the source.
        steps_per_epoch: whole batches among them; the remainder waits for the next epoch's shuffle.
        batch_bytes: size of this process's rows of a batch.
        batches: this process's rows of all batches.
        skipped_file: where unreadable images are listed, if anywhere.
        max_bad_fraction: the share of unreadable images that ends the stream.
    """

    source: ImageSource
    pixels: PixelFormat
    images_per_epoch: int
    steps_per_epoch: int
    batch_bytes: int
    batches: grain.MapDataset
    skipped_file: Path | None
    max_bad_fraction: float

    def iterate(
        self, start_step: int = 0, *, num_workers: int = BY_MACHINE, num_threads: int = BY_MACHINE
    ) -> "BatchIterator":
        """Returns an iterator over this process's rows of the batches from a step on.

        Args:
            start_step: step of the first batch; to resume, the number of steps done.
            num_workers: processes that prefetch; 0 reads in threads of this process. With
                more, the program needs an `if __name__ == "__main__"` guard. `BY_MACHINE` takes
                threads on CPU, and processes beside an accelerator.
            num_threads: threads of each of these processes, a batch each at a time; 0 reads
                only when asked.

        Raises:
            ValueError: if shared memory is too small for the batches of the workers.
        """
        num_workers, num_threads = choose_workers(
            num_workers, num_threads, batch_bytes=self.batch_bytes, accelerated=jax.default_backend() != "cpu"
        )
        # One batch more than there are threads: a finished one waits while all of them work.
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads + bool(num_threads))
        stream = self.batches[start_step:].to_iter_dataset(options)
        if num_workers:
            if not flags.FLAGS.is_parsed():
                # grain's workers need that, and in a notebook no program has done it.
                flags.FLAGS.mark_as_parsed()
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers), init_worker)
        bad = BadRecords(file=self.skipped_file, max_fraction=self.max_bad_fraction)
        return BatchIterator(iter(stream), self.source, self.pixels, bad, starts_workers=bool(num_workers))


def make_dataset(
    source: ImageSource,
    *,
    views: ViewsConfig,
    local_views: LocalViewsConfig | None = None,
    pixels: PixelFormat = RGB8,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    skipped_file: Path | None = None,
    max_bad_fraction: float = 1.0,
) -> CropDataset:
    """Builds the stream of pairs of crops.

    Every epoch is a new shuffle of all images. Process p of P reads only rows p * b / P to
    (p + 1) * b / P of each batch of b.

    Args:
        source: the images.
        views: size and distribution of the crops.
        local_views: the local crops, none by default.
        pixels: format of the images; those of another are unreadable.
        batch_size: images of a batch over all processes.
        seed: seed of order and crops.
        process_index: index of this process.
        process_count: number of processes that share each batch.
        skipped_file: where unreadable images are listed.
        max_bad_fraction: the share of unreadable images, of the first thousand or more, that ends the stream.

    Raises:
        ValueError: for fewer images than a batch, a batch that the processes cannot share, or images that need
            libraries which are not installed.
    """
    num_images, local = len(source), local_views or LocalViewsConfig()
    steps_per_epoch = num_images // batch_size if batch_size > 0 else 0
    if not steps_per_epoch:
        raise ValueError(
            f"{num_images} images cannot fill a batch of {batch_size}: "
            f"choose schedule.batch_size from 1 to {num_images}, or add images"
        )
    if batch_size % process_count:
        raise ValueError(
            f"schedule.batch_size={batch_size} does not divide over {process_count} processes: "
            "choose a multiple of their number"
        )
    if not pixels.is_rgb8:
        # Here once, instead of as the reason of each image. One that cannot be read counts later.
        with contextlib.suppress(OSError):
            check_readers(source[0])
    # Epochs shuffle with consecutive seeds, so neighboring run seeds must not start as neighbors.
    shuffle_seed, crop_seed = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
    records = grain.MapDataset.range(num_images).shuffle(seed=shuffle_seed)[: steps_per_epoch * batch_size]
    load = functools.partial(_load_views, source=source, config=views, local=local, pixels=pixels)
    rows = records.random_map(load, seed=crop_seed)
    # Batches of one process's size: each global batch is a run of `process_count` of them.
    local_size, pixel_bytes = batch_size // process_count, pixels.channels * np.dtype(pixels.dtype).itemsize
    return CropDataset(
        source=source,
        pixels=pixels,
        images_per_epoch=num_images,
        steps_per_epoch=steps_per_epoch,
        batch_bytes=local_size * pixel_bytes * (NUM_VIEWS * views.crop_size**2 + local.count * local.crop_size**2),
        batches=rows.batch(local_size)[process_index::process_count].repeat(),
        skipped_file=skipped_file,
        max_bad_fraction=max_bad_fraction,
    )


def _load_views(
    index: int,
    generator: np.random.Generator,
    *,
    source: ImageSource,
    config: ViewsConfig,
    local: LocalViewsConfig,
    pixels: PixelFormat,
) -> dict[str, np.ndarray]:
    """Returns the views of an image, or of one drawn in its place if it is unreadable.

    Raises:
        OSError: for a fault of the machine, which says nothing about the image.
        UnreadableImagesError: if many are unreadable, one after another.
    """
    skipped = np.full(_MAX_TRIES, -1, np.int32)
    index, errors = int(index), []
    for attempt in range(_MAX_TRIES):
        try:
            encoded = read_patiently(functools.partial(source.__getitem__, index))
            crops = random_crops(encoded, generator, config, local, pixels)
        except (DecodeError, OSError, MemoryError) as error:
            if fault := find_fault(error, source.name(index)):
                raise fault from error
            errors.append(error)
            skipped[attempt] = index
            index = int(generator.integers(len(source)))
        else:
            return crops | {"skipped": skipped}
    are_gone = all(isinstance(error, FileNotFoundError) for error in errors)
    raise UnreadableImagesError(
        f"{_MAX_TRIES} images in a row {'are gone' if are_gone else 'are unreadable'}, the last of them "
        f"{printable(source.name(int(skipped[-1])))} ({printable(str(errors[-1]))}): "
        f"{'is their disk still mounted?' if are_gone else 'check the files and the disk they are on'}"
    )


class BatchIterator(Iterator[HostBatch]):
    """Yields batches, and counts unreadable images."""

    def __init__(
        self,
        batches: grain.DatasetIterator,
        source: ImageSource,
        pixels: PixelFormat,
        bad: BadRecords,
        *,
        starts_workers: bool,
    ) -> None:
        """Wraps grain's iterator over batches of `source`."""
        self._batches: grain.DatasetIterator | None = batches
        self._source, self._pixels, self._bad = source, pixels, bad
        self._starts_workers, self._is_waiting, self._reasons = starts_workers, False, dict[int, str]()

    @property
    def skipped(self) -> dict[str, int]:
        """How often each unreadable image was replaced by another one, by name."""
        return self._bad.counts

    def __next__(self) -> HostBatch:
        """Returns the next batch.

        Raises:
            OSError: for a fault of the machine.
            ReadersLostError: if a worker process died.
            UnreadableImagesError: if too many images are unreadable.
        """
        if self._batches is None:
            raise StopIteration
        self._is_waiting = True
        try:
            # The first call starts the worker processes.
            with starting_workers() if self._starts_workers else contextlib.nullcontext():
                batch = next(self._batches)
            self._starts_workers = self._is_waiting = False
        except RuntimeError as error:
            if _WORKER_DIED not in str(error):
                raise
            raise ReadersLostError(
                "a process that reads images was killed, as the system does when memory runs out: "
                f"lower runtime.num_workers, or look for the cause ({str(error).split('. ')[0]})"
            ) from None
        skipped = batch.pop("skipped")
        for index in skipped[skipped >= 0].tolist():
            if index not in self._reasons:
                self._reasons[index] = _reason(self._source, index, self._pixels)
            self._bad.add(self._source.name(index), self._reasons[index])
        self._bad.check(len(skipped))
        return batch

    def close(self) -> None:
        """Stops prefetching and ends the worker processes."""
        # Grain's iterator complains if it lives until the interpreter ends, so nothing of it stays.
        batches, self._batches = self._batches, None
        if self._is_waiting:
            # grain would wait for each of them, and they for images.
            kill_workers()
        if batches is not None:
            batches.close()

    def __enter__(self) -> Self:
        """Returns itself; leaving the block closes it."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the iterator."""
        self.close()


def _reason(source: ImageSource, index: int, pixels: PixelFormat) -> str:
    """Reads the image again: the error itself stayed in the worker that met it; raises OSError as `_load_views`."""
    try:
        decode_pixels(read_patiently(functools.partial(source.__getitem__, index)), pixels)
    except (DecodeError, OSError, MemoryError) as error:
        if fault := find_fault(error, source.name(index)):
            raise fault from error
        return str(error)
    return "readable by now"

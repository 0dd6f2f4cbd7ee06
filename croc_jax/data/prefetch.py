"""Loads the next batch in threads while the one before is in use."""

from collections.abc import Callable, Iterator
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Real

Loaded = TypeVar("Loaded")
Label = TypeVar("Label")


class LabeledBatch(NamedTuple, Generic[Label]):
    """A batch of constant size, so that it compiles once.

    Attributes:
        images: `[b H W c]`; after the last image of a split, zeros fill the batch.
        labels: one for each real image, so their number is that of the real images.
    """

    images: Real[np.ndarray, "b H W c"]
    labels: list[Label]


def load_ahead(
    load: Callable[[int], Loaded], count: int, batch_size: int, *, num_threads: int
) -> Iterator[list[Loaded]]:
    """Yields load(0) to load(count - 1) in order, in lists of one batch; the last one may be shorter.

    Args:
        load: called in threads, once for each index.
        count: number of indices.
        batch_size: indices a batch.
        num_threads: threads that load.
    """
    # Threads of this pool end with the program, also those that wait for a disk that does not answer.
    with ThreadPool(num_threads) as pool:

        def submit(start: int) -> list[AsyncResult]:
            return [pool.apply_async(load, (index,)) for index in range(start, min(start + batch_size, count))]

        pending = submit(0)
        for start in range(0, count, batch_size):
            loaded = [result.get() for result in pending]
            pending = submit(start + batch_size)
            yield loaded


def load_padded(
    load: Callable[[int], tuple[Real[np.ndarray, "H W c"], Label]], count: int, batch_size: int, *, num_threads: int
) -> Iterator[LabeledBatch[Label]]:
    """Yields images of one size with their labels; arguments are those of `load_ahead`."""
    for loaded in load_ahead(load, count, batch_size, num_threads=num_threads):
        images = np.zeros((batch_size, *loaded[0][0].shape), loaded[0][0].dtype)
        images[: len(loaded)] = [image for image, _ in loaded]
        yield LabeledBatch(images, [label for _, label in loaded])

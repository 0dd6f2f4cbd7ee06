"""Frozen features: patch tokens of labeled images, in bounded memory."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from rich.progress import Progress

from croc_jax.data.labeled import LabeledBatch, SegmentationSplit
from croc_jax.data.photometric import normalize
from croc_jax.models import VisionTransformer, patch_grid

ExtractFn = Callable[[Any, UInt8[Array | np.ndarray, "b H W 3"]], Float[Array, "b r c d"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """Limits that change no score, only where features live.

    Attributes:
        host_gib: features of a split beyond this lie in a temporary file.
        device_gib: features of a split beyond this go to the device a few batches at a time.
        batch_size: images encoded at once.
        num_threads: threads that decode and resize images.
    """

    host_gib: float = 4.0
    device_gib: float = 1.0
    batch_size: int = 8
    num_threads: int = 2

    def batches(
        self,
        split: SegmentationSplit,
        *,
        image_size: tuple[int, int],
        label_size: tuple[int, int] | None,
        progress: Progress | None = None,
    ) -> Iterable[LabeledBatch]:
        """Returns the batches of a split, shown in a progress bar if there is one."""
        batches = split.batches(
            self.batch_size, image_size=image_size, label_size=label_size, num_threads=self.num_threads
        )
        if progress is None:
            return batches
        return progress.track(batches, total=-(-len(split) // self.batch_size), description=f"features of {split.name}")


class LabeledTokens(NamedTuple):
    """Frozen tokens of a whole split.

    Attributes:
        tokens: of each image `[n r c d]` float16; an array, or a memory-mapped temporary file.
        labels: of each image, all of one size `[n h w]`.
    """

    tokens: np.ndarray
    labels: UInt8[np.ndarray, "n h w"]


def make_extract_fn(backbone: VisionTransformer, dtype: Any = jnp.float32) -> ExtractFn:
    """Returns a jitted function of (params, images uint8) that gives the normalized patch tokens.

    Args:
        backbone: the module; it sees ImageNet-normalized images.
        dtype: of the tokens that are returned.
    """

    @jax.jit
    def extract(params: Any, images: UInt8[Array | np.ndarray, "b H W 3"]) -> Float[Array, "b r c d"]:
        rows, columns = patch_grid((images.shape[1], images.shape[2]), backbone.patch_size)
        patches = backbone.apply({"params": params}, normalize(images)).patches  # pyright: ignore
        return patches.reshape(images.shape[0], rows, columns, -1).astype(dtype)

    return extract


def collect_tokens(
    extract_fn: ExtractFn,
    params: Any,
    split: SegmentationSplit,
    *,
    image_size: tuple[int, int],
    label_size: tuple[int, int],
    budget: MemoryBudget,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> LabeledTokens:
    """Encodes a whole split; half precision, on disk if it is larger than the budget.

    Args:
        extract_fn: see `make_extract_fn`.
        params: of the backbone.
        split: the labeled images.
        image_size: height and width that images are resized to.
        label_size: and labels.
        budget: of memory.
        folder: for the temporary file; by default the system's.
        progress: shows the batches.
    """
    tokens, labels, start = None, [], 0
    for batch in budget.batches(split, image_size=image_size, label_size=label_size, progress=progress):
        encoded = np.asarray(extract_fn(params, batch.images))[: len(batch.labels)]
        if tokens is None:
            tokens = allocate((len(split), *encoded.shape[1:]), budget, folder)
        tokens[start : start + len(encoded)] = encoded
        labels += batch.labels
        start += len(encoded)
    assert tokens is not None, "a split holds one image or more"
    return LabeledTokens(tokens, np.stack(labels))


def allocate(shape: tuple[int, ...], budget: MemoryBudget, folder: Path | None, dtype: Any = np.float16) -> np.ndarray:
    """Returns an empty array, in a temporary file without a name if it is larger than the budget of the host.

    Args:
        shape: of the array.
        budget: of memory.
        folder: for the file; by default the system's.
        dtype: of its numbers.
    """
    if np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64) <= budget.host_gib * 2**30:
        return np.empty(shape, dtype)
    # The file has no name any more: it goes away with the array, even after a crash.
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype, "w+", shape=shape)

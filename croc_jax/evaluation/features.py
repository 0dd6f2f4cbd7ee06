"""Frozen features of labeled images: encoded batch by batch, in bounded memory, once for several protocols."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8
from rich.progress import Progress

from croc_jax.data.labeled.classes import ClassificationSplit
from croc_jax.data.labeled.segmentation import SegmentationSplit
from croc_jax.data.photometric import normalize
from croc_jax.evaluation.mmap import release_pages
from croc_jax.models import Backbone, patch_grid

# Vectors that can stand for a whole image.
POOLINGS = ("cls", "mean", "cls_mean")

Images = UInt8[Array | np.ndarray, "b H W 3"]
ExtractFn = Callable[[Any, Images], Float[Array, "b r c d"]]
PoolFn = Callable[[Any, Images], Float[Array, "b d"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """Limits that change no score, only where features are stored.

    Attributes:
        host_gib: features beyond this go to a temporary file.
        device_gib: features of a split beyond this go to the device a few batches at a time.
        batch_size: images encoded at once.
        num_threads: threads that decode and resize images.
    """

    host_gib: float = 3.0
    device_gib: float = 1.0
    batch_size: int = 8
    num_threads: int = 2

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for limits that cannot work."""
        for name in ("batch_size", "num_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be 1 or more")


class TokenBatch(NamedTuple):
    """Float16 tokens of a batch of constant size, padded, and one array of labels for each real image."""

    tokens: Float[Array | np.ndarray, "b r c d"]
    labels: list[UInt8[np.ndarray, "_ _"]]


class LabeledTokens(NamedTuple):
    """Float16 tokens of a whole split, perhaps memory-mapped, and labels of one size."""

    tokens: Float[np.ndarray, "n r c d"]
    labels: UInt8[np.ndarray, "n h w"]


class ImageFeatures(NamedTuple):
    """One float32 vector for each image of a split, perhaps memory-mapped, and the class of each."""

    features: Float[np.ndarray, "n d"]
    labels: Int32[np.ndarray, " n"]


# Cached, so that another instance, or the same one with later weights, compiles nothing anew.
@functools.lru_cache(maxsize=8)
def make_extract_fn(backbone: Backbone, dtype: Any = jnp.float32) -> ExtractFn:
    """Returns a jitted function of (params, images uint8) that gives the normalized patch tokens.

    Args:
        backbone: module; it gets ImageNet-normalized images.
        dtype: type of the tokens that are returned.
    """

    @jax.jit
    def extract(params: Any, images: Images) -> Float[Array, "b r c d"]:
        rows, columns = patch_grid((images.shape[1], images.shape[2]), backbone.patch_size)
        patches = backbone.apply({"params": params}, normalize(jnp.asarray(images))).patches  # pyright: ignore
        return patches.reshape(images.shape[0], rows, columns, -1).astype(dtype)

    return extract


@functools.lru_cache(maxsize=8)
def make_pool_fn(backbone: Backbone) -> PoolFn:
    """Returns a jitted function of (params, images uint8) that gives [CLS] and the mean patch token, concatenated.

    Args:
        backbone: module; it gets ImageNet-normalized images.
    """

    @jax.jit
    def pool(params: Any, images: Images) -> Float[Array, "b d"]:
        tokens: Any = backbone.apply({"params": params}, normalize(jnp.asarray(images)))
        return jnp.concatenate([tokens.cls, jnp.mean(tokens.patches, axis=1)], axis=-1)

    return pool


@dataclasses.dataclass
class FrozenFeatures:
    """A frozen backbone that encodes labeled images.

    Attributes:
        module: module of the backbone.
        params: its weights, on one device or sharded over several of this process.
        budget: limits of memory.
        folder: folder of temporary files for features beyond the budget; by default the system's.
        progress: shows what takes time, if there is one.
        remember: whether to keep the features of every split and image size, so that the next protocol need not
            encode them again. No score depends on it.
    """

    module: Backbone
    params: Any
    _: dataclasses.KW_ONLY
    budget: MemoryBudget = MemoryBudget()
    folder: Path | None = None
    progress: Progress | None = None
    remember: bool = False

    def __post_init__(self) -> None:
        """Encodes nothing yet."""
        self._known: dict[Any, Any] = {}
        self._kept_bytes = 0

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Returns the rows and columns of patches of an image.

        Args:
            image_size: height and width.

        Raises:
            ValueError: if whole patches do not tile it.
        """
        try:
            return patch_grid(image_size, self.module.patch_size)
        except ValueError as error:
            raise ValueError(f"image_size={image_size}: {error}") from error

    def token_batches(
        self, split: SegmentationSplit, *, image_size: tuple[int, int], label_size: tuple[int, int] | None
    ) -> Iterator[TokenBatch]:
        """Yields the tokens of a split in order.

        Args:
            split: labeled images.
            image_size: height and width that images are resized to.
            label_size: height and width that labels are resized to; None leaves each at its own size.

        Raises:
            ValueError: if whole patches do not tile the images, or a file cannot be used.
        """
        grid = self.grid(image_size)
        if not self.remember:
            for batch in self._batches(split, image_size=image_size, label_size=label_size):
                yield TokenBatch(self._encode(batch.images), batch.labels)
            return
        key, size = _key(split, image_size), self.budget.batch_size
        if key not in self._known:
            self.collect_tokens(split, image_size=image_size, label_size=grid)
        tokens = self._known[key]
        for number, labels in enumerate(self._label_batches(split, label_size)):
            part = tokens[number * size : (number + 1) * size]
            padded = np.zeros((size, *tokens.shape[1:]), tokens.dtype)
            padded[: len(part)] = part
            release_pages(tokens)
            yield TokenBatch(padded, labels)

    def collect_tokens(
        self, split: SegmentationSplit, *, image_size: tuple[int, int], label_size: tuple[int, int]
    ) -> LabeledTokens:
        """Returns the tokens and labels of a whole split; arguments and errors as for `token_batches`."""
        grid, key, labels, start = self.grid(image_size), _key(split, image_size), [], 0
        if key in self._known:
            for batch in self._label_batches(split, label_size):
                labels += batch
            return LabeledTokens(self._known[key], np.stack(labels))
        tokens = self._allocate((len(split), *grid, self.module.width), np.float16)
        for batch in self._batches(split, image_size=image_size, label_size=label_size):
            count = len(batch.labels)
            tokens[start : start + count] = np.asarray(self._encode(batch.images))[:count]
            release_pages(tokens)
            labels += batch.labels
            start += count
        if self.remember:
            self._known[key] = tokens
        return LabeledTokens(tokens, np.stack(labels))

    def collect_pooled(
        self, split: ClassificationSplit, *, pooling: str, resize: int, image_size: int
    ) -> ImageFeatures:
        """Returns one vector for each image of a split.

        Args:
            split: images with classes.
            pooling: "cls" (the normalized [CLS] token), "mean" (of the normalized patch tokens) or "cls_mean" (both
                concatenated; DINO's `avgpool_patchtokens`).
            resize: see `ClassificationSplit.load`.
            image_size: see `ClassificationSplit.load`.

        Raises:
            ValueError: for another pooling, if whole patches do not tile the images, or an image cannot be read.
        """
        check_pooling(pooling, resize, image_size)
        self.grid((image_size, image_size))
        key, width = (split.root.resolve(), split.name, resize, image_size), self.module.width
        wanted = {"cls": slice(0, width), "mean": slice(width, None), "cls_mean": slice(None)}[pooling]
        if key not in self._known:
            # What is remembered serves every pooling.
            stored = slice(None) if self.remember else wanted
            found = self._pool(split, stored, resize=resize, image_size=image_size)
            if not self.remember:
                return found
            self._known[key] = found
        both, labels = self._known[key]
        return ImageFeatures(both[:, wanted], labels)

    def _encode(self, images: Images) -> Float[Array, "b r c d"]:
        return make_extract_fn(self.module, jnp.float16)(self.params, images)

    def _pool(self, split: ClassificationSplit, stored: slice, *, resize: int, image_size: int) -> ImageFeatures:
        dim = len(range(*stored.indices(2 * self.module.width)))
        features, labels, start = self._allocate((len(split), dim), np.float32), [], 0
        for batch in self._batches(split, resize=resize, image_size=image_size):
            count, pooled = len(batch.labels), make_pool_fn(self.module)(self.params, batch.images)
            features[start : start + count] = np.asarray(pooled)[:count, stored]
            release_pages(features)
            labels.append(batch.labels)
            start += count
        return ImageFeatures(features, np.concatenate(labels, dtype=np.int32))

    def _batches(self, split: SegmentationSplit | ClassificationSplit, **sizes: Any) -> Iterator[Any]:
        budget = self.budget
        yield from self._track(split.batches(budget.batch_size, num_threads=budget.num_threads, **sizes), split)

    def _label_batches(self, split: SegmentationSplit, size: tuple[int, int] | None) -> Iterator[Any]:
        budget = self.budget
        loaded = split.label_batches(budget.batch_size, label_size=size, num_threads=budget.num_threads)
        yield from self._track(loaded, split)

    def _track(self, batches: Iterable[Any], split: SegmentationSplit | ClassificationSplit) -> Iterable[Any]:
        if self.progress is None:
            return batches
        total = -(-len(split) // self.budget.batch_size)
        return self.progress.track(batches, total=total, description=f"batches of {split.name}")

    def _allocate(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Returns an array, in a temporary file without a name where the budget of the host ends."""
        size = np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
        if self._kept_bytes + size <= self.budget.host_gib * 2**30:
            self._kept_bytes += size * self.remember
            return np.empty(shape, dtype)
        # Without a name, the file goes away with the array, even after a crash.
        with tempfile.TemporaryFile(dir=self.folder) as file:
            return np.memmap(file, dtype, "w+", shape=shape)


def _key(split: SegmentationSplit, image_size: tuple[int, int]) -> tuple:
    return tuple(pair.image for pair in split.pairs), image_size


def check_pooling(pooling: str, resize: int, image_size: int) -> None:
    """Raises ValueError, naming the field and the value, for vectors that cannot be computed."""
    if pooling not in POOLINGS:
        raise ValueError(f"feature={pooling!r}: choose one of {', '.join(POOLINGS)}")
    if not 0 < image_size <= resize:
        raise ValueError(f"image_size={image_size}, resize={resize}: the crop must lie within the resized image")

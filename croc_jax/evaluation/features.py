"""Frozen features of labeled images: encoded batch by batch, in bounded memory, once for several protocols."""

import dataclasses
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
from croc_jax.evaluation.paging import release_pages
from croc_jax.models import Backbone, patch_grid

# What one image can be summed up by.
POOLINGS = ("cls", "mean", "cls_mean")

Images = UInt8[Array | np.ndarray, "b H W 3"]
ExtractFn = Callable[[Any, Images], Float[Array, "b r c d"]]
PoolFn = Callable[[Any, Images], Float[Array, "b d"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """Limits that change no score, only where features live.

    Attributes:
        host_gib: features beyond this lie in a temporary file.
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
    """Tokens of a batch of constant size; after the last image of a split they mean nothing.

    Attributes:
        tokens: float16.
        labels: one array a real image, so their number tells how many images are real.
    """

    tokens: Float[Array | np.ndarray, "b r c d"]
    labels: list[UInt8[np.ndarray, "_ _"]]


class LabeledTokens(NamedTuple):
    """Frozen tokens of a whole split.

    Attributes:
        tokens: of each image `[n r c d]` float16; an array, or a memory-mapped temporary file.
        labels: of each image, all of one size `[n h w]`.
    """

    tokens: np.ndarray
    labels: UInt8[np.ndarray, "n h w"]


class ImageFeatures(NamedTuple):
    """One frozen vector an image of a whole split.

    Attributes:
        features: float32; an array, or a memory-mapped temporary file.
        labels: the class of each image.
    """

    features: Float[np.ndarray, "n d"]
    labels: Int32[np.ndarray, " n"]


def make_extract_fn(backbone: Backbone, dtype: Any = jnp.float32) -> ExtractFn:
    """Returns a jitted function of (params, images uint8) that gives the normalized patch tokens.

    Args:
        backbone: the module; it sees ImageNet-normalized images.
        dtype: of the tokens that are returned.
    """

    @jax.jit
    def extract(params: Any, images: Images) -> Float[Array, "b r c d"]:
        rows, columns = patch_grid((images.shape[1], images.shape[2]), backbone.patch_size)
        patches = backbone.apply({"params": params}, normalize(images)).patches  # pyright: ignore
        return patches.reshape(images.shape[0], rows, columns, -1).astype(dtype)

    return extract


def make_pool_fn(backbone: Backbone) -> PoolFn:
    """Returns a jitted function of (params, images uint8) that gives [CLS] and the mean patch token, end to end.

    Args:
        backbone: the module; it sees ImageNet-normalized images.
    """

    @jax.jit
    def pool(params: Any, images: Images) -> Float[Array, "b d"]:
        tokens: Any = backbone.apply({"params": params}, normalize(jnp.asarray(images)))
        return jnp.concatenate([tokens.cls, jnp.mean(tokens.patches, axis=1)], axis=-1)

    return pool


class FrozenFeatures:
    """A frozen backbone at work.

    Attributes:
        module: the backbone.
        params: its weights.
        budget: of memory.
        progress: shows what takes time, if there is one.
    """

    def __init__(
        self,
        module: Backbone,
        params: Any,
        *,
        budget: MemoryBudget | None = None,
        folder: Path | None = None,
        progress: Progress | None = None,
        remember: bool = False,
    ) -> None:
        """Encodes nothing yet.

        Args:
            module: the backbone.
            params: its weights.
            budget: of memory.
            folder: for temporary files of features beyond the budget; by default the system's.
            progress: shows what takes time.
            remember: whether to keep the features of every split and image size, so that the next
                protocol need not encode them again. No score depends on it.
        """
        self.module, self.params, self.progress = module, params, progress
        self.budget = budget or MemoryBudget()
        self._folder, self._remember = folder, remember
        self._known: dict[Any, Any] = {}
        self._kept_bytes = 0
        self._extract_fn, self._pool_fn = make_extract_fn(module, jnp.float16), make_pool_fn(module)

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
            label_size: alike for labels; None leaves each at its own size.

        Raises:
            ValueError: if whole patches do not tile the images.
            LabeledDataError: see `SegmentationSplit.load`.
        """
        grid = self.grid(image_size)
        key = tuple(pair.image for pair in split.pairs), image_size
        if key in self._known:
            yield from self._recall(self._known[key], split, label_size)
            return
        shape = (len(split), *grid, self.module.width)
        kept, start = self._allocate(shape, np.float16) if self._remember else None, 0
        sizes = {"image_size": image_size, "label_size": label_size}
        for batch in self._track(split.batches(self.budget.batch_size, **sizes, **self._threads), split):
            tokens, count = self._extract_fn(self.params, batch.images), len(batch.labels)
            if kept is not None:
                kept[start : start + count] = np.asarray(tokens)[:count]
                release_pages(kept)
            start += count
            yield TokenBatch(tokens, batch.labels)
        if kept is not None:
            self._known[key] = kept

    def collect_tokens(
        self, split: SegmentationSplit, *, image_size: tuple[int, int], label_size: tuple[int, int]
    ) -> LabeledTokens:
        """Returns the tokens and labels of a whole split; arguments and errors as for `token_batches`."""
        shape = (len(split), *self.grid(image_size), self.module.width)
        key = tuple(pair.image for pair in split.pairs), image_size
        own = None if self._remember else self._allocate(shape, np.float16)
        labels, start = [], 0
        for batch in self.token_batches(split, image_size=image_size, label_size=label_size):
            count = len(batch.labels)
            if own is not None:
                own[start : start + count] = np.asarray(batch.tokens)[:count]
                release_pages(own)
            labels += batch.labels
            start += count
        return LabeledTokens(self._known[key] if own is None else own, np.stack(labels))

    def collect_pooled(
        self, split: ClassificationSplit, *, pooling: str, resize: int, image_size: int
    ) -> ImageFeatures:
        """Returns one vector for each image of a split.

        Args:
            split: images with classes.
            pooling: "cls" (the normalized [CLS] token), "mean" (of the normalized patch tokens) or
                "cls_mean" (both, one after the other; DINO's `avgpool_patchtokens`).
            resize: see `ClassificationSplit.load`.
            image_size: see `ClassificationSplit.load`.

        Raises:
            ValueError: for another pooling, or if whole patches do not tile the images.
            LabeledDataError: for an image that cannot be read.
        """
        check_pooling(pooling, resize, image_size)
        self.grid((image_size, image_size))
        key = split.root.resolve(), split.name, resize, image_size
        width = self.module.width
        wanted = {"cls": slice(0, width), "mean": slice(width, None), "cls_mean": slice(None)}[pooling]
        if key in self._known:
            both, labels = self._known[key]
            return ImageFeatures(both[:, wanted], labels)
        stored = slice(None) if self._remember else wanted
        features, labels = self._pool(split, stored, resize=resize, image_size=image_size)
        if self._remember:
            self._known[key] = features, labels
            features = features[:, wanted]
        return ImageFeatures(features, labels)

    def _pool(
        self, split: ClassificationSplit, stored: slice, *, resize: int, image_size: int
    ) -> tuple[np.ndarray, Int32[np.ndarray, " n"]]:
        dim = len(range(*stored.indices(2 * self.module.width)))
        features, labels, start = self._allocate((len(split), dim), np.float32), [], 0
        batches = split.batches(self.budget.batch_size, resize=resize, image_size=image_size, **self._threads)
        for batch in self._track(batches, split):
            count = len(batch.labels)
            features[start : start + count] = np.asarray(self._pool_fn(self.params, batch.images))[:count, stored]
            release_pages(features)
            labels.append(batch.labels)
            start += count
        return features, np.concatenate(labels)

    def _recall(
        self, tokens: np.ndarray, split: SegmentationSplit, label_size: tuple[int, int] | None
    ) -> Iterator[TokenBatch]:
        size, start = self.budget.batch_size, 0
        for labels in self._track(split.label_batches(size, label_size=label_size, **self._threads), split):
            part = tokens[start : start + size]
            padded = np.zeros((size, *tokens.shape[1:]), tokens.dtype)
            padded[: len(part)] = part
            release_pages(tokens)
            start += size
            yield TokenBatch(padded, labels)

    @property
    def _threads(self) -> dict[str, Any]:
        return {"num_threads": self.budget.num_threads}

    def _track(self, batches: Iterable[Any], split: SegmentationSplit | ClassificationSplit) -> Iterable[Any]:
        if self.progress is None:
            return batches
        return _advance(self.progress, batches, split)

    def _allocate(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Returns an array, in a temporary file without a name where the budget of the host ends."""
        size = np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
        if self._kept_bytes + size <= self.budget.host_gib * 2**30:
            self._kept_bytes += size * self._remember
            return np.empty(shape, dtype)
        # The file has no name any more: it goes away with the array, even after a crash.
        with tempfile.TemporaryFile(dir=self._folder) as file:
            return np.memmap(file, dtype, "w+", shape=shape)


def _advance(progress: Progress, batches: Iterable[Any], split: SegmentationSplit | ClassificationSplit) -> Iterator:
    task, done = progress.add_task(f"images of {split.name}", total=len(split)), 0
    for batch in batches:
        yield batch
        done += len(batch if isinstance(batch, list) else batch.labels)
        progress.update(task, completed=done)


def check_pooling(pooling: str, resize: int, image_size: int) -> None:
    """Raises ValueError, naming the field and the value, for vectors that cannot be made."""
    if pooling not in POOLINGS:
        raise ValueError(f"feature={pooling!r}: choose one of {', '.join(POOLINGS)}")
    if not 0 < image_size <= resize:
        raise ValueError(f"image_size={image_size}, resize={resize}: the crop must lie within the resized image")

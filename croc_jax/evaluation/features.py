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
from jaxtyping import Array, Float, Int32, Real, UInt8
from rich.progress import Progress

from croc_jax.data.labeled.classes import ClassificationSplit
from croc_jax.data.labeled.segmentation import SegmentationSplit
from croc_jax.data.photometric import normalize
from croc_jax.evaluation.mmap import release_pages
from croc_jax.evaluation.settings import PoolingConfig, check_positive
from croc_jax.models import Backbone, patch_grid

Images = Real[Array | np.ndarray, "b H W c"]
Params = Any  # A tree of arrays.


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
        check_positive(self, "batch_size", "num_threads")


class LabeledTokens(NamedTuple):
    """Float16 tokens of a whole split, perhaps memory-mapped, and labels of one size."""

    tokens: Float[np.ndarray, "n r c d"]
    labels: UInt8[np.ndarray, "n h w"]


class ImageFeatures(NamedTuple):
    """One float32 vector for each image of a split, perhaps memory-mapped, and the class of each."""

    features: Float[np.ndarray, "n d"]
    labels: Int32[np.ndarray, " n"]


def check_finite(features: Array, of: str) -> None:
    """Raises ValueError if features are infinite or NaN, which any score would hide."""
    if not jnp.isfinite(features).all():
        raise ValueError(
            f"the features of {of} are not finite: the weights hold NaN, or the features exceed their precision "
            f"({features.dtype}); use another checkpoint"
        )


# Cached, so that another instance, or the same one with later weights, compiles nothing anew.
@functools.lru_cache(maxsize=8)
def make_extract_fn(
    backbone: Backbone, dtype: jax.typing.DTypeLike = jnp.float32
) -> Callable[[Params, Images], Float[Array, "b r c d"]]:
    """Returns a jitted function of (params, images) to the normalized patch tokens, as `dtype`."""

    @jax.jit
    def extract(params: Params, images: Images) -> Float[Array, "b r c d"]:
        rows, columns = patch_grid((images.shape[1], images.shape[2]), backbone.patch_size)
        pixels = normalize(jnp.asarray(images), backbone.image_mean, backbone.image_std, backbone.pixels)
        patches = backbone.apply({"params": params}, pixels).patches
        return patches.reshape(images.shape[0], rows, columns, -1).astype(dtype)

    return extract


@functools.lru_cache(maxsize=8)
def make_pool_fn(backbone: Backbone, pooling: str) -> Callable[[Params, Images], Float[Array, "b d"]]:
    """Returns a jitted function of (params, images) to one vector an image, see `PoolingConfig.feature`."""

    @jax.jit
    def pool(params: Params, images: Images) -> Float[Array, "b d"]:
        pixels = normalize(jnp.asarray(images), backbone.image_mean, backbone.image_std, backbone.pixels)
        tokens = backbone.apply({"params": params}, pixels)
        known = {"cls": tokens.cls, "mean": jnp.mean(tokens.patches, axis=1)}
        return jnp.concatenate([known[name] for name in pooling.split("_")], axis=-1)

    return pool


@dataclasses.dataclass
class FrozenFeatures:
    """A frozen backbone that encodes labeled images.

    Attributes:
        module: module of the backbone.
        params: its weights, on one device or sharded over several of this process.
        budget: limits of memory.
        folder: folder of temporary files for features beyond the budget; by default the system's.
        progress: progress bars to add to, if any.
        remember: whether to keep the features of every split and image size, so that the next protocol need not
            encode them again. No score depends on it.
    """

    module: Backbone
    params: Params
    _: dataclasses.KW_ONLY
    budget: MemoryBudget = MemoryBudget()
    folder: Path | None = None
    progress: Progress | None = None
    remember: bool = False

    def __post_init__(self) -> None:
        """Encodes nothing yet."""
        self._tokens: dict[object, np.ndarray] = {}
        self._pooled: dict[object, ImageFeatures] = {}
        self._kept_bytes = 0

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Returns the rows and columns of patches of an image; ValueError if whole patches do not tile it."""
        try:
            return patch_grid(image_size, self.module.patch_size)
        except ValueError as error:
            raise ValueError(f"image_size={image_size}: {error}") from error

    def token_batches(
        self, split: SegmentationSplit, *, image_size: tuple[int, int], label_size: tuple[int, int] | None
    ) -> Iterator[tuple[Float[Array | np.ndarray, "b r c d"], list[UInt8[np.ndarray, "_ _"]]]]:
        """Yields float16 tokens of batches of constant size, padded, and one array of labels for each real image.

        Args:
            split: labeled images.
            image_size: height and width that images are resized to.
            label_size: height and width that labels are resized to; None leaves each at its own size.

        Raises:
            ValueError: if whole patches do not tile the images, a file cannot be used, or a feature is not finite.
        """
        grid, size = self.grid(image_size), self.budget.batch_size
        if not self.remember:
            extract_fn = make_extract_fn(self.module, jnp.float16)
            for images, labels in self._batches(split, image_size=image_size, label_size=label_size):
                tokens = extract_fn(self.params, images)
                check_finite(tokens, f"the split {split.name}")
                yield tokens, labels
            return
        key = _key(split, image_size)
        if key not in self._tokens:
            self.collect_tokens(split, image_size=image_size, label_size=grid)
        tokens = self._tokens[key]
        for number, labels in enumerate(self._label_batches(split, label_size)):
            padded = np.zeros((size, *tokens.shape[1:]), tokens.dtype)
            padded[: len(labels)] = tokens[number * size : number * size + len(labels)]
            release_pages(tokens)
            yield padded, labels

    def collect_tokens(
        self, split: SegmentationSplit, *, image_size: tuple[int, int], label_size: tuple[int, int]
    ) -> LabeledTokens:
        """Returns the tokens and labels of a whole split; arguments and errors as for `token_batches`."""
        grid, key = self.grid(image_size), _key(split, image_size)
        if key in self._tokens:
            labels = [labels for batch in self._label_batches(split, label_size) for labels in batch]
            return LabeledTokens(self._tokens[key], np.stack(labels))
        tokens = self._allocate((len(split), *grid, self.module.width), np.float16)
        extract_fn = make_extract_fn(self.module, jnp.float16)
        labels = self._fill(tokens, split, extract_fn, image_size=image_size, label_size=label_size)
        if self.remember:
            self._tokens[key] = tokens
        return LabeledTokens(tokens, np.stack(labels))

    def collect_pooled(self, split: ClassificationSplit, config: PoolingConfig) -> ImageFeatures:
        """Returns one vector for each image of a split.

        Raises:
            ValueError: if whole patches do not tile the images, an image cannot be read, or a feature is not finite.
        """
        self.grid((config.image_size, config.image_size))
        key = split.root.resolve(), split.name, config.feature, config.resize, config.image_size
        if key in self._pooled:
            return self._pooled[key]
        features = self._allocate((len(split), self.module.width * len(config.feature.split("_"))), np.float32)
        pool_fn = make_pool_fn(self.module, config.feature)
        labels = self._fill(features, split, pool_fn, resize=config.resize, image_size=config.image_size)
        found = ImageFeatures(features, np.array(labels, np.int32))
        if self.remember:
            self._pooled[key] = found
        return found

    def _fill(
        self,
        features: np.ndarray,
        split: SegmentationSplit | ClassificationSplit,
        encode_fn: Callable[[Params, Images], Array],
        **sizes: Any,
    ) -> list:
        """Writes the features of a split into an array, and returns the label of each image."""
        all_labels = []
        for images, labels in self._batches(split, **sizes):
            part = slice(len(all_labels), len(all_labels) + len(labels))
            encoded = encode_fn(self.params, images)
            check_finite(encoded, f"the split {split.name}")
            features[part] = np.asarray(encoded)[: len(labels)]
            release_pages(features)
            all_labels.extend(labels)
        return all_labels

    def _batches(self, split: SegmentationSplit | ClassificationSplit, **sizes: Any) -> Iterable:
        size, num_threads = self.budget.batch_size, self.budget.num_threads
        return self._track(split.batches(size, num_threads=num_threads, pixels=self.module.pixels, **sizes), split)

    def _label_batches(self, split: SegmentationSplit, label_size: tuple[int, int] | None) -> Iterable:
        size, num_threads, pixels = self.budget.batch_size, self.budget.num_threads, self.module.pixels
        return self._track(
            split.label_batches(size, label_size=label_size, num_threads=num_threads, pixels=pixels), split
        )

    def _track(self, batches: Iterable, split: SegmentationSplit | ClassificationSplit) -> Iterable:
        if self.progress is None:
            return batches
        total = -(-len(split) // self.budget.batch_size)
        return self.progress.track(batches, total=total, description=f"batches of {split.name}")

    def _allocate(self, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
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

"""Embeds all images of a source, batch by batch on all devices of this host, and goes on where it was stopped."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Real

from croc_jax.checkpoints.manifest import flatten_tree
from croc_jax.data.bad_records import UnreadableImagesError, printable
from croc_jax.data.photometric import normalize
from croc_jax.data.prefetch import load_ahead
from croc_jax.data.sources.base import ImageSource
from croc_jax.data.sources.identity import ImageSet
from croc_jax.evaluation.backbones import FrozenBackbone
from croc_jax.evaluation.embedding_files import EmbeddingFiles, Summary
from croc_jax.evaluation.embedding_images import EmbeddingConfig, Loaded, load_image
from croc_jax.evaluation.results import describe_backbone, digest
from croc_jax.evaluation.row_log import RowLog, RowSpec, Skipped
from croc_jax.float32 import in_float32
from croc_jax.models import Backbone, patch_grid
from croc_jax.training.sharding import BATCH_AXES, batch_sharded, make_mesh, replicated, shard_map_batch
from croc_jax.version import __version__

# So many files in a row that are gone are no damaged images: their disk is.
_MAX_GONE = 20


class Embedded(NamedTuple):
    """Features of a batch on the devices: arrays by name, and which of its images have finite ones."""

    arrays: dict[str, Float[Array, "b ..."]]
    finite: Bool[Array, " b"]


# Cached, so that another source compiles nothing anew.
@functools.lru_cache(maxsize=8)
def make_embed_fn(
    module: Backbone, mesh: Mesh, *, patches: bool = False
) -> Callable[[Any, Real[Array, "b H W c"]], Embedded]:
    """Returns a jitted function of (params, images) to [CLS], the mean of the patch tokens, and perhaps these.

    Args:
        module: the backbone.
        mesh: devices, each of which computes its own rows by itself.
        patches: also return the patch tokens `[b n d]` in float16.
    """

    def embed(params: Any, images: Array) -> Embedded:
        normalized = normalize(images, module.image_mean, module.image_std, module.pixels)
        features = module.apply({"params": params}, normalized)
        arrays = {"cls": features.cls, "mean": jnp.mean(features.patches, axis=1)}
        arrays |= {"patches": features.patches.astype(jnp.float16)} if patches else {}
        finite = [jnp.isfinite(array.reshape(len(images), -1)).all(axis=1) for array in arrays.values()]
        return Embedded(arrays, functools.reduce(jnp.logical_and, finite))

    rows = PartitionSpec(BATCH_AXES)
    return jax.jit(in_float32(shard_map_batch(embed, mesh, (PartitionSpec(), rows), rows)))


def describe(backbone: FrozenBackbone, config: EmbeddingConfig, images: ImageSet) -> dict[str, Any]:
    """Returns everything that moves the embeddings, and a digest of it.

    Args:
        backbone: the weights.
        config: the settings.
        images: what identifies the images.

    Raises:
        ValueError: if whole patches do not tile the images.
    """
    module, size = backbone.module, config.image_size
    rows, columns = patch_grid((size, size), module.patch_size)
    settings = {
        "weights": digest_weights(backbone.params),
        "which": backbone.which,
        "step": backbone.step,
        "backbone": describe_backbone(backbone),
        "pixels": dataclasses.asdict(module.pixels),
        "preprocessing": config.preprocessing,
        "features": {
            "width": module.width,
            "patch_grid": [rows, columns] if config.patches else None,
            "tokens": "of the last block, after the final norm; patches in row-major order",
        },
        "images": images.brief,
        "format": config.format,
        "shard_size": config.shard_size if config.format == "parquet" else None,
        "croc_jax": __version__,
    }
    return settings | {"digest": digest(settings)}


def digest_weights(params: Any) -> str:
    """Returns 16 hexadecimal digits that differ wherever the name, the shape or a value of a weight does."""
    sha = hashlib.sha256()
    for name, leaf in sorted(flatten_tree(params).items()):
        array = np.asarray(leaf)
        sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]


def open_files(
    backbone: FrozenBackbone,
    source: ImageSource,
    config: EmbeddingConfig,
    folder: Path,
    *,
    images: ImageSet,
    notes: Mapping[str, Any],
    name_of: Callable[[int], str],
) -> EmbeddingFiles:
    """Returns the files of the embeddings of a source; arguments as for `describe` and `EmbeddingFiles`."""
    settings, width = describe(backbone, config, images), backbone.module.width
    specs = {"index": RowSpec(np.int64), "sizes": RowSpec(np.int32, (2,))}
    specs |= {"cls": RowSpec(np.float32, (width,)), "mean": RowSpec(np.float32, (width,))}
    if config.patches:
        rows, columns = patch_grid((config.image_size, config.image_size), backbone.module.patch_size)
        specs["patches"] = RowSpec(np.float16, (rows * columns, width))
    return EmbeddingFiles(
        folder=folder,
        format=config.format,
        settings=settings,
        notes=notes,
        num_images=len(source),
        shard_size=config.shard_size,
        specs=specs,
        name_of=name_of,
    )


def embed_images(
    backbone: FrozenBackbone,
    source: ImageSource,
    config: EmbeddingConfig,
    files: EmbeddingFiles,
    *,
    batch_size: int,
    num_threads: int,
    show: Callable[[int], None] = lambda num_done: None,
) -> Summary | None:
    """Writes the embeddings of all images that can be read.

    Rows are on their way to the disk after each batch: when the program is killed, the next call computes no finished
    batch again but perhaps the last one. Several programs may work on one folder; each takes parts that no other has.

    Args:
        backbone: the weights.
        source: the images.
        config: the settings.
        files: where the embeddings go, by `open_files`.
        batch_size: images at a time on each device of this process.
        num_threads: threads that decode and resize images.
        show: called with the number of images done, at the start of a part and after each batch.

    Returns:
        What the folder holds, or None if other programs have yet to finish parts of it.

    Raises:
        ValueError: for a folder of other embeddings, features that are not finite, or if no image can be read.
        UnreadableImagesError: if the files of many images in a row are gone.
        OSError: for a fault of the machine, or if the disk is full.
    """
    files.begin()
    parts = files.parts()
    num_done = sum(len(part.images) for part in parts if files.is_done(part))
    encode = _Encoder(backbone, config, batch_size)
    for part in parts:
        if files.is_done(part):
            continue
        with files.claim(part) as log:
            if log is None:
                continue
            num_done += log.num_done
            show(num_done)
            for count in _append_all(
                log, part.images, source, config, encode, name_of=files.name_of, num_threads=num_threads
            ):
                num_done += count
                show(num_done)
            files.finish(part, log)
    # Of several programs, the one that finishes last finds all parts.
    return files.end() if all(map(files.is_done, parts)) else None


class _Encoder:
    """The weights on all devices of this process, and what they compute."""

    def __init__(self, backbone: FrozenBackbone, config: EmbeddingConfig, batch_size: int) -> None:
        mesh = make_mesh(jax.local_devices())
        self.pixels, self.batch_size = backbone.module.pixels, batch_size * mesh.size
        self._shape = (config.image_size, config.image_size, self.pixels.channels)
        self._params = jax.device_put(backbone.params, replicated(mesh))
        self._sharding = batch_sharded(mesh)
        self._embed_fn = make_embed_fn(backbone.module, mesh, patches=config.patches)

    def put(self, batch: list[Loaded]) -> Array:
        """Puts a batch on the devices, with zeros where there is no image, so that all batches compile once."""
        images = np.zeros((self.batch_size, *self._shape), self.pixels.dtype)
        for row, loaded in zip(images, batch, strict=False):
            if loaded.pixels is not None:
                row[:] = loaded.pixels
        return jax.device_put(images, self._sharding)

    def start(self, images: Array) -> Embedded:
        """Starts the computation of a batch; it goes on while the host does something else."""
        return self._embed_fn(self._params, images)


def _append_all(
    log: RowLog,
    images: range,
    source: ImageSource,
    config: EmbeddingConfig,
    encode: _Encoder,
    *,
    name_of: Callable[[int], str],
    num_threads: int,
) -> Iterator[int]:
    """Appends the rows of the images that a log lacks, and yields the number of images of each batch."""
    left, num_gone, num_read = images[log.num_done :], 0, 0
    waiting: tuple[list[Loaded], Embedded] | None = None

    def load(position: int) -> Loaded:
        return load_image(source, left[position], config, encode.pixels)

    # While the devices compute a batch, threads decode the next one, and the one before goes to the disk.
    for batch in load_ahead(load, len(left), encode.batch_size, num_threads=num_threads):
        for loaded in batch:
            num_gone = num_gone + 1 if loaded.is_gone else 0
            if num_gone == _MAX_GONE:
                raise UnreadableImagesError(
                    f"{num_gone} images in a row are gone, such as {printable(name_of(left[num_read]))}: is their "
                    "disk still mounted? If so, leave them out of the source"
                )
            num_read += 1
        on_devices = encode.put(batch)
        if waiting is not None:
            # One at a time: were more under way, a kill would lose more.
            jax.block_until_ready(waiting[1])
        started = encode.start(on_devices)
        if waiting is not None:
            yield _append(log, images, *waiting, name_of=name_of)
        waiting = batch, started
    if waiting is not None:
        yield _append(log, images, *waiting, name_of=name_of)


def _append(
    log: RowLog, images: range, batch: list[Loaded], embedded: Embedded, *, name_of: Callable[[int], str]
) -> int:
    """Appends the rows of a batch to a log; returns the number of its images."""
    indices = images[log.num_done : log.num_done + len(batch)]
    kept = [place for place, loaded in enumerate(batch) if loaded.pixels is not None]
    finite = np.asarray(embedded.finite)
    for place in kept:
        if not finite[place]:
            raise ValueError(
                f"the features of {printable(name_of(indices[place]))} are not finite: the weights hold NaN, or "
                "the features exceed their precision; use another checkpoint"
            )
    rows = {name: np.asarray(array)[kept] for name, array in embedded.arrays.items()}
    rows["index"] = np.array([indices[place] for place in kept], np.int64)
    rows["sizes"] = np.array([batch[place].size for place in kept], np.int32).reshape(-1, 2)
    skipped = [
        Skipped(name_of(index), loaded.reason)
        for index, loaded in zip(indices, batch, strict=True)
        if loaded.pixels is None
    ]
    log.append(rows, num_done=log.num_done + len(batch), skipped=skipped)
    return len(batch)

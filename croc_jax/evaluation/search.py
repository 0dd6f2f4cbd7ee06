"""Exact nearest neighbors, in chunks, for k-NN classification, dense retrieval and k-NN segmentation."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int
from rich.progress import Progress

from croc_jax.evaluation.mmap import release_pages
from croc_jax.unit import unit, unit_scale

# Rows of the bank, and of host queries, whose similarities are on the device at once: 64 MiB.
BANK_CHUNK, QUERY_CHUNK = 16384, 1024

l2_normalize = jax.jit(unit)


# The factors of vectors to unit length. Their last digits depend on the shape of a batch: who needs the same bits
# whatever the chunks computes them once.
length_scales = jax.jit(unit_scale)


class Scaled(NamedTuple):
    """Vectors in few bits, and the factors that give them unit length in float32."""

    vectors: Float[np.ndarray, "m d"]
    scales: Float[np.ndarray, " m"]


class Metric(NamedTuple):
    """Two maps to vectors whose dot product orders the rows of a bank; arguments are chunks of the arrays searched."""

    embed_queries: Callable[..., Array]
    embed_bank: Callable[..., Array]


@jax.jit
def _scale(vectors: Float[Array, "m d"], scales: Float[Array, " m"]) -> Float[Array, "m d"]:
    return vectors.astype(jnp.float32) * scales[:, None]


COSINE, COSINE_SCALED = Metric(l2_normalize, l2_normalize), Metric(_scale, _scale)


class Neighbors(NamedTuple):
    """The nearest rows of a bank for each query, nearest first; of equal ones the lower row comes first."""

    similarities: Float[Array | np.ndarray, "q n"]
    indices: Int[Array | np.ndarray, "q n"]


@functools.partial(jax.jit, static_argnames="count")
def nearest_neighbors(queries: Float[Array, "q d"], bank: Float[Array, "m d"], *, count: int) -> Neighbors:
    """Returns the `count` rows of a bank, at most all, with the largest dot products with each query.

    The bank is on the device; rows past its end have a similarity of minus infinity.
    """
    size = min(BANK_CHUNK, len(bank))

    def search_chunk(best: Neighbors, start: Array) -> tuple[Neighbors, None]:
        # The last chunk begins early enough to be whole; rows that an earlier chunk had do not count again.
        begin = jnp.minimum(start, len(bank) - size)
        rows = begin + jnp.arange(size)
        chunk = jax.lax.dynamic_slice_in_dim(bank, begin, size)
        similarities = jnp.matmul(queries, chunk.T, precision=jax.lax.Precision.HIGHEST)
        found, places = jax.lax.top_k(jnp.where(rows >= start, similarities, -jnp.inf), min(count, size))
        return _merge(best, Neighbors(found, begin + places), count), None

    shape = (len(queries), count)
    best = Neighbors(jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))
    return jax.lax.scan(search_chunk, best, jnp.arange(0, len(bank), size))[0]


def search_host(
    queries: tuple[np.ndarray, ...],
    bank: tuple[np.ndarray, ...],
    *,
    count: int,
    device_gib: float,
    metric: Metric = COSINE,
    allocate_fn: Callable[[tuple[int, ...], type[np.generic]], np.ndarray] = np.empty,
    progress: Progress | None = None,
) -> Neighbors:
    """Returns the nearest rows of a bank for queries of any number; both lie in host memory or in files.

    The bank goes to the devices in parts; the queries in chunks, of which each local device gets its own. The sizes of
    both change no dot product.

    Args:
        queries: arrays with one row for each query, the vectors first.
        bank: likewise, one row for each row of the bank.
        count: neighbors of each query, or all rows if the bank has fewer.
        device_gib: rows of the bank, in float32, that a device holds at a time; at least `BANK_CHUNK` rows.
        metric: makes the vectors to compare from both.
        allocate_fn: makes the arrays of the result.
        progress: progress bars to add to, if any.
    """
    num_queries, (num_rows, width) = len(queries[0]), bank[0].shape
    count, rows = min(count, num_rows), max(int(device_gib * 2**30 / (4 * width)), BANK_CHUNK)
    # As many devices as there are whole chunks for.
    devices = jax.local_devices()[: max(num_queries // QUERY_CHUNK, 1)]
    mesh, step = Mesh(np.array(devices), ("data",)), QUERY_CHUNK * len(devices)
    everywhere, shared_out = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    best = [allocate_fn((num_queries, count), kind) for kind in (np.float32, np.int32)]
    best[0][:], best[1][:] = -np.inf, 0
    starts = [(first, start) for first in range(0, num_rows, rows) for start in range(0, num_queries, step)]
    part = jnp.zeros((0, width))
    for first, start in progress.track(starts, description="chunks of queries") if progress else starts:
        if not start:
            del part  # It leaves the devices before the next one comes.
            part = metric.embed_bank(*jax.device_put([of[first : first + rows] for of in bank], everywhere))
        chunk = slice(start, min(start + step, num_queries))
        asked = jax.device_put([_pad(of[chunk], step) for of in queries], shared_out)
        found = _search_shards(metric.embed_queries(*asked), part, count=min(count, len(part)), mesh=mesh)
        known = Neighbors(*(_pad(of[chunk], step) for of in best))
        found = _merge(known, found._replace(indices=first + found.indices), count)
        for array, values in zip(best, found, strict=True):
            array[chunk] = np.asarray(values)[: chunk.stop - start]
        for array in (*best, *queries, *bank):
            release_pages(array)
    return Neighbors(*best)


@functools.partial(jax.jit, static_argnames=("count", "mesh"))
def _search_shards(queries: Float[Array, "q d"], bank: Float[Array, "m d"], *, count: int, mesh: Mesh) -> Neighbors:
    """Each device searches the whole bank for its own queries."""
    search = functools.partial(nearest_neighbors, count=count)
    specs = (PartitionSpec("data"), PartitionSpec())
    # The scan's carry starts equal on all devices, which the check of shard_map does not allow.
    return jax.shard_map(search, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(queries, bank)


def _pad(array: np.ndarray, rows: int) -> np.ndarray:
    padded = np.zeros((rows, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


@functools.partial(jax.jit, static_argnums=2)
def _merge(first: Neighbors, second: Neighbors, count: int) -> Neighbors:
    values, indices = (jnp.concatenate(parts, axis=1) for parts in zip(first, second, strict=True))
    values, order = jax.lax.top_k(values, min(count, values.shape[1]))
    return Neighbors(values, jnp.take_along_axis(indices, order, axis=1))

"""Exact nearest neighbors by cosine similarity, in chunks, for k-NN classification and dense retrieval."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from croc_jax.unit import unit

# Rows of the bank, and of host queries, whose similarities are on the device at once: 64 MiB.
BANK_CHUNK, QUERY_CHUNK = 16384, 1024

l2_normalize = jax.jit(unit)


class Neighbors(NamedTuple):
    """The nearest rows of a bank for each query, nearest first; of equal ones the lower row comes first."""

    similarities: Float[Array | np.ndarray, "q n"]
    indices: Int[Array | np.ndarray, "q n"]


@functools.partial(jax.jit, static_argnames="count")
def nearest_neighbors(queries: Float[Array, "q d"], bank: Float[Array, "m d"], *, count: int) -> Neighbors:
    """Returns the `count` rows of a bank, at most all, with the largest dot products with each query.

    All vectors have unit length, and the bank is on the device.
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
    queries: Float[np.ndarray, "q d"], bank: Float[np.ndarray, "m d"], *, count: int, device_gib: float
) -> Neighbors:
    """Returns the nearest rows of a bank that lies in host memory or in a file, of vectors of any length.

    Rows of the bank take at most `device_gib` on the device at a time.
    """
    rows = max(int(device_gib * 2**30 / bank[0].nbytes), BANK_CHUNK)
    padded = np.zeros((-(-len(queries) // QUERY_CHUNK) * QUERY_CHUNK, queries.shape[1]), np.float32)
    padded[: len(queries)] = queries
    chunks = [l2_normalize(chunk) for chunk in np.split(padded, range(QUERY_CHUNK, len(padded), QUERY_CHUNK))]
    best: list[Neighbors] = []
    for start in range(0, len(bank), rows):
        part = l2_normalize(bank[start : start + rows])
        found = [nearest_neighbors(chunk, part, count=min(count, len(part))) for chunk in chunks]
        found = [Neighbors(values, start + indices) for values, indices in found]
        best = [_merge(*pair, count) for pair in zip(best, found, strict=True)] if best else found
    return Neighbors(*(np.concatenate(parts)[: len(queries)] for parts in zip(*best, strict=True)))


@functools.partial(jax.jit, static_argnums=2)
def _merge(first: Neighbors, second: Neighbors, count: int) -> Neighbors:
    values, indices = (jnp.concatenate(parts, axis=1) for parts in zip(first, second, strict=True))
    values, order = jax.lax.top_k(values, min(count, values.shape[1]))
    return Neighbors(values, jnp.take_along_axis(indices, order, axis=1))

"""K-means on any number of tokens: in chunks, on all devices, from k-means++ starts."""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from croc_jax.evaluation.mmap import release_pages
from croc_jax.evaluation.search import l2_normalize

# The start considers at most this many tokens, drawn at random.
START_TOKENS = 65536
# It ends once the centroids move by less, as a share of the tokens' mean variance (as in scikit-learn).
TOLERANCE = 1e-4
CHUNK = 65536


class KMeansFit(NamedTuple):
    """Centroids, the sum of the squared distances of all tokens to theirs, and the iterations of Lloyd's algorithm."""

    centroids: Float[np.ndarray, "k d"]
    inertia: float
    iterations: int


def fit_kmeans(
    tokens: Float[np.ndarray, "n d"],
    num_clusters: int,
    *,
    seed: int,
    max_iterations: int = 100,
    unit_length: bool = False,
    chunk: int = CHUNK,
    mesh: Mesh | None = None,
) -> KMeansFit:
    """Returns centroids of tokens; a cluster that becomes empty restarts at the token that fits worst.

    Args:
        tokens: tokens in any precision, in memory or memory-mapped.
        num_clusters: number of clusters K.
        seed: seed of the start.
        max_iterations: most iterations of Lloyd's algorithm.
        unit_length: whether tokens are scaled to unit length first; centroids are not.
        chunk: tokens on the devices at a time.
        mesh: mesh to spread each chunk over.

    Raises:
        ValueError: for fewer tokens than clusters.
    """
    if len(tokens) < num_clusters:
        raise ValueError(f"num_clusters={num_clusters}: more than the {len(tokens)} tokens")
    rng = np.random.default_rng(seed)
    sample = tokens[np.sort(rng.choice(len(tokens), min(len(tokens), START_TOKENS), replace=False))]
    sample = _prepare(jnp.asarray(sample), unit_length)
    centroids = _plus_plus(sample, jax.random.key(int(rng.integers(2**31))), num_clusters=num_clusters)
    least_move = TOLERANCE * float(jnp.mean(jnp.var(sample, axis=0)))
    iterations, shift = 0, math.inf
    while iterations < max_iterations and shift > least_move:
        iterations += 1
        *moments, _ = _lloyd_pass(tokens, centroids, unit_length, chunk, mesh)
        moved = _move(*moments, centroids)
        shift, centroids = float(jnp.sum((moved - centroids) ** 2)), moved
    *_, inertia = _lloyd_pass(tokens, centroids, unit_length, chunk, mesh)
    return KMeansFit(np.asarray(centroids), float(inertia), iterations)


def assign_clusters(
    tokens: Float[np.ndarray, "n d"],
    centroids: Float[np.ndarray, "k d"],
    *,
    unit_length: bool = False,
    chunk: int = CHUNK,
) -> Int[np.ndarray, " n"]:
    """Returns the nearest centroid of each token; arguments as for `fit_kmeans`."""
    nearest = jax.jit(lambda x, c: jnp.argmin(_squared_distances(_prepare(x, unit_length), c), axis=1))
    chunks = _chunks(tokens, chunk, None)
    return np.concatenate([np.asarray(nearest(x, centroids))[: int(counted.sum())] for x, counted in chunks])


def _lloyd_pass(
    tokens: np.ndarray, centroids: Array, unit_length: bool, chunk: int, mesh: Mesh | None
) -> tuple[Array, Array, Array, Array, Array]:
    """Returns sums and counts of all clusters, the farthest token of each chunk, its distance, and the inertia."""
    parts: list[tuple[Array, ...]] = []
    for x, counted in _chunks(tokens, chunk, mesh):
        parts.append(_accumulate(x, counted, centroids, unit_length))
        # No more than one chunk ahead, or all of them would wait in memory.
        jax.block_until_ready(parts[-2:-1])
    sums, counts, farthest, distance, inertia = zip(*parts, strict=True)
    add = functools.partial(functools.reduce, jnp.add)
    return add(sums), add(counts), jnp.stack(farthest), jnp.stack(distance), add(inertia)


def _chunks(tokens: np.ndarray, size: int, mesh: Mesh | None) -> Iterator[tuple[Array, np.ndarray]]:
    """Yields parts of one size, and which of their rows count."""
    size, sharding = min(size, len(tokens)), None
    if mesh is not None:
        size, sharding = -(-size // mesh.size) * mesh.size, NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    for start in range(0, len(tokens), size):
        part = tokens[start : start + size]
        padded = np.pad(part, ((0, size - len(part)), (0, 0)))
        release_pages(tokens)
        yield jax.device_put(padded, sharding), np.arange(size) < len(part)


def _prepare(tokens: Array, unit_length: bool) -> Float[Array, "n d"]:
    return l2_normalize(tokens) if unit_length else tokens.astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=3)
def _accumulate(tokens: Array, counted: Array, centroids: Array, unit_length: bool) -> tuple[Array, ...]:
    tokens = _prepare(tokens, unit_length)
    distances = _squared_distances(tokens, centroids)
    one_hot = jax.nn.one_hot(jnp.argmin(distances, axis=1), len(centroids)) * counted[:, None]
    least = jnp.where(counted, jnp.maximum(jnp.min(distances, axis=1), 0), 0)
    sums = jnp.matmul(one_hot.T, tokens, precision="highest")
    worst = jnp.argmax(least)
    return sums, jnp.sum(one_hot, axis=0), tokens[worst], least[worst], jnp.sum(least)


def _move(sums: Array, counts: Array, farthest: Array, distance: Array, centroids: Array) -> Array:
    moved = sums / jnp.maximum(counts, 1)[:, None]
    empty = np.flatnonzero(np.asarray(counts) == 0)
    # One far token a chunk; further empty clusters stay where they are until the next iteration.
    for cluster, part in zip(empty, np.argsort(-np.asarray(distance)), strict=False):
        moved = moved.at[cluster].set(farthest[part])
    waiting = empty[len(distance) :]
    return moved.at[waiting].set(centroids[waiting]) if len(waiting) else moved


def _squared_distances(tokens: Array, centroids: Array) -> Float[Array, "n k"]:
    """Squared Euclidean distances, up to rounding: the smallest may be negative."""
    products = jnp.matmul(tokens, centroids.T, precision="highest")
    return jnp.sum(tokens**2, axis=1)[:, None] - 2 * products + jnp.sum(centroids**2, axis=1)


@functools.partial(jax.jit, static_argnames="num_clusters")
def _plus_plus(tokens: Float[Array, "n d"], key: Array, *, num_clusters: int) -> Float[Array, "k d"]:
    """Draws each centroid far from those before it, the best of a few candidates (greedy k-means++)."""
    num_candidates = 2 + int(math.log(num_clusters))
    first_key, key = jax.random.split(key)
    first = tokens[jax.random.randint(first_key, (), 0, len(tokens))]
    centroids = jnp.zeros((num_clusters, tokens.shape[1])).at[0].set(first)

    def add(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        centroids, least = carry
        # The smallest number keeps a draw possible where all tokens are centroids already.
        logits = jnp.log(least + jnp.finfo(jnp.float32).tiny)
        drawn = jax.random.categorical(jax.random.fold_in(key, index), logits, shape=(num_candidates,))
        candidates = tokens[drawn]
        lesser = jnp.minimum(least[:, None], jnp.maximum(_squared_distances(tokens, candidates), 0))
        best = jnp.argmin(jnp.sum(lesser, axis=0))
        return centroids.at[index].set(candidates[best]), lesser[:, best]

    least = jnp.maximum(_squared_distances(tokens, first[None])[:, 0], 0)
    return jax.lax.fori_loop(1, num_clusters, add, (centroids, least))[0]

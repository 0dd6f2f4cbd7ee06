"""A queue of the teacher's centroids, and each cluster's nearest neighbor in it: other images that show the same."""

from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from croc_jax.clustering.merging import HIGHEST
from croc_jax.data.crops import NUM_VIEWS
from croc_jax.losses import NeighborsConfig
from croc_jax.training.sharding import BATCH_AXES, num_data_shards, shard_map_batch
from croc_jax.unit import unit

# Cosines that exist at a time: queries of both views times slots of one device.
_COSINES = 2**26


@flax.struct.dataclass
class Queue:
    """The teacher's latest centroids, before its head; a ring.

    Attributes:
        centroids: of both views; what both show of one cluster lies in one slot.
        end: slot that the next cluster goes to.
        count: slots that hold a cluster, the first ones.
    """

    centroids: Float[Array, "v q d"]
    end: Int[Array, ""]
    count: Int[Array, ""]


class Neighbors(NamedTuple):
    """The clusters' nearest neighbors.

    Attributes:
        centroids: the neighbor that each view's centroid finds among those of its view.
        passes: whether it counts: from the neighbor's other view, the nearest of the batch is the cluster itself.
    """

    centroids: Float[Array, "b v h k d"]
    passes: Bool[Array, "b v h k"]


def init_queue(config: NeighborsConfig, width: int) -> Queue:
    """Returns an empty queue for centroids of so many features."""
    return Queue(
        centroids=jnp.zeros((NUM_VIEWS, config.queue, width), jnp.bfloat16),
        end=jnp.zeros((), jnp.int32),
        count=jnp.zeros((), jnp.int32),
    )


def check_queue(config: NeighborsConfig, *, batch_clusters: int) -> None:
    """Raises ValueError, naming the field and the value, for a queue that a batch does not fit.

    Args:
        config: the settings.
        batch_clusters: the most clusters that a batch can have: images times heads times K_start.
    """
    if config.queue < batch_clusters:
        raise ValueError(
            f"objective.neighbors.queue={config.queue}: a batch can have {batch_clusters} clusters (images x heads x "
            "K_start); make the queue at least as long"
        )


@jax.named_scope("neighbors")
def find_neighbors(
    queue: Queue,
    centroids: Float[Array, "b v h k d"],
    valid: Bool[Array, "b h k"],
    *,
    dtype: Any,
    mesh: Mesh | None = None,
) -> tuple[Neighbors, Queue]:
    """Returns the nearest neighbors of a batch, and the queue with the batch in place of what is oldest.

    Centroids are compared by their cosine. The cycle test is against all valid clusters of the batch, on whatever
    device; the official code tests against those of one GPU.

    Args:
        queue: as earlier steps have left it.
        centroids: the teacher's centroids.
        valid: clusters that count; no others are searched for, stored, or found.
        dtype: type of the products.
        mesh: mesh of all devices, each of which searches its own part of the queue; all of it, if it does not divide.
    """
    batch, views, heads, clusters, width = centroids.shape
    rows = jnp.moveaxis(centroids, 1, 3).reshape(-1, views, width).astype(jnp.bfloat16)
    if mesh is not None and queue.centroids.shape[1] % num_data_shards(mesh):
        # Every device holds the whole queue, as sharding leaves what does not divide.
        mesh = None
    by_rows, replicated = PartitionSpec(BATCH_AXES), PartitionSpec()
    parts = Queue(PartitionSpec(None, BATCH_AXES), replicated, replicated)  # pyright: ignore[reportArgumentType]
    search = shard_map_batch(
        partial(_search, dtype=dtype, num_devices=1 if mesh is None else num_data_shards(mesh)),
        mesh,
        (parts, by_rows, by_rows),
        (by_rows, by_rows, parts),
    )
    found, passes, queue = search(queue, rows, valid.reshape(-1))

    def restore(array: Shaped[Array, "n v *d"]) -> Shaped[Array, "b v h k *d"]:
        return jnp.moveaxis(array.reshape(batch, heads, clusters, views, *array.shape[2:]), 3, 1)

    return Neighbors(restore(found), restore(passes)), queue


def _search(
    queue: Queue, rows: Float[Array, "m v d"], valid: Bool[Array, " m"], *, dtype: Any, num_devices: int
) -> tuple[Float[Array, "m v d"], Bool[Array, "m v"], Queue]:
    """Searches on one device for the rows of all, and keeps its own."""
    device = jax.lax.axis_index(BATCH_AXES) if num_devices > 1 else 0
    size = queue.centroids.shape[1]
    everyone, all_valid = _all_gather((rows, valid), num_devices)
    units = unit(everyone).astype(dtype)
    filled = device * size + jnp.arange(size) < queue.count
    best, places = _nearest(units, all_valid, unit(queue.centroids).astype(dtype), filled)

    # The neighbors of both directions, in both views: [direction v n d].
    found = jnp.moveaxis(queue.centroids[:, places], 1, 0)
    if num_devices > 1:
        owner = jnp.argmax(jax.lax.all_gather(best, BATCH_AXES), axis=0)
        found = _take_own(jnp.where((owner == device)[:, None, :, None], found, 0))
        best = jax.lax.pmax(best, BATCH_AXES)
        best = jax.lax.dynamic_slice_in_dim(best, device * len(rows), len(rows), axis=1)

    directions = range(NUM_VIEWS)
    neighbors = jnp.stack([found[direction, direction] for direction in directions], axis=1)
    others = jnp.stack([found[direction, 1 - direction] for direction in directions], axis=1)
    back = _nearest(unit(others).astype(dtype), valid, jnp.moveaxis(units[:, ::-1], 1, 0), all_valid)[1]
    passes = (back == device * len(rows) + jnp.arange(len(rows))) & valid & (best > -jnp.inf)
    queue = _push(queue, everyone, all_valid, first=device * size, length=num_devices * size)
    return neighbors, passes.T, queue


def _take_own(arrays: Shaped[Array, "direction v n d"]) -> Shaped[Array, "direction v m d"]:
    """Returns this device's rows of arrays that are zero on all devices but one.

    Two bfloat16 numbers travel as one integer, in half the space of float32: XLA on CPU fails to sum bfloat16 where
    another axis of the mesh is left to it.
    """
    pairs = jax.lax.bitcast_convert_type(arrays.reshape(*arrays.shape[:-1], -1, 2), jnp.uint32)
    pairs = jax.lax.psum_scatter(pairs, BATCH_AXES, scatter_dimension=2, tiled=True)
    return jax.lax.bitcast_convert_type(pairs, arrays.dtype).reshape(*pairs.shape[:-1], -1)


def _all_gather(arrays: Any, num_devices: int) -> Any:
    return arrays if num_devices == 1 else jax.lax.all_gather(arrays, BATCH_AXES, tiled=True)


def _nearest(
    queries: Float[Array, "n v d"], valid: Bool[Array, " n"], slots: Float[Array, "v q d"], filled: Bool[Array, " q"]
) -> tuple[Float[Array, "v n"], Int[Array, "v n"]]:
    """Returns the cosine and the place of the nearest filled slot to each valid query; -inf where there is none.

    Queries go in chunks, whose cosines exist one at a time; the valid ones come first, and chunks of others are
    skipped.
    """
    count, size = slots.shape[0], len(filled)
    chunk = min(max(_COSINES // (count * size), 1), len(queries))
    order = jnp.argsort(~valid, stable=True)
    arranged = jnp.pad(queries[order], ((0, -len(queries) % chunk), (0, 0), (0, 0)))

    def add(index: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        part = jax.lax.dynamic_slice_in_dim(arranged, index * chunk, chunk)
        cosines = jnp.einsum("nvd,vqd->vnq", part, slots, precision=HIGHEST, preferred_element_type=jnp.float32)
        cosines = jnp.where(filled, cosines, -jnp.inf)
        best, places = jnp.max(cosines, axis=-1), jnp.argmax(cosines, axis=-1)
        place = partial(jax.lax.dynamic_update_slice_in_dim, start_index=index * chunk, axis=1)
        return place(found[0], best), place(found[1], places)

    shape, needed = (count, len(arranged)), (jnp.sum(valid) + chunk - 1) // chunk
    start = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
    best, places = jax.lax.fori_loop(0, needed, add, start)
    back = jnp.argsort(order)
    return best[:, back], places[:, back]


def _push(
    queue: Queue, rows: Float[Array, "n v d"], valid: Bool[Array, " n"], *, first: Array | int, length: int
) -> Queue:
    """Writes the valid rows one after another; of all `length` slots, those of this device start at `first`."""
    size = queue.centroids.shape[1]
    slots = (queue.end + jnp.cumsum(valid) - 1) % length - first
    # What belongs to another device, or counts for nothing, goes past the end.
    slots = jnp.where(valid & (slots >= 0) & (slots < size), slots, size)
    return Queue(
        centroids=queue.centroids.at[:, slots].set(jnp.swapaxes(rows, 0, 1), mode="drop"),
        end=(queue.end + jnp.sum(valid)) % length,
        count=jnp.minimum(queue.count + jnp.sum(valid), length),
    )

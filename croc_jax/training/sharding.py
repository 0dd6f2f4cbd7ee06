"""The mesh of devices, and where arrays live on it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh along one axis that splits the batch, of all devices of all processes by default."""
    return Mesh(np.array(jax.devices() if devices is None else devices), (DATA_AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts each process's rows of a batch on its devices, as parts of global arrays.

    Args:
        batch: a tree of host arrays with the process's own rows first.
        mesh: of all devices.
    """
    sharding = batch_sharded(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def check_batch_divides(batch_size: int, *, devices: int, slices: int) -> None:
    """Raises ValueError, naming the nearest sizes that work, unless the batch splits evenly.

    Args:
        batch_size: images of an update.
        devices: that share them.
        slices: gradient accumulation steps.
    """
    parts = devices * slices
    if batch_size % parts or batch_size < parts:
        below, above = batch_size // parts * parts, (batch_size // parts + 1) * parts
        near = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"schedule.batch_size={batch_size} does not divide over {devices} device(s) and "
            f"{slices} accumulation step(s); the nearest sizes that do: {near}"
        )


def one_copy(array: jax.Array) -> jax.Array:
    """Returns an array that every device holds whole as one device has it, to be read only once."""
    return array.addressable_data(0) if array.is_fully_replicated else array

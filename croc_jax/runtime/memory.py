"""What a training step needs of a device's memory, reported before the first step."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from croc_jax.training.config import Recipe
from croc_jax.training.forward import make_networks
from croc_jax.training.sharding import DATA_AXIS, num_data_shards

# One batch is used while the next one is transferred.
_BATCHES = 2
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


class Needs(NamedTuple):
    """Bytes that one device needs.

    Attributes:
        state: for its part of the state.
        batches: for the batches that it holds at a time.
        work: for what the compiler sets aside for a step; 0 if it does not report it.
    """

    state: int
    batches: int
    work: int

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(self)


def measure(compiled: jax.stages.Compiled, state: Any, batch: Any) -> Needs:
    """Returns what a device needs for a compiled step.

    Args:
        compiled: the step, (state, batch) -> (state, metrics).
        state: pytree of arrays, or of shapes with shardings.
        batch: the same for a batch.
    """
    sizes = [sum(map(bytes_on_device, jax.tree.leaves(tree))) for tree in (state, batch)]
    analysis = compiled.memory_analysis()
    return Needs(sizes[0], _BATCHES * sizes[1], 0 if analysis is None else analysis.temp_size_in_bytes)


def describe(needs: Needs, *, limit: float, advice: str) -> str:
    """Returns a line on what a device needs, with a warning and advice if that is more than it has.

    Args:
        needs: what a device needs.
        limit: bytes that it may hold; infinite if unknown.
        advice: settings that lower the needs.
    """
    parts = " + ".join(f"{format_bytes(size)} {name}" for name, size in needs._asdict().items())
    line = f"memory of a device: {parts} = {format_bytes(needs.total)}"
    line += "" if math.isinf(limit) else f" of {format_bytes(limit)}"
    return line if needs.total <= limit else f"{line}\nwarning: this may not fit: {advice}"


def advise(recipe: Recipe, mesh: Mesh) -> str:
    """Returns the settings that lower what a device needs."""
    ways = []
    if mesh.shape[DATA_AXIS] > 1:
        ways.append("raise runtime.mesh.fsdp")
    if recipe.schedule.batch_size > num_data_shards(mesh) * recipe.optimizer.accumulation_steps:
        ways.append("raise optimizer.accumulation_steps")
    # Where a transformer keeps no activations anyway (on TPU), it would change nothing.
    if getattr(make_networks(recipe, mesh=mesh).backbone, "kept", not recipe.backbone.remat):
        ways.append("set backbone.remat=True")
    return " or ".join(ways) or "take more devices or a smaller backbone"


def is_exhausted(error: Exception) -> bool:
    """Returns whether an error of the compiler or the runtime says that the memory of a device is too small."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def memory_limit(devices: Iterable[Any]) -> float:
    """Returns the bytes that the smallest device of this process may hold; infinite if unknown."""
    local = [device for device in devices if device.process_index == jax.process_index()]
    return min((device.memory_stats() or {}).get("bytes_limit", math.inf) for device in local)


def bytes_on_device(leaf: Any) -> int:
    """Returns the size of the part of an array that one device holds."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def format_bytes(count: float) -> str:
    """Returns bytes in the largest unit of which there is one.

    Examples:
        >>> format_bytes(1.5 * 2**30)
        '1.5 GiB'
    """
    for unit, size in _UNITS:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"

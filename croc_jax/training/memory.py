"""What a step needs of a device's memory, told before it first runs."""

import math
from typing import Any

import jax

_NUM_LARGEST = 3
_MIB = 2**20


def bytes_on_device(leaf: jax.Array) -> int:
    """Returns what the part of an array takes that one device holds."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def describe_memory(compiled: jax.stages.Compiled, state: Any) -> str:
    """Says what a device holds: the state, with its largest arrays, and what the compiler sets aside for the step.

    Args:
        compiled: the step.
        state: its first argument, on the devices where it stays.
    """
    sizes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): bytes_on_device(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    largest = sorted(sizes, key=lambda name: -sizes[name])[:_NUM_LARGEST]
    listed = ", ".join(f"{name} {sizes[name] / _MIB:.1f}" for name in largest)
    text = f"a device holds {sum(sizes.values()) / _MIB:.1f} MiB of state (largest: {listed})"
    analysis = compiled.memory_analysis()
    if analysis is None:
        return text
    return f"{text}, and {analysis.temp_size_in_bytes / _MIB:.1f} MiB for the work of a step"

"""What a checkpoint holds, in so much detail that damage shows."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from croc_jax.training.config import Recipe, recipe_to_dict
from croc_jax.training.sharding import reduce_each


class DamagedError(ValueError):
    """What was read is not what was written."""


def describe(recipe: Recipe, step: int, state: Any) -> dict[str, Any]:
    """Returns the JSON metadata of a checkpoint: recipe, step, and each array with its checksum."""
    leaves = name_leaves(state)
    sums = _checksums(state)
    arrays = {
        name: {"shape": list(leaf.shape), "dtype": leaf.dtype.name, "checksum": sums[name]}
        for name, leaf in leaves.items()
    }
    metadata = {"recipe": recipe_to_dict(recipe), "step": step, "arrays": arrays}
    return {**metadata, "digest": _digest(metadata)}


def check_digest(metadata: Mapping[str, Any]) -> None:
    """Raises DamagedError unless metadata are as they were written."""
    content = {name: value for name, value in metadata.items() if name != "digest"}
    if metadata.get("digest") != _digest(content):
        raise DamagedError("its metadata are not what was written")


def check_arrays(arrays: Any, metadata: Mapping[str, Any]) -> None:
    """Raises DamagedError, naming an array, unless all arrays of a tree are as they were written."""
    for name, value in _checksums(arrays).items():
        if value != metadata["arrays"][name]["checksum"]:
            raise DamagedError(f"the array {name} is not what was written")


def differing_arrays(abstract: Any, metadata: Mapping[str, Any]) -> list[str]:
    """Returns a description of each array of a tree that is not in the checkpoint in this shape and type."""
    saved, differences = metadata["arrays"], []
    for name, leaf in name_leaves(abstract).items():
        there, here = saved.get(name), f"{leaf.dtype.name}{list(leaf.shape)}"
        if there is None:
            differences.append(f"{name} is missing")
        elif f"{there['dtype']}{there['shape']}" != here:
            differences.append(f"{name} is {there['dtype']}{there['shape']} there and {here} here")
    return differences


def name_leaves(tree: Any) -> dict[str, Any]:
    """Returns {"teacher/backbone/cls_token": array, ...}."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _checksums(tree: Any) -> dict[str, int]:
    leaves = name_leaves(tree)
    sums = reduce_each(_checksum, list(leaves.values()))
    return {name: int(value) for name, value in zip(leaves, sums, strict=True)}


@jax.jit
def _checksum(array: Array) -> UInt32[Array, ""]:
    """Sums the bits of all elements with odd weights, modulo 2^32.

    Odd numbers have inverses there, so a change of any one element changes the sum. Integers
    add up to the same however the array lies on devices and hosts; nothing but sums travels.
    """
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}")).astype(jnp.uint32)
    index, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        index += np.uint32(stride % 2**32) * jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        stride *= bits.shape[axis]
    return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)


def _digest(metadata: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()

"""The manifest of a checkpoint: its settings, and shape, type and checksum of every array."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt32

from croc_jax.training.config import Recipe, recipe_to_dict
from croc_jax.training.sharding import reduce_each


class CorruptError(ValueError):
    """What was read from a checkpoint is not what was written."""


def make_manifest(recipe: Recipe, step: int, state: PyTree, notes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the JSON metadata of a checkpoint: settings, step, each array with its checksum, and notes."""
    sums = _checksums(state)
    arrays = {
        name: {"shape": list(leaf.shape), "dtype": leaf.dtype.name, "checksum": sums[name]}
        for name, leaf in flatten_tree(state).items()
    }
    manifest = {**(notes or {}), "recipe": recipe_to_dict(recipe), "step": step, "arrays": arrays}
    return {**manifest, "digest": _digest(manifest)}


def check_digest(manifest: Mapping[str, Any]) -> None:
    """Raises CorruptError unless a manifest is as it was written."""
    content = {name: value for name, value in manifest.items() if name != "digest"}
    if manifest.get("digest") != _digest(content):
        raise CorruptError("checksum mismatch in its metadata")


def check_arrays(arrays: PyTree, manifest: Mapping[str, Any]) -> None:
    """Raises CorruptError, naming an array, unless all arrays of a tree are as they were written."""
    for name, value in _checksums(arrays).items():
        if value != manifest["arrays"][name]["checksum"]:
            raise CorruptError(f"checksum mismatch in the array {name}")


def find_differences(abstract: PyTree, manifest: Mapping[str, Any]) -> list[str]:
    """Returns a description of each array of a tree that is not in the checkpoint in this shape and type."""
    differences = []
    for name, leaf in flatten_tree(abstract).items():
        saved, wanted = manifest["arrays"].get(name), f"{leaf.dtype.name}{list(leaf.shape)}"
        if saved is None:
            differences.append(f"{name} is missing")
        elif (found := f"{saved['dtype']}{saved['shape']}") != wanted:
            differences.append(f"{name} is {found} in the checkpoint, {wanted} in this run")
    return differences


def flatten_tree(tree: PyTree) -> dict[str, Any]:
    """Returns {"teacher/backbone/cls_token": leaf, ...}."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _checksums(tree: PyTree) -> dict[str, int]:
    leaves = flatten_tree(tree)
    sums = reduce_each(_checksum, list(leaves.values()))
    return {name: int(value) for name, value in zip(leaves, sums, strict=True)}


@jax.jit
def _checksum(array: Array) -> UInt32[Array, ""]:
    """Sums the bits of all elements with odd weights, modulo 2^32.

    Odd numbers have inverses there, so a change of any one element changes the sum. Integers add up to the same
    however the array is sharded over devices and hosts, and only sums travel between them.
    """
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}")).astype(jnp.uint32)
    index, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        index += np.uint32(stride % 2**32) * jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        stride *= bits.shape[axis]
    return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()

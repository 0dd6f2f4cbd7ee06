"""Checksums: any change shows, and nothing else does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.checkpoints.manifest import (
    CorruptError,
    check_arrays,
    check_digest,
    find_differences,
    flatten_tree,
    make_manifest,
)
from croc_jax.training.sharding import batch_sharded, make_mesh, replicated
from tests.training.tiny import tiny_recipe


def tree():
    rng = np.random.default_rng(0)
    return {
        "step": np.int32(7),
        "group": [rng.normal(size=(16, 33)).astype(np.float32), np.arange(5, dtype=np.uint32)],
        "half": np.asarray(rng.normal(size=(3, 4)), jnp.bfloat16),
        "flags": np.array([1, 0, 2], np.uint8),
    }


def metadata(arrays):
    return make_manifest(tiny_recipe(), 7, jax.tree.map(jnp.asarray, arrays))


def reference_checksum(array):
    words = np.asarray(array).reshape(-1).view(f"uint{8 * array.dtype.itemsize}")
    return sum(int(word) * (2 * index + 1) for index, word in enumerate(words)) % 2**32


def test_checksums_equal_the_definition_in_whole_numbers():
    arrays = metadata(tree())["arrays"]
    assert {name: entry["checksum"] for name, entry in arrays.items()} == {
        name: reference_checksum(np.atleast_1d(leaf)) for name, leaf in flatten_tree(tree()).items()
    }


def test_one_flipped_bit_and_two_exchanged_values_show_and_are_named():
    rng, known = np.random.default_rng(0), metadata(tree())
    check_arrays(jax.tree.map(jnp.asarray, tree()), known)
    for name in flatten_tree(tree()):

        def flip(path, old, name=name):
            if jax.tree_util.keystr(path, simple=True, separator="/") != name:
                return old
            leaf = np.atleast_1d(old).copy()
            octets = leaf.view(np.uint8).reshape(-1)
            octets[rng.integers(octets.size)] ^= np.uint8(1 << rng.integers(8))
            return leaf.reshape(np.shape(old))

        changed = jax.tree_util.tree_map_with_path(flip, tree())
        with pytest.raises(CorruptError, match=f"the array {name}"):
            check_arrays(jax.tree.map(jnp.asarray, changed), known)
    swapped = tree()
    swapped["group"][0][[0, 1]] = swapped["group"][0][[1, 0]]
    with pytest.raises(CorruptError, match="group/0"):
        check_arrays(jax.tree.map(jnp.asarray, swapped), known)


def test_checksums_do_not_depend_on_where_an_array_lies():
    mesh = make_mesh(jax.devices()[:8])
    assert mesh.size == 8
    array = {"w": np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)}
    known = metadata(array)
    for sharding in (replicated(mesh), batch_sharded(mesh)):
        assert check_arrays(jax.device_put(array, sharding), known) is None


def test_any_change_of_the_metadata_shows():
    known = metadata(tree())
    assert check_digest(known) is None
    for change in ({"step": 8}, {"recipe": {**known["recipe"], "seed": 1}}, {"extra": 1}, {"digest": ""}):
        with pytest.raises(CorruptError, match="metadata"):
            check_digest({**known, **change})


def test_differences_of_names_shapes_and_types_are_described():
    known = metadata(tree())
    assert find_differences({"half": jax.ShapeDtypeStruct((3, 4), jnp.bfloat16)}, known) == []
    other = {"half": jax.ShapeDtypeStruct((3, 5), jnp.float32), "new": jax.ShapeDtypeStruct((), jnp.int32)}
    assert find_differences(other, known) == [
        "half is bfloat16[3, 4] in the checkpoint, float32[3, 5] in this run",
        "new is missing",
    ]

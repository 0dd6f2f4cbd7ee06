"""Results are float32, and the same, in whichever mode JAX is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.clustering import ClusteringConfig, cluster_views
from croc_jax.float32 import in_float32
from croc_jax.training.sharding import make_mesh
from croc_jax.training.state import abstract_batch, abstract_state
from croc_jax.training.step import make_train_step
from tests.training.tiny import tiny_recipe


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree)


@pytest.mark.parametrize("mode", [False, True])
def test_a_function_is_traced_and_called_without_64_bits(mode):
    def function(scale, *, x):
        return scale * jnp.ones(2) + x

    with jax.enable_x64(mode):
        found = in_float32(function)(2.0, x=np.arange(2))
        traced = jax.jit(in_float32(function))(2.0, x=1)
        assert jnp.ones(2).dtype == (jnp.float64 if mode else jnp.float32)
    assert found.dtype == traced.dtype == jnp.float32 and found.tolist() == [2.0, 3.0]


def test_clusters_are_the_same():
    rng = np.random.default_rng(0)
    tokens, cls_tokens = rng.normal(size=(2, 1, 1, 9, 4)), rng.normal(size=(2, 1, 1, 4))
    positions, config = rng.uniform(0, 9, (2, 1, 9, 2)), ClusteringConfig(k_start=3, k_max=3)
    found = []
    for mode in (False, True):
        with jax.enable_x64(mode):
            found.append(jax.device_get(cluster_views(tokens, cls_tokens, positions, config, rng=0)))
    assert types(found[0]) == types(found[1])
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_a_training_step_keeps_the_types_of_the_state():
    recipe, mesh = tiny_recipe(), make_mesh(jax.devices()[:1])
    expected = types(abstract_state(recipe, steps_per_epoch=3, mesh=mesh))
    with jax.enable_x64(True):
        before = abstract_state(recipe, steps_per_epoch=3, mesh=mesh)
        step = make_train_step(recipe, steps_per_epoch=3, mesh=mesh)
        after, metrics = jax.eval_shape(step, before, abstract_batch(recipe, mesh=mesh))
    assert types(before) == types(after) == expected
    assert {leaf.dtype.name for leaf in metrics.values()} == {"float32"}

"""Results are float32, and the same, in whichever mode JAX is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.clustering import ClusteringConfig, cluster_features, cluster_views
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
    features = rng.normal(size=(9, 4))
    found = []
    for mode in (False, True):
        with jax.enable_x64(mode):
            views = cluster_views(tokens, cls_tokens, positions, config, rng=0)
            alone = cluster_features(features, grid=(3, 3), config=config)
            found.append(jax.device_get((views, alone.labels, alone.costs)))
    assert types(found[0]) == types(found[1])
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_a_training_step_keeps_the_types_of_the_state():
    recipe, mesh, found = tiny_recipe(), make_mesh(jax.devices()[:1]), []
    for mode in (False, True):
        with jax.enable_x64(mode):
            before = abstract_state(recipe, steps_per_epoch=3, mesh=mesh)
            step = make_train_step(recipe, steps_per_epoch=3, mesh=mesh)
            after, metrics = jax.eval_shape(step, before, abstract_batch(recipe, mesh=mesh))
            assert types(after) == types(before)
            found.append((types(after), types(metrics)))
    assert found[0] == found[1] and {leaf[1] for leaf in found[1][1].values()} == {"float32"}

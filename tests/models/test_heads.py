"""The projection head against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import erf

from croc_jax.models import HeadConfig, make_head

CONFIG = HeadConfig(hidden_dim=7, bottleneck_dim=5, num_prototypes=11, num_prototypes_dense=9)


def test_both_outputs_equal_reference():
    head = make_head(CONFIG, dtype=jnp.float32)
    params = jax.jit(head.init)(jax.random.key(0), jnp.zeros((1, 4)))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32), params)
    tokens = rng.normal(size=(2, 3, 4)).astype(np.float32)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = tokens.astype(np.float64)
    for layer in ("mlp_1", "mlp_2", "mlp_3"):
        x = x @ p[layer]["kernel"] + p[layer]["bias"]
        x = x if layer == "mlp_3" else 0.5 * x * (1 + erf(x / np.sqrt(2)))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    for method, layer, size in (("project_global", "last_layer", 11), ("project_dense", "last_layer_dense", 9)):
        direction = p[layer]["direction"]
        weight = p[layer]["scale"] * direction / np.linalg.norm(direction, axis=-1, keepdims=True)
        logits = jax.jit(functools.partial(head.apply, method=method))({"params": params}, tokens)
        assert logits.shape == (2, 3, size) and logits.dtype == jnp.float32
        np.testing.assert_allclose(logits, x @ weight.T, atol=1e-5)


def test_weight_norm_starts_at_one():
    head = make_head(CONFIG, dtype=jnp.bfloat16)
    params = jax.jit(head.init)(jax.random.key(0), jnp.zeros((1, 4)))["params"]
    np.testing.assert_array_equal(params["last_layer"]["scale"], 1)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert np.abs(params["last_layer"]["direction"]).max() <= 1 / np.sqrt(5)

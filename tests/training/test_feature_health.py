"""Numbers of features, against NumPy and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from croc_jax.training.feature_health import feature_health
from croc_jax.training.sharding import make_mesh

measure = jax.jit(feature_health)


def numbers(tokens):
    return {name: float(value) for name, value in measure(jnp.asarray(tokens, jnp.float32)).items()}


def test_numbers_are_those_of_the_eigenvalues_of_the_covariance():
    tokens = np.random.default_rng(0).normal(3, [5, 4, 3, 2, 1, 0.1], (40, 2, 6)).astype(np.float32)
    flat = tokens.reshape(-1, 6).astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(np.cov(flat.T, bias=True))
    got = numbers(tokens)
    assert got["feature_rank"] == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-5)
    assert got["feature_spread"] == pytest.approx(eigenvalues.sum() / (flat**2).sum(1).mean(), rel=1e-5)
    assert got["feature_norm"] == pytest.approx(np.linalg.norm(flat, axis=1).mean(), rel=1e-6)


def test_tokens_on_a_line_have_rank_one_and_equal_tokens_none():
    places = np.arange(10.0).reshape(5, 2, 1)
    assert numbers(7 + places * np.array([1.0, -2.0, 0.5]))["feature_rank"] == pytest.approx(1, rel=1e-5)
    equal = numbers(np.full((5, 2, 3), 0.3))
    assert equal["feature_rank"] == 0 and equal["feature_spread"] < 1e-12
    assert equal["feature_norm"] == pytest.approx(0.3 * 3**0.5, rel=1e-6)
    assert numbers(np.zeros((5, 2, 3))) == {"feature_rank": 0, "feature_spread": 0, "feature_norm": 0}


@pytest.mark.parametrize("scale", [1e-12, 1e6])
def test_rank_does_not_depend_on_scale(scale):
    tokens = np.random.default_rng(1).normal(size=(8, 2, 4))
    assert numbers(scale * tokens)["feature_rank"] == pytest.approx(numbers(tokens)["feature_rank"], rel=1e-4)


def test_a_batch_split_over_eight_devices_gives_the_same_numbers():
    tokens = np.random.default_rng(2).normal(1, 2, (16, 2, 8)).astype(np.float32)
    mesh = make_mesh(jax.devices()[:8])
    split = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec("data")))
    got = {name: float(value) for name, value in measure(split).items()}
    assert got == pytest.approx(numbers(tokens), rel=1e-5)

"""The transport plan against plain scaling in float64."""

import jax
import numpy as np
import pytest
from ott.geometry import geometry

from croc_jax.clustering import sinkhorn as sinkhorn_module
from croc_jax.clustering.sinkhorn import LARGEST_KERNEL_LAMBDA, transport_plan
from tests.jaxprs import equations


def scale_rows_and_columns(cost, clusters, tokens, *, sinkhorn_lambda, iterations):
    """The official order: tokens first, then clusters."""
    plan = np.exp(-sinkhorn_lambda * cost.astype(np.float64))
    for _ in range(iterations):
        plan *= tokens / plan.sum(0)
        plan *= (clusters / plan.sum(1))[:, None]
    return plan


def problem(seed, num_clusters=5, num_tokens=18):
    rng = np.random.default_rng(seed)
    cost = rng.uniform(size=(num_clusters, num_tokens)).astype(np.float32)
    clusters, tokens = rng.dirichlet(np.ones(num_clusters)), rng.dirichlet(np.ones(num_tokens))
    return cost, clusters.astype(np.float32), tokens.astype(np.float32)


@pytest.mark.parametrize(
    ("sinkhorn_lambda", "iterations"),
    [(5.0, 1), (20.0, 5), (LARGEST_KERNEL_LAMBDA, 5), (LARGEST_KERNEL_LAMBDA + 1, 5), (200.0, 1)],
)
def test_plan_equals_plain_scaling(sinkhorn_lambda, iterations):
    cost, clusters, tokens = problem(0)
    plan = transport_plan(cost, clusters, tokens, sinkhorn_lambda=sinkhorn_lambda, iterations=iterations)
    expected = scale_rows_and_columns(cost, clusters, tokens, sinkhorn_lambda=sinkhorn_lambda, iterations=iterations)
    np.testing.assert_allclose(plan, expected, atol=2e-6)
    np.testing.assert_allclose(plan.sum(1), clusters, rtol=1e-5)


def test_clusters_without_mass_change_nothing():
    cost, clusters, tokens = problem(1)
    settings = {"sinkhorn_lambda": 20.0, "iterations": 5}
    padded_cost = np.concatenate([cost[:2], np.ones((3, 18), np.float32), cost[2:]])
    padded_clusters = np.concatenate([clusters[:2], np.zeros(3, np.float32), clusters[2:]])
    padded = np.asarray(transport_plan(padded_cost, padded_clusters, tokens, **settings))
    np.testing.assert_array_equal(padded[2:5], 0)
    np.testing.assert_allclose(
        np.delete(padded, [2, 3, 4], axis=0), transport_plan(cost, clusters, tokens, **settings), rtol=1e-5, atol=1e-9
    )


def test_plan_is_the_same_under_vmap():
    cost, clusters, tokens = (np.stack(arrays) for arrays in zip(problem(2), problem(3), strict=True))

    def solve(cost, clusters, tokens):
        return transport_plan(cost, clusters, tokens, sinkhorn_lambda=20.0, iterations=5)

    batched = jax.vmap(solve)(cost, clusters, tokens)
    for i in range(2):
        np.testing.assert_allclose(batched[i], solve(cost[i], clusters[i], tokens[i]), rtol=1e-5, atol=1e-9)


def test_the_kernel_is_computed_once():
    def solve(*arrays):
        return transport_plan(*arrays, sinkhorn_lambda=20.0, iterations=5)

    traced = jax.make_jaxpr(solve)(*problem(0)).jaxpr
    loops = [equation for equation in equations(traced) if equation.primitive.name in ("scan", "while")]
    inside = [inner for loop in loops for inner in equations(loop.params["jaxpr"].jaxpr)]
    assert sum(equation.primitive.name == "dot_general" for equation in inside) >= 2
    assert not [equation for equation in inside if equation.primitive.name == "exp"]
    assert [equation for equation in equations(traced) if equation.primitive.name == "exp"]


@pytest.mark.parametrize("sinkhorn_lambda", [20.0, LARGEST_KERNEL_LAMBDA + 1])
def test_the_result_is_that_of_a_plain_geometry_bit_for_bit(monkeypatch, sinkhorn_lambda):
    settings = {"sinkhorn_lambda": sinkhorn_lambda, "iterations": 5}
    ours = transport_plan(*problem(4), **settings)
    monkeypatch.setattr(sinkhorn_module, "FixedKernel", geometry.Geometry)
    np.testing.assert_array_equal(ours, transport_plan(*problem(4), **settings))

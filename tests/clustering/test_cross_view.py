"""The clustering: independent reference, invariants, and rejection of bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.clustering import ClusteringConfig, cluster_views, trace_merging, view_centroids
from croc_jax.clustering.cross_view import cluster_arrays, draw_tokens

CONFIG = ClusteringConfig(k_start=5, k_max=4)
BATCH, HEADS, TOKENS, FEATURES = 3, 2, 9, 6


def scene(seed=0):
    rng = np.random.default_rng(seed)
    blobs = rng.normal(size=(BATCH, HEADS, 4, FEATURES))
    which = rng.integers(0, 4, (2, BATCH, HEADS, TOKENS))
    tokens = np.take_along_axis(np.broadcast_to(blobs, (2, *blobs.shape)), which[..., None], axis=3)
    tokens = (tokens + 0.3 * rng.normal(size=tokens.shape)).astype(np.float32)
    cls_tokens = rng.normal(size=(2, BATCH, HEADS, FEATURES)).astype(np.float32)
    positions = rng.uniform(0, 100, (2, BATCH, TOKENS, 2)).astype(np.float32)
    indices = np.stack([[rng.permutation(2 * TOKENS)[:5] for _ in range(HEADS)] for _ in range(BATCH)])
    return tokens, cls_tokens, positions, indices


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def reference(tokens, cls_tokens, positions, indices, config):
    """One image and head at a time, in float64, with lists that shrink; cost scaled per image."""
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    tokens, cls_tokens = unit(tokens.astype(np.float64)), unit(cls_tokens.astype(np.float64))
    scores = np.concatenate([tokens[v] @ cls_tokens[v] for v in range(2)])
    joined, places = np.concatenate(list(tokens)), np.concatenate(list(positions)).astype(np.float64)
    weight = softmax(scores / config.temp_r)
    centroids, spots, marginal = joined[indices], places[indices], softmax(scores[indices] / config.temp_c)
    costs, recorded = [], []
    for k in range(config.k_start, 1, -1):
        distance = np.linalg.norm(places[:, None] - spots[None], axis=-1)
        cost = -joined @ unit(centroids).T + config.lambda_pos * distance / distance.max()
        cost = (cost - cost.min()) / (cost.max() - cost.min())
        plan = np.exp(-config.sinkhorn_lambda * cost)
        for _ in range(config.sinkhorn_iterations):
            plan *= (weight / plan.sum(1))[:, None]
            plan *= marginal / plan.sum(0)
        costs.append((plan * cost).sum())
        by_view = plan.reshape(2, -1, k)
        recorded.append(by_view / by_view.sum(1, keepdims=True))
        means = joined.T @ (plan / plan.sum(0))
        products = means.T @ means - 9 * np.eye(k)
        i, j = sorted(np.unravel_index(products.argmax(), products.shape))
        plan[:, i] += plan[:, j]
        plan = np.delete(plan, j, axis=1)
        shares = plan / plan.sum(0)
        centroids, spots, marginal = shares.T @ joined, shares.T @ places, shares.T @ weight
        marginal = marginal / marginal.sum()
    allowed = costs[config.k_start - config.k_max :]
    best = int(np.argmin(allowed)) + config.k_start - config.k_max
    chosen = recorded[best]
    hard = chosen * (chosen == chosen.max(-1, keepdims=True))
    return np.array(costs), config.k_start - best, hard


@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(CONFIG, lambda_pos=0.5, k_max=5, temp_r=0.3)])
def test_equals_reference_that_shrinks(config):
    config = dataclasses.replace(config, cost_scale="image")
    tokens, cls_tokens, positions, indices = scene()
    result = cluster_views(tokens, cls_tokens, positions, config, init_indices=indices)
    for b in range(BATCH):
        for h in range(HEADS):
            costs, k, hard = reference(tokens[:, b, h], cls_tokens[:, b, h], positions[:, b], indices[b, h], config)
            np.testing.assert_allclose(result.costs[b, h], costs, atol=1e-5)
            assert result.num_clusters[b, h] == k
            ours = np.asarray(result.assignments[:, b, h])
            # Both keep a merged cluster in its first parent's column.
            columns = ours.any((0, 1))
            np.testing.assert_allclose(ours[..., columns], hard[..., hard.any((0, 1))], atol=1e-5)
            valid = hard.any(1).all(0)
            assert result.valid[b, h].sum() == valid.sum()


def test_each_token_keeps_its_label_alone():
    tokens, cls_tokens, positions, indices = scene(1)
    result = cluster_views(tokens, cls_tokens, positions, CONFIG, init_indices=indices)
    kept = np.asarray(result.assignments) > 0
    np.testing.assert_array_equal(kept.sum(-1), 1)
    np.testing.assert_array_equal(kept.argmax(-1), result.labels)
    np.testing.assert_array_equal(result.valid, kept.any(3).all(0))
    assert (np.asarray(result.num_clusters) <= CONFIG.k_max).all() and (np.asarray(result.num_clusters) >= 2).all()


def test_images_are_independent_under_image_scale_only():
    tokens, cls_tokens, positions, indices = scene(2)
    for cost_scale, same in (("image", True), ("batch", False)):
        config = dataclasses.replace(CONFIG, cost_scale=cost_scale)
        whole = cluster_views(tokens, cls_tokens, positions, config, init_indices=indices)
        alone = cluster_views(tokens[:, :1], cls_tokens[:, :1], positions[:, :1], config, init_indices=indices[:1])
        assert np.allclose(whole.costs[:1], alone.costs, atol=1e-6) == same


def test_order_of_first_centroids_does_not_matter():
    tokens, cls_tokens, positions, indices = scene(3)
    one = cluster_views(tokens, cls_tokens, positions, CONFIG, init_indices=indices)
    other = cluster_views(tokens, cls_tokens, positions, CONFIG, init_indices=indices[..., ::-1])
    np.testing.assert_allclose(one.costs, other.costs, atol=1e-5)
    np.testing.assert_array_equal(one.num_clusters, other.num_clusters)
    np.testing.assert_allclose(one.assignments.sum(-1), other.assignments.sum(-1), atol=1e-5)


def test_half_precision_input_is_computed_in_float32():
    tokens, cls_tokens, positions, indices = scene(4)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (tokens, cls_tokens)]
    result = cluster_views(*half, positions, CONFIG, init_indices=indices)
    exact = cluster_views(*(x.astype(jnp.float32) for x in half), positions, CONFIG, init_indices=indices)
    assert result.assignments.dtype == jnp.float32
    np.testing.assert_array_equal(result.assignments, exact.assignments)


def test_no_gradient_flows():
    tokens, cls_tokens, positions, indices = scene()

    def total(tokens):
        return jnp.sum(cluster_views(tokens, cls_tokens, positions, CONFIG, init_indices=indices).assignments)

    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(tokens)), 0)


def test_second_call_compiles_nothing():
    tokens, cls_tokens, positions, _ = scene()
    cluster_views(tokens, cls_tokens, positions, CONFIG, rng=jax.random.key(0))
    with jax.log_compiles(), jax.transfer_guard_device_to_host("disallow"):
        before = cluster_arrays._cache_size()
        cluster_views(tokens, cls_tokens, positions, ClusteringConfig(k_start=5, k_max=4), rng=jax.random.key(1))
        assert cluster_arrays._cache_size() == before


def test_draws_follow_the_softmax_without_replacement():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    draws = np.asarray(draw_tokens(jax.random.key(0), jnp.broadcast_to(logits, (1, 20_000, 4)), 2))[0]
    assert (draws[:, 0] != draws[:, 1]).all()
    first = np.bincount(draws[:, 0], minlength=4) / len(draws)
    np.testing.assert_allclose(first, [0.5, 0.3, 0.15, 0.05], atol=0.015)
    after_zero = draws[draws[:, 0] == 0, 1]
    np.testing.assert_allclose(np.bincount(after_zero, minlength=4) / len(after_zero), [0, 0.6, 0.3, 0.1], atol=0.02)


def test_draws_are_the_largest_in_order_and_of_equals_the_first(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 6, (3, 2, 40)).astype(np.float32)
    monkeypatch.setattr(jax.random, "gumbel", lambda rng, shape, dtype: jnp.asarray(noise, dtype))
    draws = draw_tokens(jax.random.key(0), jnp.zeros(noise.shape), 12)
    np.testing.assert_array_equal(draws, np.argsort(-noise, axis=-1, kind="stable")[..., :12])


def test_trace_ends_with_two_clusters_and_agrees_with_the_choice():
    tokens, cls_tokens, positions, indices = scene()
    labels, costs = trace_merging(tokens, cls_tokens, positions, CONFIG, init_indices=indices)
    result = cluster_views(tokens, cls_tokens, positions, CONFIG, init_indices=indices)
    assert labels.shape == (4, 2, BATCH, HEADS, TOKENS)
    np.testing.assert_array_equal(costs, result.costs)
    for b in range(BATCH):
        for h in range(HEADS):
            assert len(np.unique(labels[-1, :, b, h])) <= 2
            chosen = CONFIG.k_start - int(result.num_clusters[b, h])
            np.testing.assert_array_equal(labels[chosen, :, b, h], result.labels[:, b, h])


def test_centroids_have_the_mean_cls_norm():
    rng = np.random.default_rng(0)
    tokens, cls_tokens = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3, 5))
    assignments = rng.uniform(size=(2, 3, 2, 4, 6)).astype(np.float32)
    centroids = view_centroids(tokens, cls_tokens, assignments)
    expected = np.einsum("vbhnk,vbnd->vbhkd", assignments, tokens)
    expected *= np.linalg.norm(cls_tokens, axis=-1).mean() / np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(centroids, expected, atol=1e-5)


def spoiled(value, *shape):
    array = np.ones(shape, np.float32)
    array.flat[-1] = value
    return array


def some_indices(value):
    _, _, _, indices = scene()
    indices[-1, -1, -1] = value
    return indices


TOKENS_SHAPE, CLS_SHAPE = (2, BATCH, HEADS, TOKENS, FEATURES), (2, BATCH, HEADS, FEATURES)
EMPTY = {"tokens": np.zeros((2, 0, HEADS, TOKENS, FEATURES)), "cls_tokens": np.zeros((2, 0, HEADS, FEATURES))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cls_tokens": np.zeros((2, BATCH, HEADS, FEATURES + 1))}, "cls_tokens"),
        ({"positions": np.zeros((2, BATCH, TOKENS, 3))}, "positions"),
        ({"tokens": np.zeros((BATCH, HEADS, TOKENS, FEATURES))}, r"tokens .*expected \[2 b h n d\]"),
        (EMPTY, r"tokens \(2, 0, 2, 9, 6\): expected .* no axis of length 0"),
        ({"init_indices": np.zeros((BATCH, HEADS, 4), int)}, "init_indices"),
        ({"init_indices": None}, "either rng"),
        ({"init_indices": None, "rng": np.random.default_rng(0)}, "rng=Generator"),
        ({"config": ClusteringConfig(k_start=19, k_max=12), "init_indices": None}, "k_start=19"),
        ({"config": {"k_start": 5}}, "config={'k_start': 5}: expected a ClusteringConfig"),
        ({"tokens": spoiled(np.nan, *TOKENS_SHAPE)}, "^tokens: expected finite numbers, found NaN"),
        (
            {"tokens": spoiled(1e25, *TOKENS_SHAPE)},
            r"^tokens: expected numbers of magnitude 1e\+17 at most, found 1e",
        ),
        ({"cls_tokens": spoiled(np.nan, *CLS_SHAPE)}, "^cls_tokens: expected finite numbers, found NaN"),
        ({"positions": spoiled(np.inf, 2, BATCH, TOKENS, 2)}, "^positions: expected finite numbers"),
        ({"tokens": np.ones(TOKENS_SHAPE, complex)}, "tokens of complex128: expected an array of real numbers"),
        ({"init_indices": some_indices(99)}, "init_indices: expected numbers from 0 to 17, found 99"),
        ({"init_indices": some_indices(-1)}, "init_indices: expected numbers from 0 to 17, found -1"),
        ({"init_indices": np.ones((BATCH, HEADS, 5), int)}, "init_indices: expected different tokens .* found 1 twice"),
    ],
)
def test_bad_input_is_named(change, message):
    tokens, cls_tokens, positions, indices = scene()
    given = {"tokens": tokens, "cls_tokens": cls_tokens, "positions": positions, "config": CONFIG}
    given["init_indices"] = indices
    with pytest.raises(ValueError, match=message):
        cluster_views(**{**given, **change})


def test_unchecked_values_are_not_waited_for(monkeypatch):
    tokens, cls_tokens, positions, indices = scene()
    monkeypatch.setattr(jax, "device_get", lambda _: pytest.fail("waits for the device"))
    arrays = [jnp.asarray(array) for array in (np.full_like(tokens, np.nan), cls_tokens, positions)]
    cluster_views(*arrays, CONFIG, init_indices=jnp.asarray(indices), check=False)
    # Arrays of NumPy are checked on the host.
    cluster_views(tokens, cls_tokens, positions, CONFIG, rng=0)
    with pytest.raises(ValueError, match="tokens: expected finite"):
        cluster_views(np.full_like(tokens, np.nan), cls_tokens, positions, CONFIG, rng=0)


def test_in_compiled_and_mapped_functions_no_value_is_looked_at():
    tokens, cls_tokens, positions, indices = scene()
    bad = np.stack([tokens, np.full_like(tokens, np.nan)])

    @jax.jit
    @jax.vmap
    def costs(tokens):
        # The others are constants, of NumPy and of JAX.
        return cluster_views(tokens, cls_tokens, jnp.asarray(positions), CONFIG, init_indices=indices).costs

    expected = cluster_views(tokens, cls_tokens, positions, CONFIG, init_indices=indices).costs
    np.testing.assert_allclose(costs(bad)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "cls_tokens", "assignments", "message"),
    [
        ((2, 3, 1, 4, 5), (2, 3, 5), (2, 3, 2, 4, 6), r"tokens \(2, 3, 1, 4, 5\): expected \[v b n d\]"),
        ((2, 3, 4, 5), (2, 3, 4), (2, 3, 2, 4, 6), r"cls_tokens \(2, 3, 4\): expected \(2, 3, 5\)"),
        ((2, 3, 4, 5), (2, 3, 5), (2, 3, 2, 5, 6), r"assignments \(2, 3, 2, 5, 6\): expected \[2 3 h 4 k\]"),
        ((2, 3, 4, 5), (2, 3, 5), (2, 3, 4, 6), r"assignments \(2, 3, 4, 6\): expected \[2 3 h 4 k\]"),
    ],
)
def test_centroids_of_what_does_not_fit(tokens, cls_tokens, assignments, message):
    with pytest.raises(ValueError, match=message):
        view_centroids(np.ones(tokens), np.ones(cls_tokens), np.ones(assignments))


BAD_SETTINGS = [
    {"k_start": 1}, {"k_start": 5.0}, {"k_max": True}, {"k_max": 13}, {"cost_scale": "head"}, {"temp_r": 0.0},
    {"temp_c": float("nan")}, {"lambda_pos": -1.0}, {"lambda_pos": float("nan")}, {"lambda_pos": "4"},
    {"sinkhorn_lambda": float("inf")}, {"sinkhorn_iterations": 0}, {"sinkhorn_iterations": 2.5},
    {"uniform_marginals": "no"},
]  # fmt: skip


@pytest.mark.parametrize("settings", BAD_SETTINGS, ids=str)
def test_bad_settings_are_named(settings):
    ((field, value),) = settings.items()
    with pytest.raises(ValueError, match=f"^{field}={value!r}: "):
        ClusteringConfig(**settings)


def test_an_infinite_weight_is_the_limit_of_large_ones():
    tokens, cls_tokens, positions, indices = scene(3)
    config = dataclasses.replace(CONFIG, lambda_pos=float("inf"), cost_scale="image")
    ours = cluster_views(tokens, cls_tokens, positions, config, init_indices=indices)
    for image in range(BATCH):
        for head in range(HEADS):
            one = (tokens[:, image, head], cls_tokens[:, image, head], positions[:, image], indices[image, head])
            costs, *_ = reference(*one, dataclasses.replace(config, lambda_pos=1e9))
            np.testing.assert_allclose(ours.costs[image, head], costs, rtol=1e-4)

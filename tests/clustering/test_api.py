"""Features of any origin fall into the clusters that the paper's method finds, whatever their axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.clustering import ClusteringConfig, FeatureClusters, cluster_features, cluster_views, trace_merging
from tests.clustering.test_cross_view import softmax

CONFIG = ClusteringConfig(k_start=5, k_max=5, cost_scale="image")
RNG = np.random.default_rng(0)
BATCH, HEADS, TOKENS, DIM = 3, 2, 8, 6


def blobs(*lead, count=24, dim=6, centers=3):
    """Tokens around a few directions; returns them, and the direction of each."""
    kinds = np.arange(count) % centers
    return 4 * np.eye(dim)[kinds] + 0.3 * RNG.standard_normal((*lead, count, dim)), kinds


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def one_view_reference(tokens, places, weight, indices, config):
    """One image and head in float64, with lists that shrink: costs, K and labels."""
    tokens, places = (np.asarray(x, np.float64) for x in (tokens, places))
    tokens = unit(tokens)
    centroids, spots, marginal = tokens[indices], places[indices], weight[indices] / weight[indices].sum()
    numbers, costs, labels = np.arange(config.k_start), [], []
    for k in range(config.k_start, 1, -1):
        cost = -tokens @ unit(centroids).T
        if config.lambda_pos:
            distance = np.linalg.norm(places[:, None] - spots[None], axis=-1)
            cost += config.lambda_pos * distance / distance.max()
        cost = (cost - cost.min()) / (cost.max() - cost.min())
        plan = np.exp(-config.sinkhorn_lambda * cost)
        for _ in range(config.sinkhorn_iterations):
            plan *= (weight / plan.sum(1))[:, None]
            plan *= marginal / plan.sum(0)
        costs.append((plan * cost).sum())
        labels.append(numbers[(plan / plan.sum(0)).argmax(1)])
        means = tokens.T @ (plan / plan.sum(0))
        i, j = sorted(np.unravel_index((means.T @ means - 9 * np.eye(k)).argmax(), (k, k)))
        plan[:, i] += plan[:, j]
        plan, numbers = np.delete(plan, j, axis=1), np.delete(numbers, j)
        shares = plan / plan.sum(0)
        centroids, spots, marginal = shares.T @ tokens, shares.T @ places, shares.T @ weight
        marginal = marginal / marginal.sum()
    best = int(np.argmin(costs[config.k_start - config.k_max :])) + config.k_start - config.k_max
    return np.array(costs), config.k_start - best, labels


def assert_equals_reference(result, tokens, places, weight, indices, config):
    for b in range(BATCH):
        for h in range(HEADS):
            costs, k, labels = one_view_reference(tokens[b, h], places[b], weight[b, h], indices[b, h], config)
            np.testing.assert_allclose(result.costs[b, h], costs, atol=1e-5)
            assert result.num_clusters[b, h] == k
            np.testing.assert_array_equal(result.labels[b, h], labels[config.k_start - k])
            np.testing.assert_array_equal(result.merging[:, b, h], labels)
            np.testing.assert_array_equal(result.valid[b, h], np.isin(np.arange(config.k_start), result.labels[b, h]))


@pytest.mark.parametrize("weights", ["uniform", "scores", "cls_tokens"])
def test_single_images_equal_a_reference_that_shrinks(weights):
    rng = np.random.default_rng(1)
    tokens, cls_tokens = rng.normal(size=(BATCH, HEADS, TOKENS, DIM)), rng.normal(size=(BATCH, HEADS, DIM))
    places = rng.uniform(0, 50, (BATCH, TOKENS, 2))
    indices = np.stack([[rng.permutation(TOKENS)[:5] for _ in range(HEADS)] for _ in range(BATCH)])
    given, weight = {}, np.full((BATCH, HEADS, TOKENS), 1 / TOKENS)
    if weights == "cls_tokens":
        given = {"cls_tokens": cls_tokens}
        similar = np.einsum("bhnd,bhd->bhn", unit(tokens.astype(float)), unit(cls_tokens.astype(float))) / 2
        weight = np.stack([[softmax(row) for row in rows] for rows in similar])
    elif weights != "uniform":
        given = {"scores": 7e4 * rng.uniform(0.1, 1, (BATCH, HEADS, TOKENS))}
        weight = given["scores"] / given["scores"].sum(-1, keepdims=True)
    config = ClusteringConfig(k_start=5, k_max=4, cost_scale="image")
    result = cluster_features(tokens, positions=places, init_indices=indices, config=config, keep_merging=True, **given)
    assert_equals_reference(result, tokens, places, weight, indices, config)


def test_two_views_equal_the_clustering_of_training():
    tokens, cls_tokens = RNG.standard_normal((2, 3, 2, 16, 8)), RNG.standard_normal((2, 3, 2, 8))
    positions = RNG.uniform(0, 50, (2, 3, 16, 2))
    indices = np.stack([[RNG.permutation(32)[:5] for _ in range(2)] for _ in range(3)])
    config = ClusteringConfig(k_start=5, k_max=5)
    inputs = [jnp.asarray(array, jnp.float32) for array in (tokens, cls_tokens, positions)]
    expected = cluster_views(*inputs, config, init_indices=jnp.asarray(indices))
    rounds, _ = trace_merging(*inputs, config, init_indices=jnp.asarray(indices))
    found = cluster_features(
        tokens, num_views=2, positions=positions, cls_tokens=cls_tokens, config=config, init_indices=indices,
        keep_merging=True,
    )  # fmt: skip
    for name in ("labels", "num_clusters", "valid"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.costs, expected.costs, atol=1e-6)
    np.testing.assert_array_equal(found.merging, rounds)


def test_one_image_falls_into_its_directions():
    tokens, kinds = blobs()
    found = cluster_features(tokens, config=CONFIG)
    assert found.labels.shape == (24,) and found.num_clusters.shape == () and found.costs.shape == (4,)
    assert int(found.num_clusters) == 3 and found.merging is None
    labels = np.asarray(found.labels)
    assert [len(set(labels[kinds == kind])) for kind in range(3)] == [1, 1, 1] and len(set(labels)) == 3


@pytest.mark.parametrize(("lead", "num_views"), [((4,), 1), ((), 2), ((4, 2), 2)])
def test_axes_come_back_as_they_were_given(lead, num_views):
    views = (2,) * (num_views == 2)
    tokens, _ = blobs(*views, *lead)
    scores = RNG.uniform(0.5, 1, tokens.shape[:-1])
    found = cluster_features(tokens, num_views=num_views, scores=scores, config=CONFIG, keep_merging=True)
    assert found.labels.shape == (*views, *lead, 24) and found.num_clusters.shape == lead
    assert found.costs.shape == (*lead, 4) and found.valid.shape == (*lead, 5)
    assert found.merging.shape == (4, *views, *lead, 24)


def test_no_image_depends_on_others():
    tokens, indices = RNG.standard_normal((3, 20, 6)), np.array([RNG.permutation(20)[:5] for _ in range(3)])
    together = cluster_features(tokens, config=CONFIG, init_indices=indices, grid=(4, 5))
    for index in range(3):
        alone = cluster_features(tokens[index], config=CONFIG, init_indices=indices[index], grid=(4, 5))
        np.testing.assert_array_equal(alone.labels, together.labels[index])
        np.testing.assert_allclose(alone.costs, together.costs[index], atol=1e-6)


def test_places_matter_only_if_they_are_given():
    tokens, indices = RNG.standard_normal((20, 6)), np.arange(5) * 4
    nowhere = cluster_features(tokens, config=CONFIG, init_indices=indices)
    equal = ClusteringConfig(k_start=5, k_max=5, cost_scale="image", lambda_pos=0.0)
    np.testing.assert_allclose(
        nowhere.costs, cluster_features(tokens, config=equal, grid=(4, 5), init_indices=indices).costs, atol=1e-7
    )
    y, x = np.divmod(np.arange(20), 5)
    on_grid = cluster_features(tokens, config=CONFIG, grid=(4, 5), init_indices=indices)
    placed = cluster_features(tokens, config=CONFIG, positions=np.stack([x, y], -1), init_indices=indices)
    np.testing.assert_array_equal(on_grid.costs, placed.costs)
    assert np.abs(np.asarray(on_grid.costs) - np.asarray(nowhere.costs)).max() > 1e-3


def test_scores_weigh_tokens_and_draw_the_first_centroids():
    tokens, kinds = blobs(count=30)
    scores = np.where(kinds == 0, 1.0, 0.0)
    found = cluster_features(tokens, scores=scores, config=CONFIG, rng=jax.random.key(1), keep_merging=True)
    # All mass, and so all first centroids, are in the first direction: what has none is not separated.
    assert len(set(np.asarray(found.merging[0])[kinds == 0].tolist())) > 1
    same = cluster_features(tokens, scores=np.full(30, 7.0), config=CONFIG)
    uniform = cluster_features(tokens, config=CONFIG)
    np.testing.assert_array_equal(same.labels, uniform.labels)


def test_it_runs_inside_other_compiled_functions():
    tokens, _ = blobs()
    scores = jnp.ones(24)
    inside = jax.jit(lambda array: cluster_features(array, config=CONFIG, scores=scores).labels)
    np.testing.assert_array_equal(inside(tokens), cluster_features(tokens, config=CONFIG, scores=scores).labels)


def test_a_seed_is_a_key():
    tokens = RNG.standard_normal((20, 6))
    found = [cluster_features(tokens, config=CONFIG, rng=rng) for rng in (3, jax.random.key(3), 4)]
    np.testing.assert_array_equal(found[0].costs, found[1].costs)
    assert np.abs(np.asarray(found[0].costs) - np.asarray(found[2].costs)).max() > 1e-4
    default = cluster_features(tokens, config=CONFIG)
    np.testing.assert_array_equal(default.costs, cluster_features(tokens, config=CONFIG, rng=0).costs)


@pytest.mark.parametrize("heads", [(), (3,)])
@pytest.mark.parametrize("views", [(), (2,)])
def test_one_image_of_a_batch(views, heads):
    shapes = (*views, 4, *heads, 24), (4, *heads), (4, *heads, 6), (4, *heads, 7), (6, *views, 4, *heads, 24)
    many = FeatureClusters(*(jnp.asarray(RNG.integers(0, 7, shape)) for shape in shapes))
    one = many.of_image(2)
    np.testing.assert_array_equal(one.labels, np.moveaxis(np.asarray(many.labels), len(views), 0)[2])
    np.testing.assert_array_equal(one.merging, np.moveaxis(np.asarray(many.merging), 1 + len(views), 0)[2])
    for name in ("num_clusters", "costs", "valid"):
        np.testing.assert_array_equal(getattr(one, name), getattr(many, name)[2])
    assert many._replace(merging=None).of_image(2).merging is None
    if not heads:
        with pytest.raises(ValueError, match="of one image already"):
            one.of_image(0)


GOOD = np.ones((20, 6))
NAN = np.where(np.arange(20)[:, None] == 3, np.nan, GOOD)


@pytest.mark.parametrize(
    ("features", "settings", "message"),
    [
        (np.ones(6), {}, r"features \(6,\): expected \[n d\]"),
        (np.ones((3, 20, 6)), {"num_views": 2}, r"expected \[2 n d\].*num_views=2"),
        (GOOD, {"num_views": 3}, "num_views=3"),
        (NAN, {}, "features: expected finite numbers, found NaN"),
        (np.ones((4, 6)), {}, "k_start=5: expected at most the 4 tokens"),
        (np.array([["a"]]), {}, "features of <U1: expected an array of real numbers"),
        (GOOD + 1j, {}, "features of complex128: expected an array of real numbers"),
        (np.ones((0, 20, 6)), {}, r"features \(0, 20, 6\): expected one image or more"),
        (np.ones((2, 0, 20, 6)), {}, r"features \(2, 0, 20, 6\): expected one image or more, and one head"),
        (GOOD, {"scores": np.ones(19)}, r"scores \(19,\): expected \(20,\)"),
        (GOOD, {"scores": -np.ones(20)}, "scores: expected numbers of 0 or more, found negative"),
        (GOOD, {"scores": np.zeros(20)}, "scores: expected a number above 0 for each image"),
        (GOOD, {"scores": np.ones(20), "cls_tokens": np.ones(6)}, "scores and cls_tokens: give one"),
        (GOOD, {"cls_tokens": np.ones(7)}, r"cls_tokens \(7,\): expected \(6,\)"),
        (GOOD, {"positions": np.ones((20, 3))}, r"positions \(20, 3\): expected \(20, 2\)"),
        (GOOD, {"positions": np.ones((20, 2)), "grid": (4, 5)}, "positions and grid: give one"),
        (GOOD, {"positions": np.full((20, 2), 1e25)}, r"positions: expected numbers of magnitude 1e\+17 at most"),
        (GOOD, {"positions": NAN[:, :2]}, "positions: expected finite numbers"),
        (GOOD, {"cls_tokens": NAN[3]}, "cls_tokens: expected finite numbers"),
        (GOOD, {"scores": NAN[:, 0]}, "scores: expected finite numbers"),
        (GOOD, {"grid": 20}, "grid=20: expected rows and columns"),
        (GOOD, {"grid": (-4, -5)}, r"grid=\(-4, -5\): expected rows and columns"),
        (GOOD, {"rng": np.random.default_rng(0)}, "rng=Generator"),
        (GOOD, {"config": {"k_start": 5}}, "config={'k_start': 5}: expected a ClusteringConfig"),
        (GOOD, {"init_indices": [0, 1, 2, 3, 3]}, "init_indices: expected different tokens .* found 3 twice"),
        (GOOD, {"grid": (4, 4)}, r"grid=\(4, 4\): expected rows x columns of the 20 tokens"),
        (GOOD, {"init_indices": np.arange(4)}, r"init_indices \(4,\) .*expected whole numbers of shape \(5,\)"),
        (GOOD, {"init_indices": np.arange(5) + 17}, "init_indices: expected numbers from 0 to 19"),
        (GOOD, {"init_indices": np.arange(5), "rng": jax.random.key(0)}, "rng and init_indices: give one"),
    ],
)
def test_what_does_not_fit_is_named(features, settings, message):
    with pytest.raises(ValueError, match=message):
        cluster_features(features, **{"config": CONFIG, **settings})

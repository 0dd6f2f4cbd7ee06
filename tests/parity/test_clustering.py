"""The clustering gives what the official code gave."""

import json

import numpy as np
import pytest

from croc_jax.clustering import ClusteringConfig, cluster_views, patch_positions, view_centroids
from tests.parity.goldens import golden_cases

CONFIG_FIELDS = (
    "k_start", "k_max", "lambda_pos", "sinkhorn_lambda", "sinkhorn_iterations", "temp_r", "temp_c", "uniform_marginals",
)  # fmt: skip


def run(golden):
    settings = json.loads(str(golden["config"]))
    config = ClusteringConfig(**{name: settings[name] for name in CONFIG_FIELDS})
    side = int(round(golden["tokens"].shape[3] ** 0.5))
    positions = patch_positions(golden["crop_boxes"], (side, side))
    result = cluster_views(golden["tokens"], golden["cls"], positions, config, init_indices=golden["init_indices"])
    return config, result


@pytest.mark.parametrize("golden", golden_cases("clustering_*.npz"))
def test_clustering_equals_the_official_one(golden):
    config, result = run(golden)
    assert result.assignments.shape == (*golden["tokens"].shape[:4], config.k_start)
    np.testing.assert_array_equal(result.num_clusters, golden["num_clusters"])
    np.testing.assert_allclose(result.costs, golden["costs"], atol=2e-5)
    last = golden["last_tokens"]
    centroids = np.asarray(view_centroids(last[:, :, 1:], last[:, :, 0], result.assignments))
    # Scaling a short sum to one length magnifies the rounding of both sides.
    sums = np.einsum("vbhnk,vbnd->vbhkd", result.assignments, last[:, :, 1:])
    shortness = np.linalg.norm(sums, axis=-1) / np.linalg.norm(last[:, :, 1:], axis=-1).mean()
    norm_scale = np.abs(golden["centroids"]).max()
    batch, heads = golden["num_clusters"].shape
    for b in range(batch):
        for h in range(heads):
            k = golden["num_clusters"][b, h]
            ours = np.asarray(result.assignments[:, b, h])
            theirs = golden["assignments"][:, b, h, :, :k]
            pairs = match_columns(ours, theirs)
            np.testing.assert_allclose(ours[..., pairs], theirs, atol=2e-5)
            np.testing.assert_array_equal(np.asarray(result.valid[b, h])[pairs], golden["valid"][b, h, :k])
            others = np.setdiff1d(np.arange(config.k_start), pairs)
            assert not ours[..., others].any() and not np.asarray(result.valid[b, h])[others].any()
            valid = golden["valid"][b, h, :k]
            np.testing.assert_allclose(
                centroids[:, b, h][:, pairs][:, valid],
                golden["centroids"][:, b, h, :k][:, valid],
                atol=2e-5 * norm_scale,
            )
            difference = np.abs(centroids[:, b, h][:, pairs] - golden["centroids"][:, b, h, :k])[:, valid]
            weighted = difference.max(-1) * np.minimum(shortness[:, b, h][:, pairs][:, valid], 1.0)
            assert weighted.max() <= 5e-6 * norm_scale


@pytest.mark.parametrize("golden", golden_cases("clustering_*.npz"))
def test_official_assignments_give_the_official_centroids(golden):
    last, expected = golden["last_tokens"], golden["centroids"]
    found = np.asarray(view_centroids(last[:, :, 1:], last[:, :, 0], golden["assignments"]))
    valid = np.broadcast_to(golden["valid"], expected.shape[:-1])
    np.testing.assert_allclose(found[valid], expected[valid], atol=1e-6 * np.abs(expected).max())


def match_columns(ours, theirs):
    """Returns, for each of their columns, ours that is nearest; all different."""
    distance = np.abs(ours[..., :, None] - theirs[..., None, :]).sum((0, 1))
    pairs = []
    for column in range(theirs.shape[-1]):
        order = np.argsort(distance[:, column], kind="stable")
        pairs.append(next(int(i) for i in order if int(i) not in pairs))
    return pairs

"""Figures from images and clusters of any features."""

import numpy as np
import pytest

from croc_jax.clustering import ClusteringConfig, cluster_features
from croc_jax.report import plot_clusters, plot_costs, plot_merging

RNG = np.random.default_rng(0)
GRID, CONFIG = (4, 6), ClusteringConfig(k_start=5, k_max=5, cost_scale="image")
IMAGE = RNG.integers(0, 256, (32, 48, 3), dtype=np.uint8)


def clusters(*lead, num_views=1, keep_merging=True):
    features = RNG.standard_normal((*lead, 24, 8))
    return cluster_features(features, num_views=num_views, config=CONFIG, keep_merging=keep_merging)


def titles(figure):
    return [axes.get_title(loc="center") for axes in figure.axes]


def test_one_image_with_and_without_heads():
    found = clusters()
    figure = plot_clusters(IMAGE, found, GRID)
    assert titles(figure) == ["image", f"{int(found.valid.sum())} clusters"]
    found = clusters(3)
    counts = found.valid.sum(-1).tolist()
    expected = ["image", *(f"head {i + 1}: {count} clusters" for i, count in enumerate(counts))]
    assert titles(plot_clusters(IMAGE, found, GRID)) == expected


def test_two_views():
    found = clusters(2, 3, num_views=2)
    figure = plot_clusters(np.stack([IMAGE, IMAGE[::-1]]), found, GRID)
    assert len(figure.axes) == 2 * 4 and titles(figure)[1].endswith("shared") and "view 2" in titles(figure)
    rows = plot_merging(np.stack([IMAGE, IMAGE]), found, GRID, heads=2).axes
    assert len(rows) == 2 * 2 * 4 + 1


def test_every_round_of_one_image_above_its_costs():
    found = clusters()
    *cells, costs = plot_merging(IMAGE, found, GRID).axes
    assert [cell.get_title(loc="center") for cell in cells] == ["K = 5", "K = 4", "K = 3", "K = 2"]
    np.testing.assert_allclose(costs.lines[0].get_ydata(), found.costs)
    assert costs.lines[1].get_xdata() == found.num_clusters
    framed = [cell.spines["left"].get_visible() for cell in cells]
    assert framed == [k == int(found.num_clusters) for k in (5, 4, 3, 2)]
    (axes,) = plot_costs(found).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), found.costs)


@pytest.mark.parametrize(
    ("images", "found", "grid", "message"),
    [
        (IMAGE[..., :1], clusters(), GRID, r"images \(32, 48, 1\)"),
        (IMAGE / 255, clusters(), GRID, "float64: expected"),
        (IMAGE, clusters(), (4, 5), r"clusters.labels \(24,\): expected \[20\]"),
        (IMAGE, clusters(2, num_views=2), GRID, "clusters of two views; give both images"),
        (np.stack([IMAGE] * 2), clusters(), GRID, r"expected \[2 24\] or \[2 h 24\]"),
        (np.stack([IMAGE] * 2), clusters(2), GRID, "clusters of images one by one; give one of them"),
        (
            IMAGE,
            clusters(2, 3),
            GRID,
            r"clusters.labels \(2, 3, 24\): choose one image, such as clusters.of_image\(0\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(images, found, grid, message):
    with pytest.raises(ValueError, match=message):
        plot_clusters(images, found, grid)


def test_one_image_of_a_batch():
    many = clusters(2, 3)
    counts = many.valid[1].sum(-1).tolist()
    expected = ["image", *(f"head {i + 1}: {count} clusters" for i, count in enumerate(counts))]
    assert titles(plot_clusters(IMAGE, many.of_image(1), GRID)) == expected
    assert len(plot_costs(many.of_image(1)).axes[0].lines) == 6


def test_rounds_must_have_been_kept():
    with pytest.raises(ValueError, match="heads=0: expected 1 or more"):
        plot_merging(IMAGE, clusters(), GRID, heads=0)
    with pytest.raises(ValueError, match="keep_merging=True"):
        plot_merging(IMAGE, clusters(keep_merging=False), GRID)
    with pytest.raises(ValueError, match=r"clusters.costs \(2, 3, 4\): choose one image, such as clusters.of_image"):
        plot_costs(clusters(2, 3))

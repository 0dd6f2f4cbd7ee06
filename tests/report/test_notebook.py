"""Figures from images and clusters of any features."""

import functools

import numpy as np
import pytest

from croc_jax.clustering import ClusteringConfig, cluster_features
from croc_jax.report import plot_clusters, plot_costs, plot_merging

RNG = np.random.default_rng(0)
GRID, CONFIG = (4, 6), ClusteringConfig(k_start=5, k_max=5, cost_scale="image")
IMAGE = RNG.integers(0, 256, (32, 48, 3), dtype=np.uint8)


@functools.cache
def clusters(*lead, num_views=1):
    features = np.random.default_rng(0).standard_normal((*lead, 24, 8))
    return cluster_features(features, num_views=num_views, config=CONFIG, keep_merging=True)


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


def test_what_does_not_fit_is_named():
    one, two, pair, three = clusters(), clusters(2), clusters(2, num_views=2), clusters(2, 3)
    views = np.stack([IMAGE] * 2)
    for images, found, grid, message in (
        (IMAGE[..., :1], one, GRID, r"images \(32, 48, 1\)"),
        (IMAGE / 255, one, GRID, "float64: expected"),
        (IMAGE, one, (4, 5), r"clusters.labels \(24,\): expected \[20\]"),
        (IMAGE, pair, GRID, "clusters of two views; give both images"),
        (views, one, GRID, r"expected \[2 24\] or \[2 h 24\]"),
        (views, two, GRID, "clusters of images one by one; give one of them"),
        (IMAGE, three, GRID, r"clusters.labels \(2, 3, 24\): choose one image, such as clusters.of_image\(0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_clusters(images, found, grid)
    with pytest.raises(ValueError, match="heads=0: expected 1 or more"):
        plot_merging(IMAGE, one, GRID, heads=0)
    with pytest.raises(ValueError, match="keep_merging=True"):
        plot_merging(IMAGE, one._replace(merging=None), GRID)
    with pytest.raises(ValueError, match=r"clusters.costs \(2, 3, 4\): choose one image, such as clusters.of_image"):
        plot_costs(three)


def test_one_image_of_a_batch():
    many = clusters(2, 3)
    counts = many.valid[1].sum(-1).tolist()
    expected = ["image", *(f"head {i + 1}: {count} clusters" for i, count in enumerate(counts))]
    assert titles(plot_clusters(IMAGE, many.of_image(1), GRID)) == expected
    assert len(plot_costs(many.of_image(1)).axes[0].lines) == 6

"""Figures of clusters for a notebook: from images, and what `croc_jax.clustering.cluster_features` returns for them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.figure import Figure

from croc_jax.clustering import FeatureClusters
from croc_jax.clustering.validation import read_grid
from croc_jax.report import figures

MOST_HEADS = 6


class _Drawn(NamedTuple):
    """Arrays with all axes.

    Attributes:
        views: one image, or two views of one.
        labels: of the chosen round.
        valid: clusters that all views show.
        num_clusters: K.
        costs: of every round.
        merging: each token's cluster at every round, or None.
    """

    views: UInt8[np.ndarray, "v H W 3"]
    labels: Int[np.ndarray, "v h n"]
    valid: Bool[np.ndarray, "h k"]
    num_clusters: Int[np.ndarray, " h"]
    costs: Float[np.ndarray, "h rounds"]
    merging: Int[np.ndarray, "rounds v h n"] | None


def plot_clusters(images: UInt8[np.ndarray, "*v H W 3"], clusters: FeatureClusters, grid: tuple[int, int]) -> Figure:
    """Returns an image, or two views of one, beside the clusters of each head.

    Args:
        images: `[H W 3]`, or two views `[2 H W 3]`.
        clusters: of the features of that image, with or without heads: an axis before the tokens counts as
            heads. Of a batch, choose one image: `clusters.of_image(0)`.
        grid: rows and columns of tokens.

    Raises:
        ValueError: if images, clusters and grid do not fit together.
    """
    drawn = _arrange(images, clusters, grid)
    return figures.plot_clusters(drawn.views, drawn.labels, drawn.valid, grid)


def plot_merging(
    images: UInt8[np.ndarray, "*v H W 3"], clusters: FeatureClusters, grid: tuple[int, int], *, heads: int = 1
) -> Figure:
    """Returns the clusters of every round from K_start to 2 above their costs, as in the paper's Figure 3.

    Args:
        images: see `plot_clusters`.
        clusters: made with `keep_merging=True`.
        grid: see `plot_clusters`.
        heads: how many to draw, the first ones.

    Raises:
        ValueError: see `plot_clusters`, for `heads` below 1, or if the clusters of every round were not kept.
    """
    if not isinstance(heads, (int, np.integer)) or heads < 1:
        raise ValueError(f"heads={heads!r}: expected a whole number of 1 or more")
    drawn = _arrange(images, clusters, grid)
    if drawn.merging is None:
        raise ValueError("clusters.merging=None: call cluster_features with keep_merging=True")
    costs, num_clusters = drawn.costs[:heads], drawn.num_clusters[:heads]
    return figures.plot_merging(drawn.views, drawn.merging[:, :, :heads], costs, num_clusters, grid)


def plot_costs(clusters: FeatureClusters) -> Figure:
    """Returns the transport cost of every round of the first heads; the chosen K is ringed.

    Args:
        clusters: see `plot_clusters`.

    Raises:
        ValueError: for a batch of images with heads.
    """
    costs = np.asarray(clusters.costs)
    if costs.ndim > 2:
        raise ValueError(f"clusters.costs {costs.shape}: choose one image, such as clusters.of_image(0)")
    return figures.plot_costs(
        costs.reshape(-1, costs.shape[-1])[:MOST_HEADS], np.asarray(clusters.num_clusters).reshape(-1)[:MOST_HEADS]
    )


def _arrange(images: np.ndarray, clusters: FeatureClusters, grid: tuple[int, int]) -> _Drawn:
    views = np.asarray(images)
    if views.ndim not in (3, 4) or views.shape[-1] != 3 or (views.ndim == 4 and len(views) != 2):
        raise ValueError(f"images {views.shape}: expected [H W 3], or two views [2 H W 3]")
    if views.dtype != np.uint8:
        raise ValueError(f"images of type {views.dtype}: expected uint8 from 0 to 255")
    labels, two = np.asarray(clusters.labels), views.ndim == 4
    rows, columns = read_grid(grid)
    count = rows * columns
    if labels.ndim == 3 + two:
        raise ValueError(f"clusters.labels {labels.shape}: choose one image, such as clusters.of_image(0)")
    if labels.ndim not in (1 + two, 2 + two) or labels.shape[-1] != count or (two and labels.shape[0] != 2):
        forms = f"[2 {count}] or [2 h {count}]" if two else f"[{count}] or [h {count}]"
        raise ValueError(f"clusters.labels {labels.shape}: expected {forms} for these images and grid={grid}")
    num_views = 1 + two
    merging = None if clusters.merging is None else np.asarray(clusters.merging)
    valid, costs = np.asarray(clusters.valid), np.asarray(clusters.costs)
    if valid.size // valid.shape[-1] != labels.size // count // num_views:
        hint = "of images one by one; give one of them and its clusters" if two else "of two views; give both images"
        raise ValueError(f"clusters.valid {valid.shape}: these are clusters {hint}")
    return _Drawn(
        views.reshape(num_views, *views.shape[-3:]),
        labels.reshape(num_views, -1, count),
        valid.reshape(-1, valid.shape[-1]),
        np.asarray(clusters.num_clusters).reshape(-1),
        costs.reshape(-1, costs.shape[-1]),
        None if merging is None else merging.reshape(len(merging), num_views, -1, count),
    )

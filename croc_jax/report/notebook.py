"""Figures of clusters for a notebook: from images, and what `croc_jax.clustering.cluster_features` returns for them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.figure import Figure

from croc_jax.clustering import FeatureClusters
from croc_jax.report import figures

MOST_HEADS = 6


class _Arrays(NamedTuple):
    """Arrays with all axes, also those of size 1; `merging` is None if it was not kept."""

    views: UInt8[np.ndarray, "v H W 3"]
    labels: Int[np.ndarray, "v h n"]
    valid: Bool[np.ndarray, "h k"]
    num_clusters: Int[np.ndarray, " h"]
    costs: Float[np.ndarray, "h rounds"]
    merging: Int[np.ndarray, "rounds v h n"] | None


def plot_clusters(images: UInt8[np.ndarray, "*v H W 3"], clusters: FeatureClusters, grid: tuple[int, int]) -> Figure:
    """Returns an image, or two views of one, beside the clusters of each head.

    Args:
        images: an image `[H W 3]`, or two views `[2 H W 3]`.
        clusters: clusters of the features of that image; an axis before the tokens counts as heads. Of a batch,
            choose one image: `clusters.of_image(0)`.
        grid: rows and columns of tokens.

    Raises:
        ValueError: if the shapes do not match.
    """
    arrays = _arrange(images, clusters, grid)
    return figures.plot_clusters(arrays.views, arrays.labels, arrays.valid, grid)


def plot_merging(
    images: UInt8[np.ndarray, "*v H W 3"], clusters: FeatureClusters, grid: tuple[int, int], *, heads: int = 1
) -> Figure:
    """Returns the clusters of every round from K_start to 2 above their costs, as in the paper's Figure 3.

    Args:
        images: see `plot_clusters`.
        clusters: clusters made with `keep_merging=True`.
        grid: see `plot_clusters`.
        heads: number of heads to draw, from the first.

    Raises:
        ValueError: if the shapes do not match, for `heads` below 1, or if the clusters of every round were not kept.
    """
    if heads < 1:
        raise ValueError(f"heads={heads}: expected 1 or more")
    arrays = _arrange(images, clusters, grid)
    if arrays.merging is None:
        raise ValueError("clusters.merging=None: call cluster_features with keep_merging=True")
    costs, num_clusters = arrays.costs[:heads], arrays.num_clusters[:heads]
    return figures.plot_merging(arrays.views, arrays.merging[:, :, :heads], costs, num_clusters, grid)


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
    num_clusters = np.asarray(clusters.num_clusters).reshape(-1)
    return figures.plot_costs(costs.reshape(-1, costs.shape[-1])[:MOST_HEADS], num_clusters[:MOST_HEADS])


def _arrange(images: np.ndarray, clusters: FeatureClusters, grid: tuple[int, int]) -> _Arrays:
    views, num_tokens = np.asarray(images), int(np.prod(grid))
    if views.shape[-1:] != (3,) or views.dtype != np.uint8 or not (views.ndim == 3 or views.shape[:-3] == (2,)):
        raise ValueError(
            f"images {views.shape} {views.dtype}: expected [H W 3], or two views [2 H W 3], uint8; of images of other "
            "formats, croc_jax.data.channels.show_pixels chooses what pictures show"
        )
    two = views.ndim == 4
    labels, valid, costs = (np.asarray(x) for x in (clusters.labels, clusters.valid, clusters.costs))
    if labels.ndim == 3 + two:
        raise ValueError(f"clusters.labels {labels.shape}: choose one image, such as clusters.of_image(0)")
    if labels.ndim not in (1 + two, 2 + two) or labels.shape[-1] != num_tokens or (two and labels.shape[0] != 2):
        forms = f"[2 {num_tokens}] or [2 h {num_tokens}]" if two else f"[{num_tokens}] or [h {num_tokens}]"
        raise ValueError(f"clusters.labels {labels.shape}: expected {forms} for these images and grid={grid}")
    if valid.size // valid.shape[-1] != labels.size // num_tokens // (1 + two):
        hint = "of images one by one; give one of them and its clusters" if two else "of two views; give both images"
        raise ValueError(f"clusters.valid {valid.shape}: these are clusters {hint}")
    merging = None if clusters.merging is None else np.asarray(clusters.merging)
    return _Arrays(
        views.reshape(1 + two, *views.shape[-3:]),
        labels.reshape(1 + two, -1, num_tokens),
        valid.reshape(-1, valid.shape[-1]),
        np.asarray(clusters.num_clusters).reshape(-1),
        costs.reshape(-1, costs.shape[-1]),
        None if merging is None else merging.reshape(len(merging), 1 + two, -1, num_tokens),
    )

"""Clusters pairs of crops with a trained backbone, head by head."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from croc_jax.data.channels import show_pixels
from croc_jax.data.sources import ImageSource
from croc_jax.evaluation.backbones import FrozenBackbone
from croc_jax.evaluation.crop_pairs import load_pairs, make_cluster_fn
from croc_jax.float32 import in_float32
from croc_jax.models import patch_grid

# Of all candidates, pairs that share so much show the method best.
_BEST_OVERLAP = 0.6


class Exploration(NamedTuple):
    """Pairs of crops without color augmentation, and their clusters.

    Attributes:
        indices: index of each image in its source.
        views: crops, as pictures show them (see `show_pixels`).
        boxes: boxes of the crops: top, left, height, width, flip.
        grid: rows and columns of patches.
        labels: cluster of each token in the chosen round.
        valid: clusters that both views show.
        num_clusters: K of the chosen round.
        costs: transport cost of each round.
        merging: cluster of each token in every round, from K_start down to 2.
    """

    indices: Int[np.ndarray, " b"]
    views: UInt8[np.ndarray, "b v H W 3"]
    boxes: Float[np.ndarray, "b v 5"]
    grid: tuple[int, int]
    labels: Int[np.ndarray, "v b h n"]
    valid: Bool[np.ndarray, "b h k"]
    num_clusters: Int[np.ndarray, "b h"]
    costs: Float[np.ndarray, "b h rounds"]
    merging: Int[np.ndarray, "rounds v b h n"]


@in_float32
def explore(
    backbone: FrozenBackbone,
    source: ImageSource,
    *,
    num_images: int,
    crop_size: int | None = None,
    seed: int = 0,
) -> Exploration:
    """Clusters pairs of crops of images spread evenly over a source.

    Args:
        backbone: weights, and the settings of their run for crops, clustering and tokens.
        source: images; unreadable ones are left out, and counted in the log.
        num_images: how many images.
        crop_size: side of the crops in pixels, by default as in training; larger ones have finer clusters.
        seed: seed of the crops and the first centroids.

    Raises:
        ValueError: if no image can be read.
    """
    recipe = backbone.recipe
    pairs = load_pairs(source, recipe.data, num_images=num_images, crop_size=crop_size, seed=seed)
    grid = patch_grid(pairs.views.shape[2:4], recipe.backbone.patch_size)
    cluster_fn = make_cluster_fn(backbone.module, recipe.clustering, recipe.objective, grid)
    found, merging, _ = cluster_fn(backbone.params, pairs.views, pairs.boxes, jax.random.key(seed))
    found, merging = jax.device_get((found, merging))
    return Exploration(
        pairs.indices,
        show_pixels(pairs.views, recipe.data.pixels),
        pairs.boxes,
        grid,
        found.labels,
        found.valid,
        found.num_clusters,
        found.costs,
        merging,
    )


def overlap(boxes: Float[np.ndarray, "b v 5"]) -> Float[np.ndarray, " b"]:
    """Returns the share of the smaller crop that the other one shows too.

    Args:
        boxes: boxes of pairs of crops.

    Examples:
        >>> overlap(np.array([[[0, 0, 10, 20, 0], [0, 10, 10, 20, 1]]])).tolist()
        [0.5]
    """
    start, size = boxes[..., :2], boxes[..., 2:4]
    common = np.clip((start + size).min(axis=1) - start.max(axis=1), 0, None)
    return common.prod(axis=-1) / size.prod(axis=-1).min(axis=1)


def rank_pairs(boxes: Float[np.ndarray, "b v 5"]) -> Int[np.ndarray, " b"]:
    """Returns the order of pairs of crops in which those come first that neither repeat nor miss each other."""
    return np.abs(overlap(boxes) - _BEST_OVERLAP).argsort(kind="stable")

"""Looks inside a trained backbone: clusters of pairs of crops, head by head."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from croc_jax.clustering import Clustering, cluster_views, patch_positions, trace_merging
from croc_jax.data.crops import two_views
from croc_jax.data.decoding import DecodeError, decode
from croc_jax.data.photometric import normalize
from croc_jax.data.sources import ImageSource
from croc_jax.models import Backbone, clustering_tokens, patch_grid
from croc_jax.training.config import Recipe
from croc_jax.training.forward import encode_views


class Exploration(NamedTuple):
    """Pairs of crops without color augmentation, and what the clustering makes of them.

    Attributes:
        indices: of the images in their source `[b]`.
        views: the crops `[b v H W 3]`.
        boxes: of the crops `[b v 5]`: top, left, height, width, flip.
        grid: rows and columns of patches.
        labels: each token's cluster in the chosen round `[v b h n]`.
        valid: clusters that both views show `[b h k]`.
        num_clusters: K of the chosen round `[b h]`.
        costs: of each round `[b h rounds]`.
        merging: each token's cluster in every round, from K_start down to 2 `[rounds v b h n]`.
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


def explore(
    backbone: Backbone,
    params: Any,
    recipe: Recipe,
    source: ImageSource,
    *,
    num_images: int,
    crop_size: int | None = None,
    seed: int = 0,
) -> Exploration:
    """Clusters pairs of crops of images spread evenly over a source.

    Args:
        backbone: the module.
        params: its parameters, a teacher's for what training sees.
        recipe: of the run: law of the crops, the clustering and its tokens.
        source: of images; unreadable ones are left out.
        num_images: how many.
        crop_size: side of the crops in pixels, the recipe's by default; larger ones have finer clusters.
        seed: of the crops and the first centroids.

    Raises:
        ValueError: if no image can be read.
    """
    size = crop_size or recipe.data.views.crop_size
    indices, views, boxes = _crops(source, recipe, num_images=num_images, size=size, seed=seed)
    grid = patch_grid((size, size), recipe.backbone.patch_size)

    @jax.jit
    def cluster(params: Any, views: Array, boxes: Array) -> tuple[Clustering, Array]:
        features, _ = encode_views(backbone, params, normalize(views))
        # The clustering takes the view axis first.
        features = jax.tree.map(lambda array: jnp.swapaxes(array, 0, 1), features)
        tokens, cls_tokens = clustering_tokens(features, recipe.objective.tokens, groups=recipe.objective.token_groups)
        positions = patch_positions(jnp.moveaxis(boxes, 1, 0), grid)
        rng = jax.random.key(seed)
        result = cluster_views(tokens, cls_tokens, positions, recipe.clustering, rng=rng)
        merging, _ = trace_merging(tokens, cls_tokens, positions, recipe.clustering, rng=rng)
        return result, merging

    result, merging = jax.device_get(cluster(params, views, boxes))
    return Exploration(
        indices, views, boxes, grid, result.labels, result.valid, result.num_clusters, result.costs, merging
    )


def overlap(boxes: Float[np.ndarray, "b v 5"]) -> Float[np.ndarray, " b"]:
    """Returns the share of the smaller crop that the other one shows too.

    Args:
        boxes: of pairs of crops.
    """
    start, size = boxes[..., :2], boxes[..., 2:4]
    common = np.clip((start + size).min(axis=1) - start.max(axis=1), 0, None)
    return common.prod(axis=-1) / size.prod(axis=-1).min(axis=1)


def _crops(
    source: ImageSource, recipe: Recipe, *, num_images: int, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    config = dataclasses.replace(recipe.data.views, crop_size=size)
    chosen, pairs = np.linspace(0, len(source) - 1, min(num_images, len(source))).astype(int), []
    for index in chosen:
        generator = np.random.default_rng([seed, index])
        try:
            pairs.append((index, *two_views(decode(source[int(index)]), generator, config)))
        except (DecodeError, OSError):
            continue
    if not pairs:
        raise ValueError(f"none of {len(chosen)} images of the source can be read: check the files")
    indices, views, boxes = (np.stack(parts) for parts in zip(*pairs, strict=True))
    return indices, views, boxes

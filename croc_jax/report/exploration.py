"""Looks inside a trained backbone: clusters of pairs of crops, head by head."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from croc_jax.clustering import Clustering, cluster_views, patch_positions, trace_merging
from croc_jax.data.photometric import normalize
from croc_jax.data.sources import ImageSource
from croc_jax.data.views import DecodeError, decode, two_views
from croc_jax.models import VisionTransformer, patch_grid
from croc_jax.training.config import Recipe
from croc_jax.training.networks import encode_views
from croc_jax.training.step import clustering_tokens


class Exploration(NamedTuple):
    """Pairs of crops without color augmentation, and what the clustering makes of them.

    Attributes:
        views: the crops `[b v H W 3]`.
        grid: rows and columns of patches.
        labels: each token's cluster in the chosen round `[v b h n]`.
        valid: clusters that both views show `[b h k]`.
        num_clusters: K of the chosen round `[b h]`.
        costs: of each round `[b h rounds]`.
        merging: each token's cluster in every round, from K_start down to 2 `[rounds v b h n]`.
    """

    views: UInt8[np.ndarray, "b v H W 3"]
    grid: tuple[int, int]
    labels: Int[np.ndarray, "v b h n"]
    valid: Bool[np.ndarray, "b h k"]
    num_clusters: Int[np.ndarray, "b h"]
    costs: Float[np.ndarray, "b h rounds"]
    merging: Int[np.ndarray, "rounds v b h n"]


def explore(
    backbone: VisionTransformer, params: Any, recipe: Recipe, source: ImageSource, *, num_images: int, seed: int = 0
) -> Exploration:
    """Clusters pairs of crops of images spread evenly over a source.

    Args:
        backbone: the module.
        params: its parameters, a teacher's for what training sees.
        recipe: of the run: size and law of the crops, the clustering and its tokens.
        source: of images; unreadable ones are left out.
        num_images: how many.
        seed: of the crops and the first centroids.
    """
    views, boxes = _crops(source, recipe, num_images=num_images, seed=seed)
    size = recipe.data.views.crop_size
    grid = patch_grid((size, size), recipe.backbone.patch_size)

    @jax.jit
    def cluster(params: Any, views: Array, boxes: Array) -> tuple[Clustering, Array]:
        tokens, cls_tokens = clustering_tokens(
            encode_views(backbone, params, normalize(views)), recipe.objective.tokens
        )
        positions = patch_positions(jnp.moveaxis(boxes, 1, 0), grid)
        rng = jax.random.key(seed)
        result = cluster_views(tokens, cls_tokens, positions, recipe.clustering, rng=rng)
        labels, _ = trace_merging(tokens, cls_tokens, positions, recipe.clustering, rng=rng)
        return result, labels

    result, merging = jax.device_get(cluster(params, views, boxes))
    return Exploration(views, grid, result.labels, result.valid, result.num_clusters, result.costs, merging)


def _crops(source: ImageSource, recipe: Recipe, *, num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    pairs = []
    for index in np.linspace(0, len(source) - 1, min(num_images, len(source))).astype(int):
        generator = np.random.default_rng([seed, index])
        try:
            pairs.append(two_views(decode(source[int(index)]), generator, recipe.data.views))
        except (DecodeError, OSError):
            continue
    if not pairs:
        raise ValueError(f"none of {num_images} images of the source can be read: check the files")
    views, boxes = zip(*pairs, strict=True)
    return np.stack(views), np.stack(boxes)

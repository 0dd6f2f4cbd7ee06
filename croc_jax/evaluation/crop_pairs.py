"""Pairs of crops of a few images, always the same ones, and the clusters that a backbone finds in them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float, Int, Real

from croc_jax.clustering import Clustering, ClusteringConfig, patch_positions
from croc_jax.clustering.cross_view import cluster_arrays
from croc_jax.data.channels import load_pixels
from croc_jax.data.config import DataConfig
from croc_jax.data.crops import two_views
from croc_jax.data.decoding import DecodeError
from croc_jax.data.photometric import normalize
from croc_jax.data.sources import ImageSource
from croc_jax.evaluation.features import Params
from croc_jax.losses import ObjectiveConfig
from croc_jax.models import Backbone, clustering_tokens
from croc_jax.training.config import Recipe

# Below this number of patches a side, pictures show crops of twice the size.
_COARSE_GRID = 14


class CropPairs(NamedTuple):
    """Pairs of crops without color augmentation.

    Attributes:
        indices: index of each image in its source.
        views: values as they are stored.
        boxes: boxes of the crops: top, left, height, width, flip.
    """

    indices: Int[np.ndarray, " b"]
    views: Real[np.ndarray, "b v H W c"]
    boxes: Float[np.ndarray, "b v 5"]


ClusterFn = Callable[..., tuple[Clustering, Int[Array, "rounds v b h n"], Float[Array, "v b n d"]]]


def picture_size(recipe: Recipe) -> int:
    """Returns the side of crops for pictures: as in training, or twice that where clusters would be coarse."""
    size = recipe.data.views.crop_size
    return 2 * size if size // recipe.backbone.patch_size < _COARSE_GRID else size


def load_pairs(
    source: ImageSource, data: DataConfig, *, num_images: int, crop_size: int | None = None, seed: int = 0
) -> CropPairs:
    """Returns pairs of crops of images spread evenly over a source.

    Args:
        source: images; unreadable ones are left out, and counted in the log.
        data: format of the images, and distribution of the crops.
        num_images: how many images.
        crop_size: side of the crops in pixels, by default as in training.
        seed: seed of the crops.

    Raises:
        ValueError: if no image can be read.
    """
    views = dataclasses.replace(data.views, crop_size=crop_size or data.views.crop_size)
    chosen = np.linspace(0, len(source) - 1, min(num_images, len(source))).astype(int)
    pairs, errors = [], []
    for index in chosen.tolist():
        try:
            image = load_pixels(source, index, data.pixels)
            pairs.append((index, *two_views(image, np.random.default_rng([seed, index]), views)))
        except DecodeError as error:
            errors.append(error)
    if not pairs:
        raise ValueError(f"none of {len(chosen)} images of the source can be read: {errors[0]}")
    if errors:
        logging.warning("left out %d of %d images: %s", len(errors), len(chosen), errors[0])
    return CropPairs(*(np.stack(parts) for parts in zip(*pairs, strict=True)))


@functools.lru_cache(maxsize=4)
def make_cluster_fn(
    module: Backbone, clustering: ClusteringConfig, objective: ObjectiveConfig, grid: tuple[int, int]
) -> ClusterFn:
    """Returns a compiled function of (parameters, views, boxes, key) to clusters, those of all rounds, and patches.

    Args:
        module: backbone.
        clustering: hyper-parameters.
        objective: which tokens are clustered.
        grid: rows and columns of patches of a crop.
    """

    @jax.jit
    def cluster(
        params: Params, views: Array, boxes: Array, rng: Array
    ) -> tuple[Clustering, Array | None, Float[Array, "v b n d"]]:
        # View by view: `[v b H W 3]`.
        pixels = normalize(jnp.moveaxis(views, 1, 0), module.image_mean, module.image_std, module.pixels)
        features = jax.vmap(lambda images: module.apply({"params": params}, images))(pixels)
        tokens, cls_tokens = clustering_tokens(features, objective.tokens, groups=objective.token_groups)
        positions = patch_positions(jnp.moveaxis(boxes, 1, 0), grid)
        # The result and all rounds in one program; `trace_merging` gives the rounds alone.
        settings = {"scores": None, "rng": rng, "init_indices": None, "config": clustering, "keep_rounds": True}
        return *cluster_arrays(tokens, cls_tokens, positions=positions, **settings), features.patches

    return cluster

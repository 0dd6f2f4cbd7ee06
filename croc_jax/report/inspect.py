"""Clusters pairs of crops with a trained backbone, head by head."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Bool, Float, Int, UInt8

from croc_jax.clustering import Clustering, ClusteringConfig, patch_positions
from croc_jax.clustering.cross_view import cluster_arrays
from croc_jax.data.channels import load_pixels, show_pixels
from croc_jax.data.crops import two_views
from croc_jax.data.decoding import DecodeError
from croc_jax.data.photometric import normalize
from croc_jax.data.sources import ImageSource
from croc_jax.evaluation.backbones import FrozenBackbone
from croc_jax.evaluation.features import Params
from croc_jax.float32 import in_float32
from croc_jax.losses import ObjectiveConfig
from croc_jax.models import Backbone, clustering_tokens, patch_grid


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
    views = dataclasses.replace(recipe.data.views, crop_size=crop_size or recipe.data.views.crop_size)
    chosen = np.linspace(0, len(source) - 1, min(num_images, len(source))).astype(int)
    pairs, errors, pixels = [], [], backbone.module.pixels
    for index in chosen.tolist():
        try:
            image = load_pixels(source, index, pixels)
            pairs.append((index, *two_views(image, np.random.default_rng([seed, index]), views)))
        except DecodeError as error:
            errors.append(error)
    if not pairs:
        raise ValueError(f"none of {len(chosen)} images of the source can be read: {errors[0]}")
    if errors:
        logging.warning("left out %d of %d images: %s", len(errors), len(chosen), errors[0])
    indices, views, boxes = (np.stack(parts) for parts in zip(*pairs, strict=True))
    grid = patch_grid(views.shape[2:4], recipe.backbone.patch_size)
    cluster_fn = _make_cluster_fn(backbone.module, recipe.clustering, recipe.objective, grid)
    result, merging = jax.device_get(cluster_fn(backbone.params, views, boxes, jax.random.key(seed)))
    views = show_pixels(views, pixels)
    return Exploration(
        indices, views, boxes, grid, result.labels, result.valid, result.num_clusters, result.costs, merging
    )


@functools.lru_cache(maxsize=4)
def _make_cluster_fn(
    module: Backbone, clustering: ClusteringConfig, objective: ObjectiveConfig, grid: tuple[int, int]
) -> Callable[..., tuple[Clustering, Array | None]]:
    @jax.jit
    def cluster(params: Params, views: Array, boxes: Array, rng: Array) -> tuple[Clustering, Array | None]:
        # View by view: `[v b H W 3]`.
        pixels = normalize(jnp.moveaxis(views, 1, 0), module.image_mean, module.image_std, module.pixels)
        features = jax.vmap(lambda images: module.apply({"params": params}, images))(pixels)
        tokens, cls_tokens = clustering_tokens(features, objective.tokens, groups=objective.token_groups)
        positions = patch_positions(jnp.moveaxis(boxes, 1, 0), grid)
        # The result and all rounds in one program; `trace_merging` gives the rounds alone.
        settings = {"scores": None, "rng": rng, "init_indices": None, "config": clustering, "keep_rounds": True}
        return cluster_arrays(tokens, cls_tokens, positions=positions, **settings)

    return cluster


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

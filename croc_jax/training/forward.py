"""The backbone and the head of a recipe, applied to pairs of views."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from croc_jax.models import Backbone, Features, ProjectionHead, VisionTransformer, make_backbone, make_head
from croc_jax.models.batch_norm import STATISTICS
from croc_jax.training.config import Recipe
from croc_jax.training.sharding import BATCH_AXES, shard_map_batch

Params = Any


class Networks(NamedTuple):
    """The modules that student and teacher share; their parameters differ."""

    backbone: Backbone
    head: ProjectionHead


def make_networks(
    recipe: Recipe, *, fetch: Callable[[Params], Params] | None = None, mesh: Mesh | None = None
) -> Networks:
    """Returns the modules of a recipe.

    Args:
        recipe: of the run.
        fetch: brings together, block by block, the parameters of a transformer that devices share.
        mesh: whose devices decide what "auto" means; by default, those of the default backend.

    Raises:
        ValueError: for settings of the backbone that cannot work, or if whole patches do not tile the crops.
    """
    _check_crops(recipe)
    device = None if mesh is None else mesh.devices.flat[0]
    backbone = make_backbone(recipe.backbone, image_size=recipe.data.views.crop_size, device=device)
    if fetch is not None and isinstance(backbone, VisionTransformer):
        backbone = backbone.clone(fetch=fetch)
    return Networks(backbone, make_head(recipe.head, dtype=backbone.dtype))


def init_networks(recipe: Recipe) -> Networks:
    """Returns the modules of a recipe for making or counting parameters, for which no device has to fit."""
    return make_networks(dataclasses.replace(recipe, backbone=dataclasses.replace(recipe.backbone, attention="auto")))


def _check_crops(recipe: Recipe) -> None:
    """Raises ValueError, naming the field and the nearest sizes, unless whole patches tile all crops."""
    views, local, patch_size = recipe.data.views, recipe.data.local_views, recipe.backbone.patch_size
    for field, size, used in (("views", views.crop_size, True), ("local_views", local.crop_size, local.count)):
        if used and size % patch_size:
            below, above = size // patch_size * patch_size, (size // patch_size + 1) * patch_size
            near = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"data.{field}.crop_size={size}: whole patches of {patch_size} pixels must tile it; choose {near}"
            )


def init_params(networks: Networks, rng: Array, *, crop_size: int) -> dict[str, Params]:
    """Returns fresh parameters {"backbone": ..., "head": ...}."""
    backbone_rng, head_rng = jax.random.split(rng)
    image = jnp.zeros((1, crop_size, crop_size, 3))
    token = jnp.zeros((1, networks.backbone.width))
    return {
        "backbone": networks.backbone.init(backbone_rng, image)["params"],
        "head": networks.head.init(head_rng, token)["params"],
    }


def encode_views(
    backbone: Backbone,
    params: Params,
    views: Float[Array, "b v H W c"],
    *,
    slices: int = 1,
    train: bool = False,
    drop_path_rng: Array | None = None,
    mesh: Mesh | None = None,
) -> tuple[Features, Params]:
    """Returns the features of both views, with `[v b ...]` for the batch axis, and batch statistics.

    The statistics are empty, but in training for a backbone that normalizes by its batch.

    With several slices, each runs by itself and is run again in the backward pass, so that the
    memory is that of one slice while everything after sees the whole batch.

    Args:
        backbone: the module.
        params: its parameters.
        views: normalized.
        slices: into which the batch is cut; each one is normalized by itself where the batch matters.
        train: normalize by the statistics of these images, where the backbone does such a thing.
        drop_path_rng: a key makes it drop paths in training, the same ones in any number of slices.
        mesh: whose devices go through the slices each by itself, and add up the gradients of all of them
            once; by default, after each slice.
    """
    batch, num_views = views.shape[:2]

    def encode(params: Params, rng: Array | None, images: Array, rows: Array) -> tuple[Features, Params]:
        rngs = None if rng is None else {"drop_path": rng}
        options: dict[str, Any] = {"train": train, "rows": rows, "rngs": rngs, "mutable": [STATISTICS]}
        features, left = backbone.apply({"params": params}, images, **options)
        return features, left.get(STATISTICS, {})

    # The batch comes first in the flat axis, so that it stays where it is on the devices.
    images, rows = views.reshape(batch * num_views, *views.shape[2:]), jnp.arange(batch * num_views)

    def encode_slices(params: Params, rng: Array | None, images: Array, rows: Array) -> tuple[Features, Params]:
        def run(part: tuple[Array, Array]) -> tuple[Features, Params]:
            return jax.checkpoint(encode)(params, rng, *part)

        features, statistics = jax.lax.map(run, (cut(images, slices), cut(rows, slices)))
        return jax.tree.map(join, features), jax.tree.map(lambda x: jnp.mean(x, axis=0), statistics)

    if slices == 1:
        features, statistics = encode(params, drop_path_rng, images, rows)
    else:
        split, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
        run = shard_map_batch(encode_slices, mesh, (whole, whole, split, split), (split, whole))
        features, statistics = run(params, drop_path_rng, images, rows)
    features = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(batch, num_views, *x.shape[1:]), 1, 0), features)
    return features, statistics


def cut(array: Array, slices: int) -> Array:
    """Cuts `[b ...]` into `[slices b/slices ...]`, a stride apart, so that each slice lies on all devices."""
    return jnp.swapaxes(array.reshape(array.shape[0] // slices, slices, *array.shape[1:]), 0, 1)


def join(array: Array) -> Array:
    """Undoes `cut`."""
    return jnp.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])

"""The backbone and the head of a recipe, applied to pairs of views."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from croc_jax.float32 import in_float32
from croc_jax.models import (
    Backbone,
    BackboneConfig,
    Features,
    Hidden,
    ProjectionHead,
    VisionTransformer,
    make_backbone,
    make_head,
)
from croc_jax.models.batch_norm import STATISTICS
from croc_jax.training.config import OptimizerConfig, Recipe
from croc_jax.training.sharding import BATCH_AXES, shard_map_batch

# Nested dictionaries of arrays.
Params = dict[str, Any]


class Networks(NamedTuple):
    """The modules that student and teacher share; their parameters differ."""

    backbone: Backbone
    head: ProjectionHead


def make_networks(
    recipe: Recipe, *, all_gather: Callable[[Params], Params] | None = None, mesh: Mesh | None = None
) -> Networks:
    """Returns the modules of a recipe.

    Args:
        recipe: settings of the run.
        all_gather: applied to the parameters of each block of a transformer just before it runs, where devices
            split them.
        mesh: devices whose kind decides what "auto" means; by default, those of the default backend.

    Raises:
        ValueError: for settings of the backbone that cannot work, if whole patches do not tile the crops, or for
            freezing or masked patches that the backbone does not allow.
    """
    _check_crops(recipe)
    device = None if mesh is None else mesh.devices.flat[0]
    backbone = make_backbone(
        recipe.backbone, image_size=recipe.data.views.crop_size, pixels=recipe.data.pixels, device=device
    )
    _check_freezing(recipe.optimizer, recipe.backbone, backbone)
    if isinstance(backbone, VisionTransformer):
        backbone = backbone.clone(all_gather=all_gather, frozen_blocks=recipe.optimizer.frozen_blocks)
    masked = recipe.objective.masked
    if masked.weight and not isinstance(backbone, VisionTransformer):
        raise ValueError(
            f"objective.masked.weight={masked.weight}: transformers alone see masked patches, and "
            f"{recipe.backbone.variant} is a convolutional network; leave it at 0"
        )
    prototypes = masked.prototypes if masked.weight else 0
    # A convolutional network multiplies in the type that it computes in.
    types = {"dtype": backbone.dtype, "multiply": getattr(backbone, "multiply", None)}
    return Networks(backbone, make_head(recipe.head, **types, num_prototypes_masked=prototypes))


def _check_freezing(optimizer: OptimizerConfig, config: BackboneConfig, backbone: Backbone) -> None:
    """Raises ValueError, naming the field and the value, for blocks that there are none of."""
    if isinstance(backbone, VisionTransformer):
        if not 0 <= optimizer.frozen_blocks <= backbone.depth:
            raise ValueError(
                f"optimizer.frozen_blocks={optimizer.frozen_blocks}: {config.variant} has {backbone.depth} blocks; "
                f"choose 0 to {backbone.depth}"
            )
        return
    for name in ("frozen_blocks", "freeze_backbone_epochs"):
        if getattr(optimizer, name):
            raise ValueError(
                f"optimizer.{name}={getattr(optimizer, name)}: transformers alone can be frozen, and "
                f"{config.variant} is a convolutional network; leave it at 0"
            )


def init_networks(recipe: Recipe) -> Networks:
    """Returns the modules of a recipe for making or counting parameters, on whatever device."""
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


@in_float32
def init_params(networks: Networks, rng: Array, *, crop_size: int) -> Params:
    """Returns fresh parameters {"backbone": ..., "head": ...}, and "mask_token" for a head that has a use for it.

    Args:
        networks: the modules.
        rng: key of all initial parameters.
        crop_size: side of the views in pixels.
    """
    backbone_rng, head_rng = jax.random.split(rng)
    image = jnp.zeros((1, crop_size, crop_size, networks.backbone.pixels.channels))
    token = jnp.zeros((1, networks.backbone.width))
    params = {
        "backbone": networks.backbone.init(backbone_rng, image)["params"],
        "head": networks.head.init(head_rng, token)["params"],
    }
    if networks.head.num_prototypes_masked:
        params["mask_token"] = jnp.zeros((1, networks.backbone.width))
    return params


def encode_views(
    backbone: Backbone,
    params: Params,
    views: Float[Array, "b v H W c"],
    *,
    num_microbatches: int = 1,
    train: bool = False,
    drop_path_rng: Array | None = None,
    hidden: Hidden | None = None,
    reduce_mesh: Mesh | None = None,
) -> tuple[Features, Params]:
    """Returns the features of all views, with `[b v ...]` for the batch axis, and batch statistics.

    The statistics are empty, except in training for a backbone that normalizes by its batch.

    With several microbatches, each runs by itself and is run again in the backward pass, so that the
    memory is that of one microbatch while everything after sees the whole batch.

    Args:
        backbone: the module.
        params: its parameters.
        views: normalized images.
        num_microbatches: parts of the batch; batch normalization normalizes each by itself.
        train: whether to normalize by the statistics of these images, where the backbone has any.
        drop_path_rng: key of stochastic depth in training, which does not depend on the number of microbatches.
        hidden: patches that a transformer does not see, and what it sees in their place.
        reduce_mesh: devices that each go through the microbatches by themselves, and all-reduce the gradients of
            all of them once; by default, they do so after each microbatch.
    """
    batch, num_views = views.shape[:2]

    def encode(params: Any, rng: Array | None, images: Array, rows: Array, masked: Array | None) -> tuple:
        params, token = params
        rngs = None if rng is None else {"drop_path": rng}
        options: dict[str, Any] = {"train": train, "rows": rows, "rngs": rngs, "mutable": [STATISTICS]}
        if masked is not None:
            options["hidden"] = Hidden(masked, token)
        features, collections = backbone.apply({"params": params}, images, **options)
        return features, collections.get(STATISTICS, {})

    # The batch comes first in the flat axis, so that it stays where it is on the devices.
    images, rows = views.reshape(batch * num_views, *views.shape[2:]), jnp.arange(batch * num_views)
    masked, token = (None, None) if hidden is None else (hidden.masked.reshape(batch * num_views, -1), hidden.token)
    arrays = (images, rows, masked)

    def encode_microbatches(params: Any, rng: Array | None, *arrays: Array | None) -> tuple[Features, Params]:
        def run(microbatch: tuple) -> tuple[Features, Params]:
            return jax.checkpoint(encode)(params, rng, *microbatch)

        parts = jax.tree.map(lambda array: split_microbatches(array, num_microbatches), arrays)
        features, statistics = jax.lax.map(run, parts)
        return jax.tree.map(merge_microbatches, features), jax.tree.map(lambda x: jnp.mean(x, axis=0), statistics)

    if num_microbatches == 1:
        features, statistics = encode((params, token), drop_path_rng, *arrays)
    else:
        split, replicated = PartitionSpec(BATCH_AXES), PartitionSpec()
        arguments, results = (replicated, replicated, split, split, split), (split, replicated)
        run = shard_map_batch(encode_microbatches, reduce_mesh, arguments, results)
        features, statistics = run((params, token), drop_path_rng, *arrays)
    return jax.tree.map(lambda x: x.reshape(batch, num_views, *x.shape[1:]), features), statistics


def split_microbatches(array: Array, count: int) -> Array:
    """Splits `[b ...]` into `[count b/count ...]`, with a stride, so that each microbatch lies on all devices."""
    return jnp.swapaxes(array.reshape(array.shape[0] // count, count, *array.shape[1:]), 0, 1)


def merge_microbatches(array: Array) -> Array:
    """Undoes `split_microbatches`."""
    return jnp.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])

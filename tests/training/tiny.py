"""A recipe of the smallest networks, a start, and batches for it."""

import dataclasses
import functools

import jax
import numpy as np

from croc_jax.clustering import ClusteringConfig
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.losses import ObjectiveConfig
from croc_jax.models import BackboneConfig, HeadConfig
from croc_jax.training.config import OptimizerConfig, Recipe, ScheduleConfig
from croc_jax.training.forward import init_params, make_networks
from croc_jax.training.state import state_from_params

STEPS_PER_EPOCH = 2


def tiny_recipe(**changes):
    recipe = Recipe(
        backbone=BackboneConfig(
            variant="vit_tiny", width=8, depth=2, num_heads=2, patch_size=8, drop_path_rate=0.3, dtype="float32"
        ),
        head=HeadConfig(hidden_dim=16, bottleneck_dim=8, num_prototypes=12, num_prototypes_dense=10),
        clustering=ClusteringConfig(k_start=4, k_max=4),
        # Warm enough for losses that are far from 0.
        objective=ObjectiveConfig(student_temp=0.5, warmup_teacher_temp_epochs=2),
        optimizer=OptimizerConfig(base_lr=0.05, warmup_epochs=1, teacher_momentum=0.9),
        data=DataConfig(views=ViewsConfig(crop_size=24)),
        schedule=ScheduleConfig(epochs=4, batch_size=8),
    )
    return dataclasses.replace(recipe, **changes)


def first_state(recipe):
    """Returns a start whose numbers NumPy draws, which takes no compilation."""
    init = functools.partial(init_params, make_networks(recipe), crop_size=recipe.data.views.crop_size)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(init, jax.random.key(0))

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
        start = {"scale": 1.0, "variance": 1.0}.get(path[-1].key)
        return (noise if start is None else np.full(leaf.shape, start)).astype(np.float32)

    return state_from_params(recipe, jax.tree_util.tree_map_with_path(draw, shapes), steps_per_epoch=STEPS_PER_EPOCH)


def batches(count, *, batch_size=8, crop_size=24, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        corners, sizes = rng.uniform(0, 50, (batch_size, 2, 2)), rng.uniform(30, 90, (batch_size, 2, 2))
        flips = rng.integers(0, 2, (batch_size, 2, 1))
        yield {
            "views": rng.integers(0, 256, (batch_size, 2, crop_size, crop_size, 3), dtype=np.uint8),
            "boxes": np.concatenate([corners, sizes, flips], axis=-1).astype(np.float32),
        }

"""A recipe of the smallest networks, a first state, batches, and steps that are compiled once a process."""

import dataclasses
import functools

import jax
import numpy as np

from croc_jax.clustering import ClusteringConfig
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.losses import ObjectiveConfig
from croc_jax.models import BackboneConfig, HeadConfig
from croc_jax.pixel_format import RGB8
from croc_jax.training.config import OptimizerConfig, Recipe, ScheduleConfig
from croc_jax.training.forward import init_params, make_networks
from croc_jax.training.run_config import MeshConfig
from croc_jax.training.sharding import make_mesh, shard_batch, state_shardings
from croc_jax.training.state import abstract_batch, abstract_state, state_from_params
from croc_jax.training.step import make_train_step

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
    """Returns a first state whose numbers NumPy draws, which takes no compilation."""
    init = functools.partial(init_params, make_networks(recipe), crop_size=recipe.data.views.crop_size)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(init, jax.random.key(0))

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
        start = {"scale": 1.0, "variance": 1.0}.get(path[-1].key)
        return (noise if start is None else np.full(leaf.shape, start)).astype(np.float32)

    return state_from_params(recipe, jax.tree_util.tree_map_with_path(draw, shapes), steps_per_epoch=STEPS_PER_EPOCH)


def batches(count, *, batch_size=8, crop_size=24, seed=0, recipe=None):
    """Yields host batches of two views, and of the local crops that a recipe asks for."""
    rng, local = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    pixels = RGB8 if recipe is None else recipe.data.pixels
    above = 2 ** (8 * np.dtype(pixels.dtype).itemsize)
    if recipe is not None:
        batch_size, crop_size = recipe.schedule.batch_size, recipe.data.views.crop_size
    for _ in range(count):
        corners, sizes = rng.uniform(0, 50, (batch_size, 2, 2)), rng.uniform(30, 90, (batch_size, 2, 2))
        flips = rng.integers(0, 2, (batch_size, 2, 1))
        batch = {
            "views": rng.integers(0, above, (batch_size, 2, crop_size, crop_size, pixels.channels), pixels.dtype),
            "boxes": np.concatenate([corners, sizes, flips], axis=-1).astype(np.float32),
        }
        if recipe is not None and recipe.data.local_views.count:
            views = recipe.data.local_views
            shape = (batch_size, views.count, views.crop_size, views.crop_size, pixels.channels)
            batch["local_views"] = local.integers(0, above, shape, pixels.dtype)
            batch["local_boxes"] = np.zeros((*shape[:2], 5), np.float32)
        yield batch


@functools.cache
def compiled_step(recipe, num_devices=1, config=MeshConfig(fsdp=1)):  # noqa: B008
    """Returns the mesh and the compiled step of a recipe."""
    mesh = make_mesh(jax.devices()[:num_devices], config)
    shapes = abstract_state(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh), abstract_batch(recipe, mesh=mesh)
    step = make_train_step(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    # Compiled in a hurry: it runs a few times.
    return mesh, step.lower(*shapes).compile({"xla_backend_optimization_level": 0})


def train(recipe, steps=5, *, num_devices=1, config=MeshConfig(fsdp=1)):  # noqa: B008
    """Returns the state on the host before and after each step, and the metrics of each."""
    mesh, step = compiled_step(recipe, num_devices, config)
    start = first_state(recipe)
    state, states, history = jax.device_put(start, state_shardings(start, mesh)), [jax.device_get(start)], []
    for batch in batches(steps, recipe=recipe):
        state, metrics = step(state, shard_batch(batch, mesh))
        history.append(jax.tree.map(float, metrics))
        states.append(jax.device_get(state))
    return states, history

"""Twelve steps with masked patches follow a float64 reference, on one device and on eight."""

import dataclasses

import jax
import numpy as np

from croc_jax.clustering import cluster_views, patch_positions
from croc_jax.losses import MaskedConfig
from croc_jax.training.masks import draw_masks
from croc_jax.training.rng import step_keys
from croc_jax.training.run_config import MeshConfig
from croc_jax.training.schedules import make_schedules
from croc_jax.training.sharding import batch_sharded, make_mesh, state_shardings
from croc_jax.training.step import ViewPair, make_update
from tests.parity.test_trajectory import check_params
from tests.training.reference import Trainer
from tests.training.tiny import first_state, tiny_recipe

LOSSES = "global", "dense", "masked"
STEPS, STEPS_PER_EPOCH, BATCH, SIDE = 12, 3, 8, 3


def make_recipe(**optimizer):
    recipe = tiny_recipe()
    return dataclasses.replace(
        recipe,
        backbone=dataclasses.replace(recipe.backbone, drop_path_rate=0.0),
        objective=dataclasses.replace(
            recipe.objective,
            alpha=0.7,
            masked=MaskedConfig(weight=0.8, prototypes=6, min_share=0.3),
        ),
        optimizer=dataclasses.replace(recipe.optimizer, base_lr=0.03, freeze_last_layer_epochs=0, **optimizer),
    )


def draw_batches():
    """Returns views, boxes and first centroids of each step; the images of all steps resemble each other."""
    rng = np.random.default_rng(0)
    kinds, drawn = rng.normal(size=(BATCH, 1, 24, 24, 3)), []
    for _ in range(STEPS):
        images = (kinds + 0.3 * rng.normal(size=(BATCH, 2, 24, 24, 3))).astype(np.float32)
        corners, sizes = rng.uniform(0, 50, (BATCH, 2, 2)), rng.uniform(30, 90, (BATCH, 2, 2))
        boxes = np.concatenate([corners, sizes, rng.integers(0, 2, (BATCH, 2, 1))], axis=-1).astype(np.float32)
        indices = np.argsort(rng.random((BATCH, 2, 2 * SIDE**2)))[..., :4].astype(np.int32)
        drawn.append((images, np.asarray(patch_positions(boxes, (SIDE, SIDE))), indices))
    return drawn


def run(recipe, num_devices):
    """Returns the last state and the metrics of each step."""
    mesh = make_mesh(
        jax.devices()[:num_devices], MeshConfig(fsdp=1, model=2) if num_devices == 8 else MeshConfig(fsdp=1)
    )
    update = jax.jit(make_update(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh))
    start, history = first_state(recipe), []
    state = jax.device_put(start, state_shardings(start, mesh))
    for step, batch in enumerate(draw_batches()):
        images, positions, indices = jax.device_put(batch, batch_sharded(mesh))
        state, metrics = update(state, ViewPair(images, positions), step_keys(jax.random.key(0), step), indices)
        history.append(jax.tree.map(float, metrics))
    return state, history


def follow(recipe):
    """Returns the reference after the last step, and its losses."""
    objective, schedules = recipe.objective, make_schedules(recipe, steps_per_epoch=STEPS_PER_EPOCH)
    trainer = Trainer(
        first_state(recipe).student,
        weights={"global": objective.global_weight, "dense": objective.alpha, "masked": objective.masked.weight},
        temps=objective.student_temp,
        momentum=objective.center_momentum,
        network={"patch_size": recipe.backbone.patch_size, "num_heads": recipe.backbone.num_heads},
    )
    losses = []
    for step, (images, positions, indices) in enumerate(draw_batches()):

        def cluster(values, positions=positions, indices=indices):
            values, positions = np.swapaxes(values, 0, 1).astype(np.float32), np.swapaxes(positions, 0, 1)
            tokens = values[..., 1:, :], values[..., 0, :], positions
            found = cluster_views(*tokens, recipe.clustering, init_indices=indices)
            return np.swapaxes(np.asarray(found.assignments, np.float64), 0, 1)

        masks = draw_masks(step_keys(jax.random.key(0), step).masks, BATCH, (SIDE, SIDE), objective.masked)
        found = trainer.step(
            images.astype(np.float64),
            jax.tree.map(np.asarray, masks),
            cluster,
            teacher_temp=float(schedules.teacher_temp(step)),
            lr=float(schedules.learning_rate(step)),
            decay=float(schedules.weight_decay(step)),
            ema=float(schedules.teacher_momentum(step)),
            clip=recipe.optimizer.clip_norm,
        )
        losses.append([found[name] for name in LOSSES])
    return trainer, np.array(losses)


def table(history, names):
    return np.array([[metrics[name] for name in names] for metrics in history])


def test_twelve_steps_with_masked_patches():
    recipe = make_recipe()
    (state, history), (trainer, expected) = run(recipe, 1), follow(recipe)
    found = table(history, [f"loss_{name}" for name in LOSSES])
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-8)
    weights = [trainer.weights[name] for name in LOSSES]
    np.testing.assert_allclose(table(history, ["loss"])[:, 0], found @ weights, rtol=1e-5)
    assert (table(history, ["masked_share"]) < 0.25).all() and (table(history, ["masked_share"]) > 0.1).all()
    check_params(state.student, trainer.student)
    check_params(state.teacher, trainer.teacher)
    for ours, name in ((state.center, "global"), (state.center_dense, "dense"), (state.center_masked, "masked")):
        np.testing.assert_allclose(ours, trainer.centers[name], atol=1e-3 * np.abs(trainer.centers[name]).max())

    _, again = run(make_recipe(accumulation_steps=2), 8)
    names = "loss", *(f"loss_{name}" for name in LOSSES), "masked_share", "teacher_entropy_m"
    np.testing.assert_allclose(table(again, names), table(history, names), rtol=1e-5, atol=1e-9)

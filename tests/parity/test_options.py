"""Twelve steps with neighbors and masked patches follow a float64 reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from croc_jax.clustering import cluster_views, patch_positions
from croc_jax.losses import MaskedConfig, NeighborsConfig
from croc_jax.training.masks import draw_masks
from croc_jax.training.rng import step_keys
from croc_jax.training.schedules import make_schedules
from croc_jax.training.step import ViewPair, make_update
from tests.parity.reference import Trainer
from tests.parity.test_trajectory import check_params
from tests.training.tiny import first_state, tiny_recipe

STEPS, STEPS_PER_EPOCH, BATCH, SIDE = 12, 3, 8, 3


def make_recipe():
    recipe = tiny_recipe()
    return dataclasses.replace(
        recipe,
        backbone=dataclasses.replace(recipe.backbone, drop_path_rate=0.0),
        objective=dataclasses.replace(
            recipe.objective,
            alpha=0.7,
            neighbors=NeighborsConfig(weight=0.5, queue=100),
            masked=MaskedConfig(weight=0.8, prototypes=6, min_share=0.3),
        ),
        optimizer=dataclasses.replace(recipe.optimizer, base_lr=0.03, freeze_last_layer_epochs=0),
    )


def test_twelve_steps_with_neighbors_and_masked_patches():
    recipe, rng = make_recipe(), np.random.default_rng(0)
    objective, schedules = recipe.objective, make_schedules(recipe, steps_per_epoch=STEPS_PER_EPOCH)
    update = jax.jit(make_update(recipe, steps_per_epoch=STEPS_PER_EPOCH))
    state = first_state(recipe)
    trainer = Trainer(
        state.student,
        alpha=objective.alpha,
        masked_weight=objective.masked.weight,
        neighbor_weight=objective.neighbors.weight,
        queue=objective.neighbors.queue,
        temps=objective.student_temp,
        momentum=objective.center_momentum,
        network={"patch_size": recipe.backbone.patch_size, "num_heads": recipe.backbone.num_heads},
    )
    kinds, history, expected = rng.normal(size=(BATCH, 1, 24, 24, 3)), [], []
    for step in range(STEPS):
        images = (kinds + 0.3 * rng.normal(size=(BATCH, 2, 24, 24, 3))).astype(np.float32)
        corners, sizes = rng.uniform(0, 50, (BATCH, 2, 2)), rng.uniform(30, 90, (BATCH, 2, 2))
        boxes = np.concatenate([corners, sizes, rng.integers(0, 2, (BATCH, 2, 1))], axis=-1).astype(np.float32)
        positions, keys = patch_positions(boxes, (SIDE, SIDE)), step_keys(jax.random.key(0), step)
        indices = np.argsort(rng.random((BATCH, 2, 2 * SIDE**2)))[..., :4].astype(np.int32)
        state, metrics = update(state, ViewPair(jnp.asarray(images), positions, None), keys, indices)
        history.append([float(metrics[f"loss_{name}"]) for name in ("global", "dense", "neighbors", "masked")])

        def cluster(values, positions=positions, indices=indices):
            views_first = np.swapaxes(values, 0, 1).astype(np.float32)
            found = cluster_views(
                views_first[..., 1:, :],
                views_first[..., 0, :],
                jnp.swapaxes(positions, 0, 1),
                recipe.clustering,
                init_indices=indices,
            )
            return np.swapaxes(np.asarray(found.assignments, np.float64), 0, 1)

        masks = jax.tree.map(np.asarray, draw_masks(keys.masks, BATCH, (SIDE, SIDE), objective.masked))
        losses = trainer.step(
            images.astype(np.float64),
            masks,
            cluster,
            teacher_temp=float(schedules.teacher_temp(step)),
            lr=float(schedules.learning_rate(step)),
            decay=float(schedules.weight_decay(step)),
            ema=float(schedules.teacher_momentum(step)),
            clip=recipe.optimizer.clip_norm,
            started=step >= STEPS_PER_EPOCH,
        )
        expected.append([losses[name] for name in ("global", "dense", "neighbors", "masked")])
    np.testing.assert_allclose(history, expected, rtol=1e-4, atol=1e-6)
    assert (np.array(expected)[STEPS_PER_EPOCH:] > 0.05).all()
    check_params(state.student, trainer.student)
    check_params(state.teacher, trainer.teacher)
    for ours, name in ((state.center, "global"), (state.center_dense, "dense"), (state.center_masked, "masked")):
        np.testing.assert_allclose(ours, trainer.centers[name], atol=1e-3 * np.abs(trainer.centers[name]).max())

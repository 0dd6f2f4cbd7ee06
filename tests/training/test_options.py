"""Twelve steps with all that goes beyond the paper follow a float64 reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from croc_jax.clustering import cluster_views, patch_positions
from croc_jax.losses import GramConfig, MaskedConfig, NeighborsConfig
from croc_jax.training.masks import draw_masks
from croc_jax.training.rng import step_keys
from croc_jax.training.run_config import MeshConfig
from croc_jax.training.schedules import make_schedules
from croc_jax.training.step import ViewPair, make_update
from tests.parity.test_trajectory import check_params
from tests.training.reference import Trainer
from tests.training.tiny import batches, first_state, tiny_recipe, train

LOSSES = "global", "dense", "neighbors", "masked", "gram"
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
            gram=GramConfig(weight=200.0, anchor="start"),
        ),
        optimizer=dataclasses.replace(recipe.optimizer, base_lr=0.03, freeze_last_layer_epochs=0),
    )


def test_twelve_steps_with_every_loss():
    recipe, rng = make_recipe(), np.random.default_rng(0)
    objective, schedules = recipe.objective, make_schedules(recipe, steps_per_epoch=STEPS_PER_EPOCH)
    update = jax.jit(make_update(recipe, steps_per_epoch=STEPS_PER_EPOCH))
    state = first_state(recipe)
    trainer = Trainer(
        state.student,
        weights={
            "global": objective.global_weight,
            "dense": objective.alpha,
            **{name: getattr(objective, name).weight for name in ("neighbors", "masked", "gram")},
        },
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
        history.append([float(metrics[f"loss_{name}"]) for name in LOSSES])

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
        expected.append([losses[name] for name in LOSSES])
    np.testing.assert_allclose(history, expected, rtol=2e-4, atol=1e-8)
    # All of them count in the end, and the student is where it started until the learning rate rises.
    assert (np.array(expected)[STEPS_PER_EPOCH:] > 1e-5).all()
    check_params(state.student, trainer.student)
    check_params(state.teacher, trainer.teacher)
    for ours, name in ((state.center, "global"), (state.center_dense, "dense"), (state.center_masked, "masked")):
        np.testing.assert_allclose(ours, trainer.centers[name], atol=1e-3 * np.abs(trainer.centers[name]).max())


def test_devices_and_microbatches_change_no_loss():
    recipe = make_recipe()
    # Tokens that hardly move from step to step, so that clusters find those of the step before.
    recipe = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, base_lr=0.005))
    split = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, accumulation_steps=2))
    data, config = same_images(recipe, 4), MeshConfig(fsdp=2, model=2)
    (_, history), (states, again) = train(recipe, data=data), train(split, num_devices=8, config=config, data=data)
    names = "loss", *(f"loss_{name}" for name in LOSSES), "neighbor_share", "masked_share", "teacher_entropy_m"
    for ours, theirs in zip(again, history, strict=True):
        np.testing.assert_allclose([ours[n] for n in names], [theirs[n] for n in names], rtol=1e-5, atol=1e-9)
    assert [m["loss_neighbors"] > 0 for m in history] == [m["neighbor_share"] > 0 for m in history] == [0, 0, 1, 1]
    weights = [recipe.objective.global_weight, recipe.objective.alpha]
    weights += [getattr(recipe.objective, name).weight for name in ("neighbors", "masked", "gram")]
    for metrics in history:
        total = sum(weight * metrics[f"loss_{name}"] for weight, name in zip(weights, LOSSES, strict=True))
        np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)
        assert 0.1 < metrics["masked_share"] < 0.25
    queue = states[-1].queue
    assert queue.centroids.shape == (2, 100, 8) and queue.count == 100
    for before, after in zip(*(jax.tree.leaves(states[i].anchor) for i in (0, -1)), strict=True):
        np.testing.assert_array_equal(before, after)


def same_images(recipe, steps):
    """Returns the same batch for all steps: each patch has a color of its own, the same in both views."""
    batch = next(batches(1, recipe=recipe))
    colors = np.random.default_rng(0).integers(0, 256, (BATCH, 1, SIDE, SIDE, 3), np.uint8)
    views = np.broadcast_to(colors, (BATCH, 2, SIDE, SIDE, 3)).repeat(8, axis=2).repeat(8, axis=3)
    boxes = np.broadcast_to(batch["boxes"][:, :1], batch["boxes"].shape)
    return [{"views": views, "boxes": np.ascontiguousarray(boxes)}] * steps

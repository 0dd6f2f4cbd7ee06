"""The step of a backbone with batch statistics: who follows whose, over how many devices, and in slices."""

import dataclasses

import jax
import numpy as np
import pytest

from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.losses import ObjectiveConfig
from croc_jax.models import BackboneConfig
from croc_jax.training.sharding import make_mesh, replicated, shard_batch
from croc_jax.training.step import make_train_step
from tests.training.tiny import STEPS_PER_EPOCH, batches, first_state, tiny_recipe

SIZE = 32
RESNET = tiny_recipe(
    backbone=BackboneConfig(variant="resnet_50", width=32, stages=(1, 1, 1, 1), patch_size=8, dtype="float32"),
    objective=ObjectiveConfig(tokens="last", token_groups=2, warmup_teacher_temp_epochs=2),
    data=DataConfig(views=ViewsConfig(crop_size=SIZE)),
)


def train(recipe, num_devices, steps=3):
    mesh = make_mesh(jax.devices()[:num_devices])
    step = make_train_step(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    state, history = jax.device_put(first_state(recipe), replicated(mesh)), []
    states = [jax.device_get(state)]
    # Compiled in a hurry: it runs a few times.
    shapes = shard_batch(next(batches(1, crop_size=SIZE)), mesh)
    step = step.lower(state, shapes).compile({"xla_backend_optimization_level": 0})  # pyright: ignore
    for batch in batches(steps, crop_size=SIZE):
        state, metrics = step(state, shard_batch(batch, mesh))
        history.append(jax.tree.map(float, metrics))
        states.append(jax.device_get(state))
    return states, history


@pytest.fixture(scope="module")
def one_device():
    return train(RESNET, 1)


def statistics(state, which, name="norm_3"):
    return getattr(state, which)["backbone"]["stage_3_block_0"][name]


def test_both_networks_follow_their_own_batches(one_device):
    states, history = one_device
    for name in ("mean", "variance"):
        student, teacher = (statistics(states[1], which)[name] for which in ("student", "teacher"))
        # After one step both have seen the same images with the same weights, and no average of one another.
        np.testing.assert_allclose(student, teacher, rtol=1e-5, atol=1e-7)
        assert not np.allclose(student, statistics(states[0], "student")[name], atol=1e-4)
        student, teacher = (statistics(states[3], which)[name] for which in ("student", "teacher"))
        assert not np.allclose(student, teacher, rtol=1e-4, atol=0)
    assert all(np.isfinite(list(metrics.values())).all() for metrics in history)
    assert all(2 <= metrics["num_clusters"] <= 4 for metrics in history)


def test_the_optimizer_leaves_running_statistics_alone(one_device):
    states, _ = one_device
    moments = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(states[3].opt_state) if "'mean'" in str(path)]
    assert moments and not any(np.any(leaf) for leaf in moments)


def test_statistics_are_those_of_all_devices(one_device):
    states, history = train(RESNET, 4)
    for ours, theirs in zip(history, one_device[1], strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=2e-5)
    for which in ("student", "teacher"):
        for name in ("mean", "variance"):
            ours, theirs = (statistics(run[3], which)[name] for run in (states, one_device[0]))
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_slices_are_normalized_each_by_itself(one_device):
    optimizer = dataclasses.replace(RESNET.optimizer, accumulation_steps=2)
    states, history = train(dataclasses.replace(RESNET, optimizer=optimizer), 1, steps=1)
    assert np.isfinite(history[0]["loss"])
    # The mean of the slices' means is that of the batch, in the first normalization.
    ours, theirs = (run[1].student["backbone"]["norm"]["mean"] for run in (states, one_device[0]))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)

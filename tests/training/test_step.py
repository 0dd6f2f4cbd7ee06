"""The compiled step: devices, accumulation, compilation, types, and the baseline without clusters."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from croc_jax.data.config import LocalViewsConfig
from croc_jax.models import BackboneConfig
from croc_jax.training.config import MeshConfig
from croc_jax.training.sharding import make_mesh, shard_batch, state_shardings
from croc_jax.training.state import init_state
from croc_jax.training.step import make_train_step
from tests.training.tiny import STEPS_PER_EPOCH, batches, tiny_recipe


def train(recipe, num_devices, steps=5, step=None, extra=None, mesh=None):
    mesh = mesh or make_mesh(jax.devices()[:num_devices])
    step = step or make_train_step(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    state = init_state(recipe, steps_per_epoch=STEPS_PER_EPOCH)
    state = jax.device_put(state, state_shardings(state, mesh))
    history = []
    for batch, more in zip(batches(steps), extra or [{}] * steps, strict=True):
        state, metrics = step(state, shard_batch(batch | more, mesh))
        history.append(jax.tree.map(float, metrics))
    return step, state, history


@pytest.fixture(scope="module")
def one_device():
    return train(tiny_recipe(), 1)


def accumulating(slices):
    return tiny_recipe(optimizer=dataclasses.replace(tiny_recipe().optimizer, accumulation_steps=slices))


def losses(history):
    return np.array([[metrics[name] for name in ("loss", "loss_dense", "loss_global")] for metrics in history])


# What may travel besides sums, and never anything of a batch, a cluster or a logit.
PARAMETERS = r"sharding_constraint|run_blocks|patch_embedding/projection"
# Where fsdp and model devices share the work on gradients of the head's MLP, they swap their parts of these.
SWAPPED = r" = f32\[(8|16),[48]\]\{1,0\} collective-permute\(.*bottleneck/mlp_\d/ad,af->df"


@pytest.mark.parametrize(
    ("config", "slices"),
    [
        (MeshConfig(fsdp=1), 1),
        (MeshConfig(fsdp=4), 1),
        (MeshConfig(fsdp=2, model=2), 1),
        (MeshConfig(fsdp=1, model=2), 2),
    ],
    ids=str,
)
def test_eight_devices_give_the_same_losses_and_exchange_sums_and_parameters_alone(one_device, config, slices):
    recipe, mesh = accumulating(slices), make_mesh(jax.devices(), config)
    step = make_train_step(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    fresh = init_state(recipe, steps_per_epoch=STEPS_PER_EPOCH)
    compiled = step.lower(fresh, next(batches(1))).compile()
    _, state, history = train(recipe, 8, step=compiled, mesh=mesh)
    np.testing.assert_allclose(losses(history), losses(one_device[2]), rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(state.teacher), jax.tree.leaves(one_device[1].teacher), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(state))

    lines = compiled.as_text().splitlines()
    moved = [line for line in lines if re.search(r"\b(all-gather|all-to-all|collective-permute)(-start)?\(", line)]
    swapped = [line for line in moved if re.search(SWAPPED, line)]
    assert len(swapped) == (3 if config.fsdp > 1 and config.model > 1 else 0)
    others = [line for line in moved if line not in swapped]
    assert bool(others) == (config.fsdp > 1) and all(re.search(PARAMETERS, line) for line in others)
    # A block at a time.
    blocks = [line for line in moved if "run_blocks" in line]
    assert all(re.search(r" = f32\[(1,)?\d+,\d+\]", line) for line in blocks)
    clustering = [line for line in lines if re.search(r" = .* all-reduce(-start)?\(.*_cluster_views", line)]
    # The extremes of the cost over the whole batch.
    assert sorted(re.findall(r" = (\S+) .*/reduce_(\w+)", line)[0] for line in clustering) == [
        ("f32[]", "max"),
        ("f32[]", "min"),
    ]


def test_everything_compiles_once(one_device):
    assert one_device[0]._cache_size() == 1


def test_state_keeps_its_structure_and_types(one_device):
    fresh = jax.eval_shape(lambda: init_state(tiny_recipe(), steps_per_epoch=STEPS_PER_EPOCH))
    describe = lambda leaf: (leaf.shape, leaf.dtype)  # noqa: E731
    assert jax.tree.map(describe, fresh) == jax.tree.map(describe, one_device[1])
    assert int(one_device[1].step) == 5


def test_state_is_donated():
    recipe = tiny_recipe()
    mesh = make_mesh(jax.devices()[:1])
    step = make_train_step(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    state = jax.eval_shape(lambda: init_state(recipe, steps_per_epoch=STEPS_PER_EPOCH))
    batch = jax.eval_shape(lambda: next(batches(1)))
    aliased = step.lower(state, batch).as_text().count("tf.aliasing_output")
    assert aliased >= len(jax.tree.leaves((state.student, state.teacher)))


@pytest.mark.parametrize("slices", [2, 4])
def test_accumulation_changes_memory_alone(one_device, slices):
    _, _, history = train(accumulating(slices), 1)
    np.testing.assert_allclose(losses(history), losses(one_device[2]), rtol=1e-5)


def test_metrics_say_what_happened(one_device):
    history = one_device[2]
    # So that 1e-5 of a loss is above the rounding of the logits that it is made of.
    assert losses(history).min() > 0.1
    for metrics in history:
        np.testing.assert_allclose(metrics["loss"], metrics["loss_dense"] + metrics["loss_global"], rtol=1e-6)
        assert 2 <= metrics["num_clusters"] <= 4
        assert 0 < metrics["valid_fraction"] <= 1
        assert 0 < metrics["teacher_entropy"] < np.log(12) and 0 < metrics["teacher_entropy_c"] < np.log(10)
        assert 0 < metrics["kl"] < metrics["loss_global"] and 0 < metrics["kl_c"] < metrics["loss_dense"]
        assert 1 <= metrics["feature_rank"] <= 8 and 0 < metrics["feature_spread"] <= 1 and metrics["feature_norm"] > 0
    np.testing.assert_allclose(
        [metrics["teacher_temp"] for metrics in history], [0.04, 0.04, 0.07, 0.07, 0.07], rtol=1e-6
    )


def test_alpha_zero_is_the_global_loss_alone(one_device):
    objective = dataclasses.replace(tiny_recipe().objective, alpha=0.0)
    _, state, history = train(tiny_recipe(objective=objective), 1, steps=2)
    assert [metrics["loss"] for metrics in history] == [metrics["loss_global"] for metrics in history]
    np.testing.assert_allclose(history[0]["loss_global"], one_device[2][0]["loss_global"], rtol=1e-6)
    assert {metrics["loss_dense"] for metrics in history} == {0.0}
    np.testing.assert_array_equal(state.center_dense, 0)


def test_local_crops_take_part_in_the_global_loss_alone(one_device):
    data = dataclasses.replace(tiny_recipe().data, local_views=LocalViewsConfig(count=3, crop_size=16))
    rng = np.random.default_rng(1)
    crops = rng.integers(0, 256, (2, 8, 3, 16, 16, 3), dtype=np.uint8)
    extra = [{"local_views": crops[0]}, {"local_views": crops[1]}]
    step, state, history = train(tiny_recipe(data=data), 8, steps=2, extra=extra)
    assert step._cache_size() == 1
    np.testing.assert_allclose(history[0]["loss_dense"], one_device[2][0]["loss_dense"], rtol=1e-5)
    assert abs(history[0]["loss_global"] / one_device[2][0]["loss_global"] - 1) > 1e-4
    np.testing.assert_allclose(history[0]["teacher_entropy"], one_device[2][0]["teacher_entropy"], rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.student))


@pytest.mark.parametrize("tokens", ["keys", "queries", "last"])
def test_other_tokens_are_clustered_differently(one_device, tokens):
    objective = dataclasses.replace(tiny_recipe().objective, tokens=tokens)
    _, _, history = train(tiny_recipe(objective=objective), 1, steps=1)
    assert history[0]["loss_global"] == pytest.approx(one_device[2][0]["loss_global"], rel=1e-5)
    assert history[0]["loss_dense"] != one_device[2][0]["loss_dense"]


def test_half_precision_stays_close_and_in_float32_outside(one_device):
    backbone = dataclasses.replace(tiny_recipe().backbone, dtype="bfloat16")
    assert isinstance(backbone, BackboneConfig)
    _, state, history = train(tiny_recipe(backbone=backbone), 1, steps=1)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.student)} == {"float32"}
    np.testing.assert_allclose(history[0]["loss_global"], one_device[2][0]["loss_global"], rtol=0.05)

"""The compiled step: devices, microbatches, types, every option of the objective, and backbones with more parts."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from croc_jax.data.config import DataConfig, LocalViewsConfig, PhotometricConfig, ViewsConfig
from croc_jax.models import BackboneConfig
from croc_jax.training.run_config import MeshConfig
from croc_jax.training.sharding import make_mesh, shard_batch, state_shardings
from croc_jax.training.state import state_shapes
from croc_jax.training.step import make_train_step
from tests.training.tiny import STEPS_PER_EPOCH, batches, compiled_step, first_state, tiny_recipe, train

TINY = tiny_recipe()


@pytest.fixture(scope="module")
def one_device():
    """States and metrics of five steps on one device."""
    return train(TINY)


def change(group, **changes):
    return tiny_recipe(**{group: dataclasses.replace(getattr(TINY, group), **changes)})


def losses(history):
    return np.array([[metrics[name] for name in ("loss", "loss_dense", "loss_global")] for metrics in history])


# What may travel besides sums, and never anything of a batch, a cluster or a logit.
PARAMETERS = r"sharding_constraint|run_blocks|patch_embedding/projection|op_name=\"state\.(student|teacher)\["
# Where fsdp and model devices share the work on gradients of the head's MLP, they swap their parts of these.
SWAPPED = r" = f32\[(8|16),[48]\]\{1,0\} collective-permute\(.*bottleneck/mlp_\d/ad,af->df"


@pytest.mark.parametrize(
    ("config", "microbatches"),
    [(MeshConfig(fsdp=1), 1), (MeshConfig(fsdp=2, model=2), 1), (MeshConfig(fsdp=1, model=2), 2)],
    ids=["data", "fsdp and model", "model, two microbatches"],
)
def test_eight_devices_give_the_same_losses_and_exchange_sums_and_parameters_alone(one_device, config, microbatches):
    recipe = change("optimizer", accumulation_steps=microbatches)
    states, history = train(recipe, num_devices=8, config=config)
    np.testing.assert_allclose(losses(history), losses(one_device[1]), rtol=1e-5)
    for ours, theirs in zip(*(jax.tree.leaves(run[-1].teacher) for run in (states, one_device[0])), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)

    lines = compiled_step(recipe, 8, config)[1].as_text().splitlines()
    moved = [line for line in lines if re.search(r"\b(all-gather|all-to-all|collective-permute)(-start)?\(", line)]
    swapped = [line for line in moved if re.search(SWAPPED, line)]
    assert len(swapped) == (3 if config.fsdp > 1 and config.model > 1 else 0)
    others = [line for line in moved if line not in swapped]
    assert bool(others) == (config.fsdp > 1) and all(re.search(PARAMETERS, line) for line in others)
    # A block at a time.
    blocks = [line for line in moved if "run_blocks" in line]
    assert all(re.search(r" = f32\[(1,)?\d+,\d+\]", line) for line in blocks)
    rounds = [line for line in lines if re.search(r" = .* all-reduce(-start)?\(.*clustering/while/body", line)]
    # The extremes of the cost over the whole batch.
    assert sorted(re.findall(r" = (\S+) .*/reduce_(\w+)", line)[0] for line in rounds) == [
        ("f32[]", "max"),
        ("f32[]", "min"),
    ]


def test_state_keeps_its_structure_and_types(one_device):
    fresh = state_shapes(TINY, steps_per_epoch=STEPS_PER_EPOCH)
    describe = lambda leaf: (leaf.shape, leaf.dtype)  # noqa: E731
    assert jax.tree.map(describe, fresh) == jax.tree.map(describe, one_device[0][-1])
    assert int(one_device[0][-1].step) == 5


def test_metrics_of_each_step(one_device):
    history = one_device[1]
    # So that 1e-5 of a loss is above the rounding of the logits that it is made of.
    assert losses(history).min() > 0.1
    for metrics in history:
        np.testing.assert_allclose(metrics["loss"], metrics["loss_dense"] + metrics["loss_global"], rtol=1e-6)
        assert 2 <= metrics["num_clusters"] <= 4
        assert 0 < metrics["valid_fraction"] <= 1
        assert 0 < metrics["teacher_entropy"] < np.log(12) and 0 < metrics["teacher_entropy_c"] < np.log(10)
        assert 0 < metrics["kl"] < metrics["loss_global"] and 0 < metrics["kl_c"] < metrics["loss_dense"]
        assert 1 <= metrics["feature_rank"] <= 8 and 0 < metrics["feature_spread"] <= 1 and metrics["feature_norm"] > 0
    temps = [metrics["teacher_temp"] for metrics in history]
    np.testing.assert_allclose(temps, [0.04, 0.04, 0.07, 0.07, 0.07], rtol=1e-6)


def test_alpha_zero_is_the_global_loss_alone_compiled_once_from_a_donated_state(one_device):
    recipe, mesh = change("objective", alpha=0.0), make_mesh(jax.devices()[:1])
    step = make_train_step(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    start = first_state(recipe)
    state, history = jax.device_put(start, state_shardings(start, mesh)), []
    for batch in batches(2):
        before = state
        state, metrics = step(state, shard_batch(batch, mesh))
        history.append(jax.tree.map(float, metrics))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.student, before.teacher)))
    assert step._cache_size() == 1 and int(state.step) == 2
    assert [metrics["loss"] for metrics in history] == [metrics["loss_global"] for metrics in history]
    np.testing.assert_allclose(history[0]["loss_global"], one_device[1][0]["loss_global"], rtol=1e-6)
    assert {metrics["loss_dense"] for metrics in history} == {metrics["num_clusters"] for metrics in history} == {0.0}
    np.testing.assert_array_equal(state.center_dense, 0.0)


def test_local_crops_take_part_in_the_global_loss_alone(one_device):
    recipe = change("data", local_views=LocalViewsConfig(count=3, crop_size=16))
    states, history = train(recipe, steps=2, num_devices=8)
    np.testing.assert_allclose(history[0]["loss_dense"], one_device[1][0]["loss_dense"], rtol=1e-5)
    assert abs(history[0]["loss_global"] / one_device[1][0]["loss_global"] - 1) > 1e-4
    np.testing.assert_allclose(history[0]["teacher_entropy"], one_device[1][0]["teacher_entropy"], rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states[-1].student))


def test_keys_in_half_precision_are_clustered_differently_and_alpha_weighs_them(one_device):
    objective = dataclasses.replace(TINY.objective, tokens="keys", alpha=0.5)
    states, history = train(dataclasses.replace(change("backbone", dtype="bfloat16"), objective=objective), steps=1)
    found, values = history[0], one_device[1][0]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(states[-1].student)} == {"float32"}
    np.testing.assert_allclose(found["loss_global"], values["loss_global"], rtol=0.05)
    np.testing.assert_allclose(found["loss"], 0.5 * found["loss_dense"] + found["loss_global"], rtol=1e-6)
    assert found["loss_dense"] != values["loss_dense"]


def test_products_in_half_precision_change_losses_little_and_exchange_no_rows(one_device):
    recipe = change("backbone", dtype="mixed")
    states, history = train(recipe, steps=3, num_devices=8)
    np.testing.assert_allclose(losses(history), losses(one_device[1])[:3], rtol=0.01)
    assert (losses(history) != losses(one_device[1])[:3]).any(axis=1).all()
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(states[-1].student)} == {"float32"}
    program = compiled_step(recipe, 8, MeshConfig(fsdp=1))[1].as_text()
    assert not re.search(r"\b(all-gather|all-to-all|collective-permute)(-start)?\(", program)


# DINOv3's transformer in miniature, whose blocks two devices share, on images of five bands.
MORE_PARTS = tiny_recipe(
    backbone=BackboneConfig(
        width=16, depth=2, num_heads=2, patch_size=8, drop_path_rate=0.0, dtype="float32", num_registers=3,
        layer_scale=True, mlp="swiglu", mlp_ratio=8 / 3, positions="rope", norm_epsilon=1e-5,
        image_mean=(0.5,) * 5, image_std=(0.25,) * 5,
    ),
    data=DataConfig(
        channels=5, dtype="uint16", views=ViewsConfig(crop_size=24), photometric=PhotometricConfig(
            saturation=0.0, hue=0.0, grayscale_probability=0.0, noise=0.1, channel_drop_probability=0.2,
        ),
    ),
)  # fmt: skip


def test_registers_and_scales_learn_and_the_teacher_follows():
    # The learning rate starts from 0: the second step moves something.
    states, history = train(MORE_PARTS, steps=2, num_devices=2, config=MeshConfig(fsdp=2))
    assert all(np.isfinite(list(metrics.values())).all() and 2 <= metrics["num_clusters"] <= 4 for metrics in history)
    trees = (states[0].student, states[-1].student, states[-1].teacher)
    flat = [jax.tree_util.tree_leaves_with_path(tree["backbone"]) for tree in trees]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat[0]]
    for name, (_, before), (_, student), (_, teacher) in zip(names, *flat, strict=True):
        assert np.abs(student - before).max() > 1e-3, name
        np.testing.assert_allclose(teacher - before, 0.1 * (student - before), rtol=0.05, atol=1e-6, err_msg=name)
    assert {"register_tokens", "block_1/scale_2"} <= set(names) and "position_embedding" not in names
    assert states[-1].student["backbone"]["register_tokens"].shape == (1, 3, 16)
    assert states[-1].student["backbone"]["patch_embedding"]["projection"]["kernel"].shape == (8 * 8 * 5, 16)
    # Half of the outputs gate the other half.
    assert states[-1].student["backbone"]["block_0"]["mlp_1"]["kernel"].shape == (16, 2 * 43)

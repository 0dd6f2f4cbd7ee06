"""The optimizer against AdamW in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from croc_jax.models import HeadConfig
from croc_jax.training.config import OptimizerConfig, Recipe, ScheduleConfig
from croc_jax.training.optimizer import clip_each, make_optimizer
from croc_jax.training.schedules import make_schedules

RECIPE = Recipe(
    optimizer=OptimizerConfig(base_lr=0.64, warmup_epochs=0, freeze_last_layer_epochs=1, clip_norm=1.5),
    schedule=ScheduleConfig(epochs=3, batch_size=4),
)


def schedules():
    return make_schedules(RECIPE, steps_per_epoch=3)


def parameters():
    rng = np.random.default_rng(0)
    return {
        "backbone": {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)},
        "head": {"last_layer": {"direction": rng.normal(size=(4, 3)), "scale": np.ones((4, 1))}},
    }


def adamw(param, gradients, rates, decays):
    """Clipped AdamW in float64."""
    param, first, second = param.astype(np.float64), 0.0, 0.0
    for step, (gradient, rate, decay) in enumerate(zip(gradients, rates, decays, strict=True), 1):
        gradient = gradient * min(1.0, 1.5 / (np.linalg.norm(gradient) + 1e-6))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        direction = (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        param = param - rate * (direction + (decay if param.ndim >= 2 else 0) * param)
    return param


@functools.cache
def run(norm_last_layer, freeze_backbone_epochs=0.0):
    params = {
        group: {name: _float32(value) for name, value in leaves.items()} for group, leaves in parameters().items()
    }
    optimizer = dataclasses.replace(RECIPE.optimizer, freeze_backbone_epochs=freeze_backbone_epochs)
    recipe = dataclasses.replace(RECIPE, head=HeadConfig(norm_last_layer=norm_last_layer), optimizer=optimizer)
    optimizer = make_optimizer(recipe, make_schedules(recipe, steps_per_epoch=3))
    state, history, update = optimizer.init(params), [], jax.jit(optimizer.update)
    rng = np.random.default_rng(1)
    for _ in range(7):
        gradients = _like(params, rng)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        history.append((gradients, params))
    return history


def find(path, tree):
    return functools.reduce(lambda node, name: node[name], path, tree)


def _float32(tree):
    return {k: _float32(v) for k, v in tree.items()} if isinstance(tree, dict) else jnp.asarray(tree, jnp.float32)


def _like(tree, rng):
    if isinstance(tree, dict):
        return {k: _like(v, rng) for k, v in tree.items()}
    return jnp.asarray(rng.normal(size=tree.shape), jnp.float32)


def test_backbone_follows_adamw():
    history = run(norm_last_layer=True)
    rates = [float(schedules().learning_rate(step)) for step in range(7)]
    decays = [float(schedules().weight_decay(step)) for step in range(7)]
    for name in ("kernel", "bias"):
        gradients = [np.asarray(gradient["backbone"][name]) for gradient, _ in history]
        expected = adamw(parameters()["backbone"][name], gradients, rates, decays)
        np.testing.assert_allclose(history[-1][1]["backbone"][name], expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("first", "path"),
    [
        # Two of three steps of an epoch.
        (2, ("backbone", "kernel")),
        (2, ("backbone", "bias")),
        (3, ("head", "last_layer", "direction")),
        (3, ("head", "last_layer", "scale")),
    ],
)
def test_what_is_frozen_at_first_starts_as_if_new(first, path):
    history = run(norm_last_layer=False, freeze_backbone_epochs=2 / 3)
    rates = [float(schedules().learning_rate(step)) for step in range(first, 7)]
    decays = [float(schedules().weight_decay(step)) for step in range(first, 7)]
    start = np.asarray(find(path, parameters()), np.float32)
    np.testing.assert_array_equal(find(path, history[first - 1][1]), start)
    gradients = [np.asarray(find(path, gradient)) for gradient, _ in history[first:]]
    expected = adamw(start, gradients, rates, decays)
    np.testing.assert_allclose(find(path, history[-1][1]), expected, rtol=2e-5, atol=2e-6)


def test_scale_of_a_normalized_last_layer_never_moves():
    history = run(norm_last_layer=True)
    np.testing.assert_array_equal(history[-1][1]["head"]["last_layer"]["scale"], 1)


def test_each_tensor_is_clipped_by_itself():
    gradients = {"large": jnp.array([3.0, 4.0]), "small": jnp.array([0.3, 0.4])}
    clipped, _ = clip_each(1.0).update(gradients, clip_each(1.0).init(gradients))
    np.testing.assert_allclose(clipped["large"], [0.6, 0.8], rtol=1e-5)
    np.testing.assert_array_equal(clipped["small"], gradients["small"])

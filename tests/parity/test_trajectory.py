"""Twelve steps of training give what the official code gave."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.clustering import ClusteringConfig, patch_positions
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.losses import ObjectiveConfig
from croc_jax.models import BackboneConfig, HeadConfig
from croc_jax.training.config import OptimizerConfig, Recipe, ScheduleConfig
from croc_jax.training.rng import step_keys
from croc_jax.training.state import state_from_params
from croc_jax.training.step import ViewPair, make_update
from tests.checkpoints.official import read_official
from tests.parity.goldens import golden_cases

TOKENS = {"k": "keys", "q": "queries", "v": "values", "last": "last"}
# Fields of each group, by the name that the golden gives them.
NAMES = {
    BackboneConfig: {"patch_size": "patch_size", "width": "dim", "depth": "depth", "num_heads": "heads",
                     "mlp_ratio": "mlp_ratio", "drop_path_rate": "drop_path"},
    HeadConfig: {"hidden_dim": "head_hidden", "bottleneck_dim": "head_bottleneck", "num_prototypes": "out_dim",
                 "num_prototypes_dense": "out_dim_c", "norm_last_layer": "norm_last_layer"},
    ClusteringConfig: {name: name for name in ("k_start", "k_max", "lambda_pos", "sinkhorn_lambda",
                                               "sinkhorn_iterations", "temp_r", "temp_c")},
    ObjectiveConfig: {name: name for name in ("alpha", "student_temp", "teacher_temp", "warmup_teacher_temp",
                                              "warmup_teacher_temp_epochs", "center_momentum")},
    OptimizerConfig: {"min_lr": "min_lr", "warmup_epochs": "warmup_epochs", "weight_decay": "weight_decay",
                      "weight_decay_end": "weight_decay_end", "teacher_momentum": "momentum_teacher",
                      "clip_norm": "clip_grad_per_param", "freeze_last_layer_epochs": "freeze_last_layer_epochs"},
}  # fmt: skip


def recipe_of(settings, batch_size):
    def make(config, **more):
        return config(**{field: settings[name] for field, name in NAMES[config].items()}, **more)

    return Recipe(
        backbone=make(BackboneConfig, dtype="float32"),
        head=make(HeadConfig),
        clustering=make(ClusteringConfig),
        objective=make(ObjectiveConfig, tokens=TOKENS[settings["features"]]),
        optimizer=make(OptimizerConfig, base_lr=settings["lr"] * 256 / batch_size),
        data=DataConfig(views=ViewsConfig(crop_size=settings["res"])),
        schedule=ScheduleConfig(epochs=settings["epochs"], batch_size=batch_size),
    )


def weights_under(golden, prefix):
    names = [name for name in golden.names() if name.startswith(prefix)]
    return read_official({name.removeprefix(prefix): golden[name] for name in names})


@pytest.mark.parametrize("golden", golden_cases("trajectory_*.npz"))
def test_training_follows_the_official_trajectory(golden):
    settings = json.loads(str(golden["config"]))
    images, boxes, indices = golden["images"], golden["crop_boxes"], golden["init_indices"]
    steps, _, batch_size = images.shape[:3]
    recipe = recipe_of(settings, batch_size)
    steps_per_epoch = settings["steps_per_epoch"]
    update = jax.jit(make_update(recipe, steps_per_epoch=steps_per_epoch))
    state = state_from_params(recipe, weights_under(golden, "init/"), steps_per_epoch=steps_per_epoch)
    side = settings["res"] // settings["patch_size"]
    history = []
    for step in range(steps):
        views = ViewPair(
            jnp.asarray(np.moveaxis(images[step].astype(np.float32), (0, 2), (1, 4))),
            patch_positions(np.moveaxis(boxes[step], 0, 1), (side, side)),
        )
        state, metrics = update(state, views, step_keys(jax.random.key(0), step), indices[step])
        history.append({name: float(value) for name, value in metrics.items()})

    def series(name):
        return np.array([metrics[name] for metrics in history])

    np.testing.assert_allclose(series("lr"), golden["lr"], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(series("weight_decay"), golden["weight_decay"], rtol=1e-5)
    np.testing.assert_allclose(series("momentum"), golden["momentum"], rtol=1e-6)
    np.testing.assert_allclose(series("loss_global"), golden["global_loss"], rtol=1e-4)
    np.testing.assert_allclose(series("loss_dense"), golden["dense_loss"], rtol=1e-4)
    np.testing.assert_allclose(state.center, golden["center"][0], atol=1e-3 * np.abs(golden["center"]).max())
    np.testing.assert_allclose(state.center_dense, golden["center_c"][0], atol=1e-3 * np.abs(golden["center_c"]).max())
    for prefix, params in (("student/", state.student), ("teacher/", state.teacher)):
        check_params(params, weights_under(golden, prefix))


def check_params(ours, theirs):
    """Compares within 1e-3 of each tensor's scale; key biases, whose true gradient is zero, wander."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, value), expected in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        name = jax.tree_util.keystr(path)
        value, expected = np.asarray(value), np.asarray(expected)
        if "qkv" in name and "bias" in name:
            width = len(value) // 3
            keep = np.r_[0:width, 2 * width : 3 * width]
            value, expected = value[keep], expected[keep]
        np.testing.assert_allclose(value, expected, atol=1e-3 * np.abs(expected).max(), err_msg=name)

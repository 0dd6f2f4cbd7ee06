"""Every config of pre-training: the paper's settings, the full-size shapes, and one step in miniature."""

import dataclasses
import functools
import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.training.config import Recipe, recipe_from_dict
from croc_jax.training.sharding import make_mesh, shard_batch
from croc_jax.training.start import abstract_state, fresh_state
from croc_jax.training.step import make_train_step
from tests.training.tiny import batches

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs").glob("*.py"))
STEPS_PER_EPOCH = 5


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name):
    return recipe_from_dict(load(name).get_config().to_dict())


def every_config(test):
    return pytest.mark.parametrize("name", [file.stem for file in FILES])(test)


def test_no_config_is_missing():
    assert {file.stem for file in FILES} == {
        "camvid",
        "croc_convnext_tiny_coco",
        "croc_resnet50_coco",
        "croc_vits16_coco",
        "croc_vits16_coco_plus",
        "croc_vits16_imagenet",
        "demo",
        "dino_vits16_coco",
        "post_training",
    }


@every_config
def test_the_docstring_gives_a_command_that_fits(name):
    text = load(name).__doc__
    assert f"python launch/pretrain.py --config=configs/{name}.py --workdir=" in text
    known = load(name).get_config()
    for field in re.findall(r"--config\.([\w.]+)=", text):
        assert functools.reduce(lambda group, part: group[part], field.split("."), known) is not None


@pytest.mark.parametrize(
    ("name", "source", "batch_size", "lambda_pos", "tokens", "alpha"),
    [
        ("croc_vits16_coco", "coco:data/coco", 256, 4.0, "values", 1.0),
        ("croc_vits16_coco_plus", "coco+:data/coco", 256, 4.0, "values", 1.0),
        ("croc_vits16_imagenet", "imagenet:data/imagenet", 1024, 3.0, "keys", 1.0),
        ("dino_vits16_coco", "coco:data/coco", 256, 4.0, "values", 0.0),
    ],
)
def test_the_paper_s_settings(name, source, batch_size, lambda_pos, tokens, alpha):
    recipe = read(name)
    assert (recipe.data.folders, recipe.data.sources) == ((), (source,))
    assert (recipe.schedule.epochs, recipe.schedule.batch_size) == (300, batch_size)
    assert (recipe.clustering.lambda_pos, recipe.objective.tokens) == (lambda_pos, tokens)
    assert (recipe.clustering.k_start, recipe.objective.alpha) == (12, alpha)
    assert (recipe.objective.teacher_temp, recipe.objective.student_temp) == (0.07, 0.1)
    assert (recipe.backbone.variant, recipe.backbone.patch_size) == ("vit_small", 16)
    assert (recipe.optimizer, recipe.head) == (Recipe().optimizer, Recipe().head)


def test_the_baseline_differs_from_croc_in_its_objective_alone():
    croc, dino = read("croc_vits16_coco"), read("dino_vits16_coco")
    assert dataclasses.replace(dino, objective=croc.objective) == croc
    assert dataclasses.replace(dino.objective, alpha=1.0) == croc.objective


def test_post_training_is_shorter_and_gentler_than_training_from_scratch():
    post, scratch = read("post_training"), read("croc_vits16_coco")
    assert post.init_from.source and not scratch.init_from.source
    assert (post.backbone, post.clustering) == (scratch.backbone, scratch.clustering)
    assert post.schedule.epochs * 10 <= scratch.schedule.epochs
    assert post.optimizer.base_lr < scratch.optimizer.base_lr / 5
    assert post.optimizer.warmup_epochs < post.schedule.epochs / 10 + 1
    assert post.objective.warmup_teacher_temp_epochs < post.schedule.epochs
    assert scratch.optimizer.teacher_momentum < post.optimizer.teacher_momentum < 1


def one_device():
    return make_mesh(jax.devices()[:1])


@functools.cache
def full_size_shapes(recipe):
    mesh, batch, size = one_device(), recipe.schedule.batch_size, recipe.data.views.crop_size
    state = abstract_state(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    views = jax.ShapeDtypeStruct((batch, 2, size, size, 3), jnp.uint8)
    boxes = jax.ShapeDtypeStruct((batch, 2, 5), jnp.float32)
    step = make_train_step(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    return state, *jax.eval_shape(step, state, {"views": views, "boxes": boxes})


@every_config
def test_full_size_shapes_fit_together(name):
    recipe = read(name)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, folders=(), sources=()))
    before, after, metrics = full_size_shapes(recipe)
    describe = lambda leaf: (leaf.shape, leaf.dtype)  # noqa: E731
    assert jax.tree.map(describe, after) == jax.tree.map(describe, before)
    assert all(leaf.shape == () for leaf in metrics.values())
    assert before.center.shape == (recipe.head.num_prototypes,)


def miniature(recipe):
    """Returns the recipe with everything that only makes it large taken away."""
    small = {"width": 16, "depth": 1, "num_heads": 2}
    if not recipe.backbone.variant.startswith("vit"):
        small = {"width": 32 * recipe.objective.token_groups, "stages": (1, 1, 1, 1)}
    backbone = dataclasses.replace(recipe.backbone, **small)
    head = dataclasses.replace(recipe.head, hidden_dim=16, bottleneck_dim=8, num_prototypes=16, num_prototypes_dense=16)
    views = dataclasses.replace(recipe.data.views, crop_size=3 * backbone.patch_size)
    data = dataclasses.replace(recipe.data, folders=(), sources=(), views=views)
    schedule = dataclasses.replace(recipe.schedule, batch_size=4)
    clean = dataclasses.replace(recipe, runtime=Recipe().runtime)
    return dataclasses.replace(clean, backbone=backbone, head=head, data=data, schedule=schedule)


@functools.cache
def one_step(recipe):
    mesh, size = one_device(), recipe.data.views.crop_size
    state = fresh_state(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    batch = shard_batch(next(batches(1, batch_size=4, crop_size=size)), mesh)
    step = make_train_step(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    # Compiled in a hurry: it runs once.
    compiled = step.lower(state, batch).compile({"xla_backend_optimization_level": 0})  # pyright: ignore
    state, metrics = compiled(state, batch)
    return int(state.step), jax.tree.map(float, metrics)


@every_config
def test_one_step_in_miniature(name):
    recipe = miniature(read(name))
    step, metrics = one_step(recipe)
    assert step == 1 and np.isfinite(list(metrics.values())).all()
    expected = recipe.objective.alpha * metrics["loss_dense"] + metrics["loss_global"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    if recipe.objective.alpha:
        assert 2 <= metrics["num_clusters"] <= recipe.clustering.k_max and metrics["loss_dense"] > 0
    else:
        assert metrics["num_clusters"] == metrics["loss_dense"] == 0

"""Every config of pre-training: the paper's settings, the full-size shapes, and one step in miniature."""

import dataclasses
import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import keystr

from croc_jax.checkpoints.infer_architecture import read_backbone
from croc_jax.checkpoints.init_from import check_architecture
from croc_jax.data.config import LocalViewsConfig
from croc_jax.losses import MaskedConfig
from croc_jax.models import make_backbone
from croc_jax.training.config import Recipe, flatten, recipe_from_dict, recipe_to_dict
from croc_jax.training.forward import make_networks
from croc_jax.training.presets import PRESETS
from croc_jax.training.sharding import make_mesh, shard_batch
from croc_jax.training.state import abstract_batch, abstract_state, fresh_state
from croc_jax.training.step import make_train_step
from tests.checkpoints.tiny_weights import dinov3_weights, official_weights
from tests.training.tiny import batches

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs").glob("*.py"))
VIT = ("vit_tiny", "vit_small", "vit_base", "vit_large", "vit_giant")
CONFIGS = [file.stem for file in FILES if file.stem != "presets"] + ["croc_vit:vit_giant_registers"]
CONFIGS += [f"presets:{size}" for size in PRESETS]
# One config for each kind of backbone.
KINDS = ["croc_vit:vit_giant_registers", "croc_resnet50_coco", "croc_convnext_tiny_coco"]
STEPS_PER_EPOCH = 5


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name):
    """Returns the recipe of FILE, or of FILE:VARIANT."""
    file, _, variant = name.partition(":")
    return recipe_from_dict(load(file).get_config(*[variant] if variant else []).to_dict())


# Prints, for each config file, which modules it loads besides JAX and those that any config needs.
COUNT = """
import importlib.util, sys
import jax, ml_collections
for path in sys.argv[1:]:
    for name in [name for name in sys.modules if name.split(".")[0] == "croc_jax"]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.get_config()
    own = [name for name in sys.modules if name.split(".")[0] == "croc_jax"]
    heavy = {"flax", "grain", "optax", "orbax", "ott", "PIL", "simplejpeg"} & set(sys.modules)
    print(path, len(own), *sorted(heavy))
"""


def test_a_config_loads_a_dozen_modules_and_no_library_for_computing():
    command = [sys.executable, "-c", COUNT, *map(str, FILES)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(file) for file in FILES]
    for path, count, *heavy in lines:
        assert int(count) <= 15 and not heavy, (path, count, heavy)


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_the_docstring_gives_a_command_that_fits(name):
    text = load(name).__doc__
    command = re.search(rf"python launch/pretrain.py --config=configs/{name}.py(:\w+)? --workdir=", text)
    assert command is not None
    known = load(name).get_config(*[command[1][1:]] if command[1] else [])
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


def test_the_recipe_with_masked_patches_differs_from_croc_in_them_alone():
    croc, masked = read("croc_vits16_coco"), read("croc_masked_vits16_coco")
    assert masked.objective.masked == MaskedConfig(weight=1.0)
    assert dataclasses.replace(masked, objective=croc.objective) == croc


def test_the_giant_is_dinov2_s():
    recipe = read("croc_vit:vit_giant")
    module: Any = make_backbone(recipe.backbone, image_size=224)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    # Half of the 8192 outputs gate the other 4096.
    assert shapes["params"]["block_0"]["mlp_1"]["kernel"].shape == (1536, 8192)
    assert (module.patch_size, module.mlp, recipe.backbone.remat) == (14, "swiglu", True)


@pytest.mark.parametrize("size", VIT)
def test_registers_are_all_that_a_variant_with_registers_has_more(size):
    plain, more = read(f"croc_vit:{size}"), read(f"croc_vit:{size}_registers")
    assert (more.backbone.num_registers, plain.backbone.num_registers) == (4, 0)
    backbone = dataclasses.replace(more.backbone, num_registers=0, position_resizing="offset")
    assert dataclasses.replace(more, backbone=backbone) == plain


def test_the_default_size_is_the_paper_s_and_others_are_named():
    assert read("croc_vit") == read("croc_vit:vit_small") == read("croc_vits16_coco")
    assert set(load("croc_vit").VARIANTS) == {*VIT, *(f"{size}_registers" for size in VIT)}
    with pytest.raises(ValueError, match="variant='vit_huge': choose one of vit_tiny, .*, vit_giant_registers"):
        read("croc_vit:vit_huge")


@pytest.mark.parametrize("size", PRESETS)
def test_a_preset_changes_no_field_without_a_reason(size):
    settings, defaults = (flatten(recipe_to_dict(recipe)) for recipe in (read(f"presets:{size}"), Recipe()))
    choices = PRESETS[size].choices
    assert settings == defaults | {name: choice.value for name, choice in choices.items()} | {"preset": size}
    assert {*choices} >= {
        "schedule.epochs", "schedule.batch_size", "optimizer.base_lr", "optimizer.teacher_momentum",
        "objective.teacher_temp", "head.num_prototypes", "data.views.crop_size", "data.views.scale",
    }  # fmt: skip


def test_presets_for_many_images_are_the_paper_s():
    for size, name in (("100k", "croc_vits16_coco"), ("1m", "croc_vits16_imagenet")):
        paper = read(name)
        paper = dataclasses.replace(paper, preset=size, data=dataclasses.replace(paper.data, sources=()))
        assert read(f"presets:{size}") == paper
    assert load("presets").get_config().preset == "auto"
    with pytest.raises(ValueError, match="size='2k': choose one of auto, 1k, 10k, 100k, 1m"):
        read("presets:2k")


@pytest.mark.parametrize(("experiment", "size"), [("small", "10k"), ("own_images", "1k")])
def test_experiments_measure_the_presets_for_few_images(experiment, size):
    base = load(f"experiments/{experiment}").get_config().base.removeprefix("configs/").replace(".py", "")
    settings, preset = (flatten(recipe_to_dict(read(name))) for name in (base, f"presets:{size}"))
    changed = {field for field, value in preset.items() if settings[field] != value}
    assert all(field.split(".")[0] in ("evaluation", "runtime") for field in changed - {"preset"})


def test_variants_of_post_training_fit_the_weights_that_they_name():
    plain, weights = read("post_training"), official_weights()
    assert read("post_training:dino_vits16") == plain and plain.backbone == Recipe().backbone
    scales = {f"blocks.{block}.ls{n}.gamma": np.ones(64, np.float32) for block in range(2) for n in (1, 2)}
    mask, registers = {"mask_token": np.zeros((1, 64), np.float32)}, np.ones((1, 4, 64), np.float32)
    rope = dinov3_weights(width=64, periods=16) | {"storage_tokens": registers}
    for variant, patch_size, found in (
        ("dino_vits16", 16, weights),
        ("dinov2_vits14", 14, weights | scales | mask),
        ("dinov2_vits14_registers", 14, weights | scales | {"register_tokens": registers}),
        ("dinov3_vits16", 16, scales | rope),
    ):
        recipe, backbone = read(f"post_training:{variant}"), read_backbone(found).config
        # The weights here are small ones, of other patches.
        names = ("variant", "width", "depth", "num_heads", "mlp_ratio")
        size: Any = {name: getattr(recipe.backbone, name) for name in names} | {"patch_size": patch_size}
        check_architecture(dataclasses.replace(backbone, **size), recipe.backbone, Path(variant))
        assert dataclasses.replace(recipe, backbone=plain.backbone, init_from=plain.init_from) == plain
        assert recipe.data.views.crop_size % patch_size == 0
    with pytest.raises(ValueError, match="variant='dinov2': choose one of dino_vits16, .*, dinov3_vits16"):
        read("post_training:dinov2")


def one_device():
    return make_mesh(jax.devices()[:1])


@functools.cache
def step_shapes(recipe):
    """Returns the shapes of the state before and after a step, and of the metrics; nothing is compiled."""
    mesh = one_device()
    state = abstract_state(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    step = make_train_step(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    return state, *jax.eval_shape(step, state, abstract_batch(recipe, mesh=mesh))


def describe(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


# Large networks take half a minute to trace.
FULL_SIZE = [name if name == "croc_vits16_coco" else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_shapes_fit_together(name):
    recipe = read(name)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, folders=(), sources=()))
    before, after, metrics = step_shapes(recipe)
    assert describe(after) == describe(before)
    assert all(leaf.shape == () for leaf in metrics.values())
    assert before.center.shape == (recipe.head.num_prototypes,)


def miniature(recipe):
    """Returns the recipe with everything that only makes it large taken away."""
    # Of equal width and depth, transformers of all sizes are one.
    small: dict[str, Any] = {"variant": "vit_tiny", "width": 16, "depth": 1, "num_heads": 2}
    if not recipe.backbone.variant.startswith("vit"):
        small = {"width": 32 * recipe.objective.token_groups, "stages": (1, 1, 1, 1)}
    backbone = dataclasses.replace(recipe.backbone, **small)
    head = dataclasses.replace(recipe.head, hidden_dim=16, bottleneck_dim=8, num_prototypes=16, num_prototypes_dense=16)
    views = dataclasses.replace(recipe.data.views, crop_size=3 * backbone.patch_size)
    data = dataclasses.replace(recipe.data, folders=(), sources=(), views=views)
    schedule = dataclasses.replace(recipe.schedule, batch_size=4)
    clean = dataclasses.replace(recipe, runtime=Recipe().runtime)
    return dataclasses.replace(clean, backbone=backbone, head=head, data=data, schedule=schedule)


def parts_without_gradient(state):
    """Returns the paths in the student's backbone whose moving average of gradients is 0 throughout."""
    leaves = [(keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    moments = {name: leaf for name, leaf in leaves if ".mu['backbone']" in name}
    assert len(moments) == len(jax.tree.leaves(state.student["backbone"]))
    return [name for name, leaf in moments.items() if not np.any(leaf)]


def one_step(recipe):
    mesh, size = one_device(), recipe.data.views.crop_size
    state = fresh_state(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    batch = shard_batch(next(batches(1, batch_size=4, crop_size=size)), mesh)
    step = make_train_step(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    # Compiled in a hurry: it runs once.
    compiled = step.lower(state, batch).compile({"xla_backend_optimization_level": 0})  # pyright: ignore
    state, metrics = compiled(state, batch)
    return int(state.step), jax.tree.map(float, metrics), parts_without_gradient(state)


# The ResNet's step has tests of its own.
@pytest.mark.parametrize("name", ["croc_vit:vit_giant_registers", "croc_convnext_tiny_coco"])
def test_one_step_in_miniature(name):
    recipe = miniature(read(name))
    step, metrics, without = one_step(recipe)
    # Running statistics follow the images instead; else the gradient reaches everything, registers and all.
    assert [name for name in without if not re.search(r"\['(mean|variance)'\]$", name)] == []
    assert step == 1 and np.isfinite(list(metrics.values())).all()
    expected = recipe.objective.alpha * metrics["loss_dense"] + metrics["loss_global"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    assert 2 <= metrics["num_clusters"] <= recipe.clustering.k_max and metrics["loss_dense"] > 0


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("objective", ["global loss alone", "local crops and microbatches", "groups of last tokens"])
def test_every_objective_takes_every_kind_of_backbone(name, objective):
    recipe = miniature(read(name))
    if objective == "global loss alone":
        recipe = dataclasses.replace(recipe, objective=dataclasses.replace(recipe.objective, alpha=0.0))
    elif objective == "groups of last tokens":
        # Beside masked patches, which convolutional networks have none of.
        masked = MaskedConfig(weight=1.0 if recipe.backbone.variant.startswith("vit") else 0.0)
        grouped = dataclasses.replace(recipe.objective, masked=masked, tokens="last", token_groups=2)
        recipe = dataclasses.replace(recipe, objective=grouped)
    else:
        local = LocalViewsConfig(count=2, crop_size=2 * recipe.backbone.patch_size)
        optimizer = dataclasses.replace(recipe.optimizer, accumulation_steps=2)
        data = dataclasses.replace(recipe.data, local_views=local)
        recipe = dataclasses.replace(recipe, data=data, optimizer=optimizer)
    before, after, metrics = step_shapes(recipe)
    assert describe(after) == describe(before) and metrics["loss_global"].shape == ()


@pytest.mark.parametrize("field", ["views", "local_views"])
def test_crops_that_patches_do_not_tile_are_named_with_sizes_that_they_do(field):
    config = load("croc_vit").get_config("vit_giant").to_dict()
    config["data"][field]["crop_size"], config["data"]["local_views"]["count"] = 96, 2
    config["data"]["views" if field == "local_views" else "local_views"]["crop_size"] = 98
    with pytest.raises(ValueError, match=f"data.{field}.crop_size=96: whole patches of 14 .*; choose 84 or 98"):
        make_networks(recipe_from_dict(config))

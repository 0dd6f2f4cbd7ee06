"""The step with cuDNN's attention, traced as for an NVIDIA GPU that is not there."""

import dataclasses
import re

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from croc_jax.data.config import DataConfig, LocalViewsConfig
from croc_jax.models import BackboneConfig, devices
from croc_jax.training.config import OptimizerConfig, Recipe, ScheduleConfig
from croc_jax.training.run_config import MeshConfig, RuntimeConfig
from croc_jax.training.sharding import make_mesh
from croc_jax.training.state import abstract_batch, abstract_state
from croc_jax.training.step import make_train_step
from tests.jaxprs import equations

SHALLOW = BackboneConfig(depth=2)


@pytest.fixture(autouse=True)
def on_cuda(monkeypatch):
    """A mesh of the CPU's devices is taken for one of NVIDIA's, and cuDNN for installed."""
    monkeypatch.setattr(devices, "platform_of", lambda device: "cuda")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91500)


@pytest.mark.parametrize(
    ("recipe", "depth", "tokens"),
    [
        (Recipe(backbone=SHALLOW), 2, {197}),
        (Recipe(backbone=dataclasses.replace(SHALLOW, patch_size=14)), 2, {257}),
        (Recipe(backbone=SHALLOW, data=DataConfig(local_views=LocalViewsConfig(count=2, crop_size=96))), 2, {197, 37}),
    ],
    ids=["default", "patch 14", "local crops"],
)
def test_the_step_is_traced_for_any_number_of_tokens(recipe, depth, tokens):
    recipe = dataclasses.replace(recipe, schedule=ScheduleConfig(batch_size=4))
    mesh = make_mesh(jax.devices()[:1])
    state = abstract_state(recipe, steps_per_epoch=1000, mesh=mesh)
    step = make_train_step(recipe, steps_per_epoch=1000, mesh=mesh)
    traced = step.trace(state, abstract_batch(recipe, mesh=mesh)).jaxpr
    # What each pass of cuDNN reads and writes first: the queries, and the result or their gradient.
    shapes = {"fwd": [], "bwd": []}
    for equation in equations(traced.jaxpr):
        if match := re.match(r"dot_product_attention_(\w+)_wrapper", equation.primitive.name):
            assert equation.invars[0].aval.shape == equation.outvars[0].aval.shape
            shapes[match[1]].append(equation.invars[0].aval.shape)
    # The teacher's and the student's forward pass, which is not run again, and one backward pass.
    assert len(shapes["fwd"]) == depth * (1 + len(tokens)) and len(shapes["bwd"]) == depth * len(tokens)
    # Nor are the products that it takes: queries, keys and values come from one, of three passes.
    width = 3 * recipe.backbone.num_heads * 64 if recipe.backbone.num_heads else 3 * 384
    products = [found for found in equations(traced.jaxpr) if found.primitive.name == "dot_general"]
    forward = [
        found for found in products if found.outvars[0].aval.shape[-1:] == (width,) and found.outvars[0].aval.ndim == 3
    ]
    assert len(forward) == depth * (1 + len(tokens))
    # Whole tiles of 8.
    assert {shape[1] for found in shapes.values() for shape in found} == {-(-count // 8) * 8 for count in tokens}


@pytest.mark.parametrize(("model", "manual"), [(1, {"data", "fsdp", "model"}), (2, set())])
def test_microbatches_never_leave_the_attention_between_manual_axes_and_others(model, manual):
    recipe = Recipe(
        backbone=SHALLOW,
        schedule=ScheduleConfig(batch_size=16),
        optimizer=OptimizerConfig(accumulation_steps=2),
        runtime=RuntimeConfig(mesh=MeshConfig(fsdp=1, model=model)),
    )
    mesh = make_mesh(jax.devices()[:8], recipe.runtime.mesh)
    state = abstract_state(recipe, steps_per_epoch=1000, mesh=mesh)
    step = make_train_step(recipe, steps_per_epoch=1000, mesh=mesh)
    traced = step.trace(state, abstract_batch(recipe, mesh=mesh)).jaxpr

    def attends(equation):
        inner = equation.params["jaxpr"]
        return any(inside.primitive.name.startswith("dot_product_attention") for inside in equations(inner))

    shards = [found for found in equations(traced.jaxpr) if found.primitive.name == "shard_map" and attends(found)]
    # The teacher's forward pass, the student's, and its backward pass.
    assert [set(found.params["newly_manual_axes"]) for found in shards] == ([manual] * 3 if manual else [])

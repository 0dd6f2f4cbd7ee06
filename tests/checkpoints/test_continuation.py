"""Runs go on from the weights of others."""

import dataclasses

import jax
import numpy as np
import pytest

from croc_jax.checkpoints.continuation import InitError, first_state
from croc_jax.checkpoints.orbax import Checkpointer
from croc_jax.models.position_embedding import resize_position_embedding
from croc_jax.training.config import InitConfig
from croc_jax.training.sharding import make_mesh
from croc_jax.training.state import init_state
from croc_jax.training.workdir import claim_workdir
from tests.training.tiny import tiny_recipe


def with_init(recipe, **settings):
    return dataclasses.replace(recipe, init_from=InitConfig(**{k: str(v) for k, v in settings.items()}))


def start(recipe):
    return first_state(recipe, steps_per_epoch=2, mesh=make_mesh(jax.devices()[:2]))


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir, recipe = tmp_path_factory.mktemp("run"), tiny_recipe()
    claim_workdir(workdir, recipe)
    state = jax.jit(lambda: init_state(dataclasses.replace(recipe, seed=3), steps_per_epoch=2))()
    teacher = jax.tree.map(lambda leaf: leaf * 2 + 1, state.teacher)
    state = dataclasses.replace(
        state, step=state.step + 9, teacher=teacher, center=state.center + 2, center_dense=state.center_dense + 3
    )
    saver = Checkpointer(workdir, recipe)
    saver.save(9, state, wait=True)
    saver.close()
    return workdir, state


def test_without_a_source_a_run_starts_anew():
    expected = jax.jit(lambda: init_state(tiny_recipe(), steps_per_epoch=2))()
    equal(start(tiny_recipe()), expected)


def test_both_networks_and_the_centers_go_on(run):
    workdir, saved = run
    state = start(with_init(tiny_recipe(), source=workdir, parts="networks"))
    for name in ("student", "teacher", "center", "center_dense"):
        equal(getattr(state, name), getattr(saved, name))
    assert int(state.step) == 0 and all(leaf.sharding.num_devices == 2 for leaf in jax.tree.leaves(state.student))
    equal(state.opt_state, start(tiny_recipe()).opt_state)


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_a_backbone_goes_on_with_new_heads(run, which):
    workdir, saved = run
    state, fresh = start(with_init(tiny_recipe(), source=workdir, which=which)), start(tiny_recipe())
    for network in (state.student, state.teacher):
        equal(network["backbone"], getattr(saved, which)["backbone"])
        equal(network["head"], fresh.student["head"])
    equal(state.center, fresh.center)


def test_position_embeddings_fit_other_crops(run):
    workdir, saved = run
    recipe = tiny_recipe()
    views = dataclasses.replace(recipe.data.views, crop_size=40)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, views=views))
    state = start(with_init(recipe, source=workdir))
    theirs = saved.teacher["backbone"]["position_embedding"]
    expected = resize_position_embedding(theirs, (3, 3), (5, 5))
    np.testing.assert_allclose(state.student["backbone"]["position_embedding"], expected, atol=1e-6)


def test_another_architecture_is_answered_with_the_flags_that_fit(run):
    recipe = tiny_recipe()
    other = dataclasses.replace(recipe.backbone, depth=3, layer_scale=True)
    with pytest.raises(InitError, match="add --config.backbone.depth=2 --config.backbone.layer_scale=False"):
        start(with_init(dataclasses.replace(recipe, backbone=other), source=run[0]))
    head = dataclasses.replace(recipe.head, num_prototypes=13)
    with pytest.raises(InitError, match=r"center is \(12,\), not \(13,\).*config.head"):
        start(with_init(dataclasses.replace(recipe, head=head), source=run[0], parts="networks"))


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match="init_from.parts='heads'"):
        InitConfig(parts="heads")
    with pytest.raises(ValueError, match="init_from.which='ema'"):
        InitConfig(which="ema")

"""Each thing that draws has a key of its own, in the whole of a run."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from croc_jax.data.config import LocalViewsConfig, PhotometricConfig
from croc_jax.losses import MaskedConfig
from croc_jax.training import step as step_module
from croc_jax.training.rng import run_keys, step_keys
from croc_jax.training.sharding import make_mesh
from croc_jax.training.state import abstract_batch, init_state, state_shapes
from tests.training.key_uses import key_uses, misused
from tests.training.tiny import STEPS_PER_EPOCH, tiny_recipe

LOCAL, NOISY = LocalViewsConfig(count=2, crop_size=16), PhotometricConfig(noise=0.1)
RECIPE = tiny_recipe(
    data=dataclasses.replace(tiny_recipe().data, local_views=LOCAL, photometric=NOISY),
    objective=dataclasses.replace(tiny_recipe().objective, masked=MaskedConfig(weight=1.0)),
)
STATE = state_shapes(RECIPE, steps_per_epoch=STEPS_PER_EPOCH)


def uses_of_steps(steps):
    mesh = make_mesh(jax.devices()[:1])
    train_step = step_module.make_train_step(RECIPE, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    batch = abstract_batch(RECIPE, mesh=mesh)
    traced = jax.make_jaxpr(train_step)(STATE, batch)
    return [key_uses(traced, STATE.replace(step=jnp.int32(step)), batch) for step in steps]


def draws(uses):
    return [use for use in uses if use.kind == "bits"]


def test_every_draw_of_a_run_has_its_own_key():
    init = key_uses(jax.make_jaxpr(lambda: init_state(RECIPE, steps_per_epoch=STEPS_PER_EPOCH))())
    steps = uses_of_steps(range(2))
    # Every trace splits the key of the seed.
    (root,) = set(init) & set(steps[0])
    assert root.kind == "split"
    uses = [root] + [use for trace in (init, *steps) for use in trace if use != root]
    assert not misused(uses)
    # Both views and two local crops of 8 images, three draws each; two branches of two blocks each for both kinds, one
    # clustering. Of masks: views, shares, two rounds of a permutation, and the blocks of 8 images.
    assert len(draws(steps[0])) == 8 * 4 * 3 + 2 * 2 * (16 + 16) + 1 + 4 + 8
    assert len(draws(init)) > 10


@pytest.mark.parametrize(
    "mutate",
    [
        lambda keys: keys._replace(augment_local=keys.augment),
        lambda keys: keys._replace(augment_local=jax.random.fold_in(keys.augment, 1)),
        lambda keys: keys._replace(drop_path_local=keys.drop_path),
        lambda keys: keys._replace(masks=keys.cluster),
    ],
    ids=["augmentation", "image 1", "stochastic depth", "masks"],
)
def test_a_key_that_is_used_twice_is_found(monkeypatch, mutate):
    monkeypatch.setattr(step_module, "step_keys", lambda rng, step: mutate(step_keys(rng, step)))
    assert misused(uses_of_steps([0])[0])


def test_the_first_keys_are_no_keys_of_steps():
    init_rng, train_rng = run_keys(3)
    steps = [jax.random.fold_in(train_rng, step) for step in range(8)]
    starts = [init_rng, *jax.random.split(init_rng)]
    data = [tuple(jax.random.key_data(key).tolist()) for key in (*steps, *starts, train_rng)]
    assert len(set(data)) == len(data)

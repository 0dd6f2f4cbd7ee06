"""Parts of a network that are frozen: what moves and when, what a backward pass costs, and what cannot be frozen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.losses import MaskedConfig
from croc_jax.models import BackboneConfig
from croc_jax.training.forward import make_networks
from croc_jax.training.optimizer import stop_frozen_gradients
from croc_jax.training.run_config import MeshConfig
from croc_jax.training.schedules import make_schedules
from croc_jax.training.state import state_shapes
from tests.jaxprs import equations
from tests.training.tiny import STEPS_PER_EPOCH, first_state, tiny_recipe, train

TINY = tiny_recipe()


def freeze(backbone=TINY.backbone, **settings):
    return tiny_recipe(backbone=backbone, optimizer=dataclasses.replace(TINY.optimizer, **settings))


def leaves(tree):
    with_path = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in with_path}


def is_lower(name, blocks=1):
    first = ("patch_embedding", "cls_token", "position_embedding", "register_tokens")
    return name.startswith((*first, *(f"block_{index}/" for index in range(blocks))))


@pytest.mark.parametrize("devices", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_lower_blocks_never_move_and_the_rest_of_the_backbone_moves_once_the_heads_have_warmed_up(devices):
    backbone = dataclasses.replace(TINY.backbone, num_registers=1)
    settings = {"accumulation_steps": 2} if devices > 1 else {}
    recipe = freeze(backbone, frozen_blocks=1, freeze_backbone_epochs=1.5, warmup_epochs=0, **settings)
    if devices == 1:
        # Clusters add nothing to what freezes, and much to what is compiled.
        recipe = dataclasses.replace(recipe, objective=dataclasses.replace(recipe.objective, alpha=0.0))
    states, _ = train(recipe, steps=4, num_devices=devices, config=MeshConfig(fsdp=min(devices, 2)))
    start = leaves(states[0].student["backbone"])
    assert any(is_lower(name) for name in start) and any(not is_lower(name) for name in start)
    for step, state in enumerate(states):
        for name, leaf in leaves(state.student["backbone"]).items():
            stays = is_lower(name) or step <= 3
            assert np.array_equal(leaf, start[name]) == stays, (step, name)
            follows = np.max(np.abs(leaves(state.teacher["backbone"])[name] - start[name]))
            assert follows < 1e-5 if stays else follows > 0, (step, name)
    for before, after in zip(states[:-1], states[1:], strict=True):
        kernels = (leaves(state.student["head"])["mlp_1/kernel"] for state in (before, after))
        assert not np.array_equal(*kernels)

    counts = {name: int(leaf) for name, leaf in leaves(states[-1].opt_state).items() if name.endswith("count")}
    adam = {kind: {n for name, n in counts.items() if f"/{kind}/" in name} for kind in ("always", "late", "backbone")}
    assert max(adam["always"]) == 4 and 1 in adam["backbone"]
    moments = {name.partition("/mu/backbone/")[2] for name in leaves(states[-1].opt_state) if "/mu/backbone/" in name}
    assert moments == {name for name in start if not is_lower(name)}


def test_a_mask_token_freezes_with_what_comes_before_the_blocks():
    masked = dataclasses.replace(TINY.objective, masked=MaskedConfig(weight=1.0))
    for frozen in (0, 1):
        recipe = dataclasses.replace(freeze(frozen_blocks=frozen), objective=masked)
        names = leaves(state_shapes(recipe, steps_per_epoch=STEPS_PER_EPOCH).opt_state)
        assert any(name.endswith("mu/mask_token") for name in names) == (not frozen)


DEPTH = 3
DEEP = dataclasses.replace(TINY.backbone, depth=DEPTH)


def gradient(frozen):
    """Returns a loss as a function of a network's parameters, and its gradient."""
    module = make_networks(freeze(DEEP, frozen_blocks=frozen)).backbone
    images = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype(np.float32)

    def loss(params):
        params = stop_frozen_gradients(params, frozen)
        return jnp.sum(module.apply({"params": params["backbone"]}, images, train=True).patches[..., 0] ** 3)

    return loss, jax.grad(loss)


def traced(function):
    return list(equations(jax.make_jaxpr(function)(first_state(freeze(DEEP)).student).jaxpr))


def test_no_backward_pass_goes_through_frozen_blocks():
    def products(function):
        return sum(equation.primitive.name == "dot_general" for equation in traced(function))

    # The norm at the end, which trains, has no products.
    loss, frozen = gradient(DEPTH)
    assert products(frozen) == products(loss)
    # A loop has all blocks but the last.
    loops = [equation.params for equation in traced(gradient(1)[1]) if equation.primitive.name == "scan"]
    assert [(loop["length"], loop["reverse"]) for loop in loops] == [(1, False), (1, False), (1, True)]


@pytest.mark.slow
def test_gradients_of_other_blocks_stay_as_they_are():
    state = first_state(freeze(DEEP)).student
    whole, part = (leaves(tree) for tree in jax.jit(lambda p: (gradient(0)[1](p), gradient(2)[1](p)))(state))
    for name in whole:
        frozen = name.startswith("backbone/") and is_lower(name.removeprefix("backbone/"), 2)
        assert frozen != np.any(part[name]) or name.startswith("head/")
        np.testing.assert_allclose(part[name], 0 if frozen else whole[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frozen_blocks": 3}, "optimizer.frozen_blocks=3: vit_tiny has 2 blocks; choose 0 to 2"),
        ({"frozen_blocks": -1}, "optimizer.frozen_blocks=-1: vit_tiny has 2 blocks"),
    ],
)
def test_blocks_that_there_are_none_of(settings, message):
    with pytest.raises(ValueError, match=message):
        make_networks(freeze(**settings))


@pytest.mark.parametrize("settings", [{"frozen_blocks": 1}, {"freeze_backbone_epochs": 0.5}])
def test_a_convolutional_network_cannot_be_frozen(settings):
    resnet = BackboneConfig(variant="resnet_50", patch_size=8, width=32, stages=(1, 1, 1, 1))
    (name, value) = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"optimizer.{name}={value}: transformers alone .* resnet_50 .* leave it at 0"):
        make_networks(freeze(resnet, **settings))


@pytest.mark.parametrize("epochs", [-1, 4, 3.9])
def test_the_backbone_trains_at_the_end(epochs):
    with pytest.raises(ValueError, match=f"optimizer.freeze_backbone_epochs={epochs}: choose 0 or more, and less than"):
        make_schedules(freeze(freeze_backbone_epochs=epochs), steps_per_epoch=STEPS_PER_EPOCH)

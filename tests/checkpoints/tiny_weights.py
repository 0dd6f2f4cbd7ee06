"""Weights of tiny networks under official names and ours, and runs that hold them."""

import dataclasses

import jax
import numpy as np
import safetensors.numpy

from croc_jax.checkpoints import Checkpointer
from croc_jax.models import make_backbone
from tests.training.tiny import first_state

WIDTH, DEPTH, PATCH, SIDE = 64, 2, 4, 3


def official_weights(seed=0, *, width=WIDTH, depth=DEPTH, mlp_ratio=2, channels=3):
    """Returns a vision transformer as the official code names its arrays."""
    rng, hidden = np.random.default_rng(seed), mlp_ratio * width
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, SIDE**2 + 1, width),
        "patch_embed.proj.weight": (width, channels, PATCH, PATCH),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    block = {
        "norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width),
        "norm2": (width,), "mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden),
    }  # fmt: skip
    for i in range(depth):
        for name, shape in block.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    weights = {name: (0.2 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    weights["norm.weight"] += 1
    return weights


def dinov3_weights(*, width=256, periods=32):
    weights = official_weights(width=width)
    del weights["pos_embed"]
    return weights | {"rope_embed.periods": np.ones(periods, np.float32)}


def write(file, weights):
    safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in weights.items()}, file)
    return file


def random_params(config, *, size=28, seed=0):
    """Returns parameters of a backbone under our names."""
    module, rng = make_backbone(config, image_size=size), np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, size, size, config.channels), np.float32))[
        "params"
    ]

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 9))
        return (np.abs(noise) + 0.5 if path[-1].key == "variance" else noise).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def save_run(workdir, recipe, step):
    """Saves a run whose student, teacher and centers differ; returns its state on the host."""
    state = first_state(recipe)
    state = dataclasses.replace(
        state,
        step=state.step + step,
        teacher=jax.tree.map(lambda leaf: leaf * 1.1 + 0.01, state.teacher),
        center=state.center + 0.5,
        center_dense=state.center_dense - 0.25,
    )
    saver = Checkpointer(workdir, recipe)
    saver.save(step, jax.device_put(state), wait=True)
    saver.close()
    return jax.device_get(state)


def equal_trees(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)

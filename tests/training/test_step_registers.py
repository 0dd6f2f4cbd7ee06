"""The step of a transformer with registers, gated MLPs, layer scale and rotations, whose blocks two devices share."""

import jax
import numpy as np

from croc_jax.models import BackboneConfig
from croc_jax.training.config import MeshConfig
from croc_jax.training.sharding import make_mesh, shard_batch, state_shardings
from croc_jax.training.step import make_train_step
from tests.training.tiny import STEPS_PER_EPOCH, batches, first_state, tiny_recipe

# DINOv3's, in miniature.
RECIPE = tiny_recipe(
    backbone=BackboneConfig(
        width=16, depth=2, num_heads=2, patch_size=8, drop_path_rate=0.0, dtype="float32", num_registers=3,
        layer_scale=True, mlp="swiglu", mlp_ratio=8 / 3, positions="rope", norm_epsilon=1e-5,
    )
)  # fmt: skip


def test_registers_and_scales_learn_and_the_teacher_follows():
    mesh = make_mesh(jax.devices()[:2], MeshConfig(fsdp=2))
    start = jax.device_get(first_state(RECIPE))
    state = jax.device_put(start, state_shardings(start, mesh))
    # The learning rate starts from 0: the second step moves something.
    steps = [shard_batch(batch, mesh) for batch in batches(2)]
    step = make_train_step(RECIPE, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh).lower(state, steps[0]).compile()
    for batch in steps:
        state, metrics = step(state, batch)
        metrics = jax.tree.map(float, metrics)
        assert np.isfinite(list(metrics.values())).all() and 2 <= metrics["num_clusters"] <= 4
    names = []
    for name, before, student, teacher in leaves(start.student, state.student, state.teacher):
        assert np.abs(student - before).max() > 1e-3, name
        np.testing.assert_allclose(teacher - before, 0.1 * (student - before), rtol=0.05, atol=1e-6, err_msg=name)
        names.append(name)
    assert "register_tokens" in names and "block_1/scale_2" in names and "position_embedding" not in names
    assert state.student["backbone"]["register_tokens"].shape == (1, 3, 16)
    # Half of the outputs gate the other half.
    kernel = state.student["backbone"]["block_0"]["mlp_1"]["kernel"]
    assert kernel.shape == (16, 2 * 43) and kernel.addressable_data(0).shape == (16, 43)


def leaves(*trees):
    flat = [jax.tree_util.tree_leaves_with_path(jax.device_get(tree["backbone"])) for tree in trees]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat[0]]
    return zip(names, *([leaf for _, leaf in tree] for tree in flat), strict=True)

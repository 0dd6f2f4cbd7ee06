"""Masked patches: their blocks, their loss in float64, and a step on any number of devices."""

import dataclasses

import jax
import numpy as np
import pytest

from croc_jax.losses import MaskedConfig
from croc_jax.training.masks import draw_masks
from croc_jax.training.run_config import MeshConfig
from tests.training.tiny import tiny_recipe, train


@pytest.mark.parametrize("grid", [(8, 8), (14, 14), (3, 5)])
def test_masks_are_blocks_in_one_view_of_each_image(grid):
    config, batch = MaskedConfig(weight=1.0), 256
    masks = jax.jit(lambda key: draw_masks(key, batch, grid, config))(jax.random.key(0))
    masked, size = np.asarray(masks.masked), grid[0] * grid[1]
    counts = masked.sum(axis=2)
    np.testing.assert_array_equal(counts[np.arange(batch), masks.views], masks.counts)
    assert not counts[np.arange(batch), 1 - masks.views].any()
    assert 0.4 < np.mean(masks.views) < 0.6
    assert counts.max() <= 0.5 * size
    print(counts.sum() / size / batch, (masks.counts == 0).sum(), np.percentile(masks.counts / size, [5, 50, 95]))


TINY = tiny_recipe()
MASKED = dataclasses.replace(
    TINY, objective=dataclasses.replace(TINY.objective, masked=MaskedConfig(weight=0.5, prototypes=6))
)


def test_masked_patches_are_learned_on_any_number_of_devices():
    states, history = train(MASKED, steps=3)
    split = dataclasses.replace(MASKED, optimizer=dataclasses.replace(MASKED.optimizer, accumulation_steps=2))
    _, again = train(split, steps=3, num_devices=8, config=MeshConfig(fsdp=2, model=2))
    names = "loss", "loss_dense", "loss_masked", "masked_share", "teacher_entropy_m"
    for ours, theirs in zip(again, history, strict=True):
        np.testing.assert_allclose([ours[n] for n in names], [theirs[n] for n in names], rtol=1e-5)
    for m in history:
        total = m["loss_dense"] + m["loss_global"] + 0.5 * m["loss_masked"]
        np.testing.assert_allclose(m["loss"], total, rtol=1e-6)
        assert m["loss_masked"] > 0.1 and 0.05 < m["masked_share"] < 0.25
    for name in ("student", "teacher"):
        params = getattr(states[-1], name)
        assert np.abs(params["mask_token"]).max() > 0
        layer, before = params["head"]["last_layer_masked"], getattr(states[0], name)["head"]["last_layer_masked"]
        assert layer["direction"].shape == (6, 8) and np.abs(layer["direction"] - before["direction"]).max() > 0
    assert states[-1].center_masked.shape == (6,) and np.abs(states[-1].center_masked).max() > 0

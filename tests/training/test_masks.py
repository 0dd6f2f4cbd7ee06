"""Masks are blocks of the right sizes, in one view of each image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.losses import MaskedConfig, ObjectiveConfig
from croc_jax.models import BackboneConfig
from croc_jax.training.forward import make_networks
from croc_jax.training.masks import ATTEMPTS, _draw_blocks, draw_masks
from tests.training.tiny import tiny_recipe


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
    # Small grids leave little room for blocks; DINOv2's own masks fall short of their shares, too.
    shares = np.sort(masks.counts / size)
    assert abs(shares.mean() - 0.3) < (0.01 if size > 60 else 0.05)
    assert shares[batch // 20] < 0.15 and shares[-batch // 20] > 0.4
    places = np.asarray(masks.places)
    assert places.shape == (batch, size // 2)
    for image in range(batch):
        hidden = places[image, : masks.counts[image]]
        assert masked[image, masks.views[image], hidden].all() and len(set(places[image])) == size // 2


def blocks(draws, wanted, grid):
    """DINOv2's way, with given draws: blocks that add patches, but not too many, until ten in a row do not."""
    mask, failures, (rows, columns) = np.zeros(grid, bool), 0, grid
    for area, aspect, top, left in draws:
        remaining = wanted - mask.sum()
        area, aspect = 4 + area * (remaining - 4), np.exp(np.log(0.3) + aspect * (np.log(1 / 0.3) - np.log(0.3)))
        if failures == 10 or area < 0:
            break
        height, width = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        failures += 1
        if height < rows and width < columns:
            top, left = int(top * (rows - height + 1)), int(left * (columns - width + 1))
            more = mask.copy()
            more[top : top + height, left : left + width] = True
            if 0 < more.sum() - mask.sum() <= remaining:
                mask, failures = more, 0
    return mask


@pytest.mark.parametrize("grid", [(8, 8), (14, 10)])
def test_blocks_are_those_of_dinov2(grid):
    keys, wanted = jax.random.split(jax.random.key(1), 40), np.linspace(1, 0.5 * grid[0] * grid[1], 40).astype(int)
    found = jax.jit(jax.vmap(lambda key, count: _draw_blocks(key, count, grid)))(keys, jnp.asarray(wanted))
    for key, count, mask in zip(keys, wanted, np.asarray(found), strict=True):
        np.testing.assert_array_equal(mask, blocks(np.asarray(jax.random.uniform(key, (ATTEMPTS, 4))), count, grid))


def test_impossible_shares_are_named():
    with pytest.raises(ValueError, match=r"min_share=0.6, max_share=0.5: two shares between 0 and 1, in order"):
        MaskedConfig(min_share=0.6)
    with pytest.raises(ValueError, match="weight=-1.0: must be 0 or more"):
        MaskedConfig(weight=-1.0)
    with pytest.raises(ValueError, match="prototypes=0: must be 1 or more"):
        MaskedConfig(prototypes=0)
    resnet = BackboneConfig(variant="resnet_50", patch_size=8, drop_path_rate=0.0)
    recipe = tiny_recipe(backbone=resnet, objective=ObjectiveConfig(tokens="last", masked=MaskedConfig(weight=1.0)))
    with pytest.raises(ValueError, match=r"objective.masked.weight=1.0: transformers alone .* resnet_50"):
        make_networks(recipe)

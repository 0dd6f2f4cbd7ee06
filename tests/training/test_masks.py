"""Masks are blocks of the right sizes, in one view of each image."""

import jax
import numpy as np
import pytest

from croc_jax.losses import GramConfig, MaskedConfig, ObjectiveConfig
from croc_jax.models import BackboneConfig
from croc_jax.training.forward import make_networks
from croc_jax.training.masks import draw_masks
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


def test_blocks_of_one_mask_are_rectangles():
    masks = draw_masks(jax.random.key(1), 64, (8, 8), MaskedConfig(weight=1.0, min_share=0.1, max_share=0.12))
    grids = np.asarray(masks.masked).any(axis=1).reshape(64, 8, 8)
    # Shares of 6 or 7 patches take one block of at least 4 and, where it is smaller, another.
    for grid in grids[np.asarray(masks.counts) == 6]:
        rows, columns = grid.any(axis=1).sum(), grid.any(axis=0).sum()
        assert grid.sum() == 6 and rows * columns >= 6
    again = draw_masks(jax.random.key(1), 64, (8, 8), MaskedConfig(weight=1.0, min_share=0.1, max_share=0.12))
    np.testing.assert_array_equal(masks.masked, again.masked)


def test_impossible_shares_are_named():
    with pytest.raises(ValueError, match=r"min_share=0.6, max_share=0.5: two shares between 0 and 1, in order"):
        MaskedConfig(min_share=0.6)
    with pytest.raises(ValueError, match="weight=-1.0: must be 0 or more"):
        MaskedConfig(weight=-1.0)
    with pytest.raises(ValueError, match="prototypes=0: must be 1 or more"):
        MaskedConfig(prototypes=0)
    with pytest.raises(ValueError, match="anchor='ema': choose 'teacher' or 'start'"):
        GramConfig(anchor="ema")
    resnet = BackboneConfig(variant="resnet_50", patch_size=8, drop_path_rate=0.0)
    recipe = tiny_recipe(backbone=resnet, objective=ObjectiveConfig(tokens="last", masked=MaskedConfig(weight=1.0)))
    with pytest.raises(ValueError, match=r"objective.masked.weight=1.0: transformers alone .* resnet_50"):
        make_networks(recipe)

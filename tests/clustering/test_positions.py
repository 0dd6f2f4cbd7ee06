"""Patch centers against the mean of each patch's pixel coordinates."""

import numpy as np
import pytest

from croc_jax.clustering import patch_positions


def positions_by_pixel(box, grid, patch_size):
    """Places every pixel of the resized crop, then averages over patches."""
    top, left, height, width, flip = box
    rows, columns = grid[0] * patch_size, grid[1] * patch_size
    x = left + (np.arange(columns) + 0.5) * width / columns - 0.5
    y = top + (np.arange(rows) + 0.5) * height / rows - 0.5
    x = x[::-1] if flip else x
    xy = np.stack(np.meshgrid(x, y), axis=-1)
    return xy.reshape(grid[0], patch_size, grid[1], patch_size, 2).mean((1, 3)).reshape(-1, 2)


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("grid", [(3, 3), (2, 5)])
def test_positions_are_the_patches_mean_pixel(flip, grid):
    box = np.array([12.0, 30.0, 100.0, 150.0, flip])
    np.testing.assert_allclose(patch_positions(box, grid), positions_by_pixel(box, grid, 8), atol=1e-4)


def test_leading_axes_are_kept():
    boxes = np.random.default_rng(0).uniform(1, 9, (2, 4, 5))
    positions = patch_positions(boxes, (3, 2))
    assert positions.shape == (2, 4, 6, 2)
    np.testing.assert_allclose(positions[1, 2], patch_positions(boxes[1, 2], (3, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    ("boxes", "grid", "message"),
    [
        (np.ones((2, 4)), (3, 3), r"boxes \(2, 4\): expected \(top, left, height, width, flip\)"),
        (np.float32(1), (3, 3), r"boxes \(\): expected"),
        (np.full((2, 5), np.nan), (3, 3), "boxes: expected finite numbers"),
        (np.ones((2, 5)), 3, "grid=3: expected rows and columns"),
        (np.ones((2, 5)), (3, 0), r"grid=\(3, 0\): expected rows and columns"),
    ],
)
def test_what_does_not_fit_is_named(boxes, grid, message):
    with pytest.raises(ValueError, match=message):
        patch_positions(boxes, grid)

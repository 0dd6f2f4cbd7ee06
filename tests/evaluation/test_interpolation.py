"""The matrices resize as JAX and NumPy do."""

import jax
import numpy as np
import pytest

from croc_jax.evaluation.interpolation import bilinear_matrix, resize_with

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("grid", "size"), [((5, 7), (20, 28)), ((5, 7), (33, 50)), ((6, 4), (6, 4)), ((1, 3), (4, 5))])
def test_enlarging_equals_jax(grid, size):
    values = RNG.standard_normal((2, *grid, 3), np.float32)
    found = resize_with(bilinear_matrix(grid[0], size[0]), bilinear_matrix(grid[1], size[1]), values)
    np.testing.assert_allclose(found, jax.image.resize(values, (2, *size, 3), "bilinear"), atol=2e-6)


@pytest.mark.parametrize(("old", "new"), [(9, 4), (4, 9), (5, 1), (1, 6)])
def test_each_row_interpolates_between_pixel_centers(old, new):
    values = RNG.standard_normal(old)
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    expected = np.interp(centers, np.arange(old), values)
    np.testing.assert_allclose(bilinear_matrix(old, new) @ values, expected, atol=1e-6)


def test_padding_adds_rows_of_zeros():
    padded = bilinear_matrix(5, 7, 12)
    np.testing.assert_array_equal(padded[:7], bilinear_matrix(5, 7))
    assert padded.shape == (12, 5) and not padded[7:].any()

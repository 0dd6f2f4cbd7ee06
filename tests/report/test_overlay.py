"""Tints, hatches and borders of clusters drawn over an image."""

import matplotlib.colors
import numpy as np
import pytest

from croc_jax.report.overlay import SIDE, enlarge, overlay
from croc_jax.report.style import CLUSTER_COLORS, cluster_color


def flat(value, size=(20, 20)):
    return np.full((*size, 3), value, np.uint8)


def lightened(value):
    """What a gray value becomes, for dark photos to show the colors too: 0 is 60 and 255 stays."""
    return 60 + value * 195 / 255


@pytest.mark.parametrize("size", [(30, 40), (40, 30), (9, 9)])
@pytest.mark.parametrize(("grid", "opacity"), [((2, 2), 0.6), ((3, 5), 0.25), ((5, 3), 0.6)])
def test_each_patch_has_the_color_of_its_cluster(size, grid, opacity):
    picture = overlay(flat(100, size), np.arange(grid[0] * grid[1]), grid, opacity=opacity)
    assert picture.dtype == np.uint8 and max(picture.shape) == SIDE
    assert picture.shape[0] / picture.shape[1] == pytest.approx(size[0] / size[1])
    for cluster in range(grid[0] * grid[1]):
        row, column = divmod(cluster, grid[1])
        place = tuple(int((i + 0.5) * n / g) for i, n, g in zip((row, column), picture.shape, grid, strict=False))
        expected = (1 - opacity) * lightened(100) + opacity * 255 * cluster_color(cluster)
        np.testing.assert_allclose(picture[place], expected, atol=0.51)


def test_photos_contribute_their_brightness_alone():
    image = np.zeros((8, 8, 3), np.uint8)
    image[..., 0] = 200
    picture = overlay(image, np.zeros(4, int), (2, 2), opacity=0.0)
    np.testing.assert_allclose(picture, lightened(0.299 * 200), atol=0.51)


def test_invalid_clusters_are_hatched_in_gray_and_valid_ones_keep_their_tint():
    labels, valid = np.array([0, 1]), np.array([True, False, True])
    picture = overlay(flat(100), labels, (1, 2), valid=valid).astype(int)
    np.testing.assert_array_equal(picture[:, : SIDE // 2], overlay(flat(100), labels, (1, 2))[:, : SIDE // 2])
    gray = picture[:, SIDE // 2 + 1 :]
    np.testing.assert_array_equal(gray, gray[..., :1].repeat(3, -1))
    values, counts = np.unique(gray[..., 0], return_counts=True)
    np.testing.assert_allclose(values, [0.75 * lightened(100), lightened(100)], atol=0.51)
    assert counts.min() > 0.4 * counts.sum()
    # The stripes are slanted: along a diagonal nothing changes.
    np.testing.assert_array_equal(gray[:-1, 1:], gray[1:, :-1])


def test_white_lines_lie_exactly_where_the_cluster_changes():
    labels = np.array([[0, 0, 1, 1, 1, 2, 2], [0, 3, 3, 1, 1, 1, 0]])
    picture = overlay(flat(90), labels.ravel(), (2, 7))
    full = np.kron(labels, np.ones((SIDE // 2, SIDE // 7), int))
    expected = np.zeros((SIDE, SIDE), bool)
    expected[1:] |= full[1:] != full[:-1]
    expected[:, 1:] |= full[:, 1:] != full[:, :-1]
    np.testing.assert_array_equal((picture == 255).all(-1), expected)


def test_enlarged_images_keep_their_content():
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, 10:] = (10, 120, 250)
    large = enlarge(image)
    assert large.shape == (SIDE // 2, SIDE, 3) and large.dtype == np.uint8
    assert (large[:, : SIDE // 2 - 20] == 0).all() and (large[:, SIDE // 2 + 20 :] == (10, 120, 250)).all()
    assert enlarge(flat(90, (1, 900))).shape == (1, SIDE, 3)


def test_colors_are_distinct_never_gray_and_repeat_after_the_last():
    colors = np.array([matplotlib.colors.to_rgb(color) for color in CLUSTER_COLORS])
    assert len(np.unique(colors, axis=0)) == len(CLUSTER_COLORS)
    assert np.ptp(colors, axis=1).min() > 0.2
    np.testing.assert_array_equal(cluster_color(len(CLUSTER_COLORS) + 3), colors[3])

"""Tints, hatches and borders of clusters drawn over an image."""

import matplotlib.colors
import numpy as np
import pytest

from croc_jax.report.overlay import SIDE, enlarge, overlay
from croc_jax.report.style import CLUSTER_COLORS, cluster_color

WHITE = 255


def flat(value, size=(20, 20)):
    return np.full((*size, 3), value, np.uint8)


def color_of(index):
    return 255 * np.array(matplotlib.colors.to_rgb(CLUSTER_COLORS[index]))


def lightened(value):
    """What a gray value becomes, for dark photos to show the colors too: 0 is 60 and 255 stays."""
    return 60 + value * 195 / 255


@pytest.mark.parametrize("opacity", [0.6, 0.25])
@pytest.mark.parametrize("value", [0, 100, 255])
def test_each_patch_has_the_color_of_its_cluster(value, opacity):
    picture = overlay(flat(value), np.array([0, 1, 2, 3]), (2, 2), opacity=opacity)
    assert picture.shape == (SIDE, SIDE, 3) and picture.dtype == np.uint8
    half, middle = SIDE // 2, SIDE // 4
    for cluster, (row, column) in enumerate([(0, 0), (0, half), (half, 0), (half, half)]):
        expected = (1 - opacity) * lightened(value) + opacity * color_of(cluster)
        np.testing.assert_allclose(picture[row + middle, column + middle], expected, atol=0.51)


def test_photos_lend_their_brightness_alone():
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
    light = lightened(100)
    values, counts = np.unique(gray[..., 0], return_counts=True)
    np.testing.assert_allclose(values, [0.75 * light, light], atol=0.51)
    assert counts.min() > 0.4 * counts.sum()
    # The stripes are slanted: along a diagonal nothing changes.
    np.testing.assert_array_equal(gray[:-1, 1:], gray[1:, :-1])


def test_white_lines_lie_exactly_where_the_cluster_changes():
    grid = (2, 7)
    labels = np.array([[0, 0, 1, 1, 1, 2, 2], [0, 3, 3, 1, 1, 1, 0]])
    picture = overlay(flat(90), labels.ravel(), grid)
    patch_rows, patch_columns = SIDE // 2, SIDE // 7
    expected = np.zeros((SIDE, SIDE), bool)
    for row in range(SIDE):
        for column in range(SIDE):
            here = labels[row // patch_rows, column // patch_columns]
            above = labels[max(row - 1, 0) // patch_rows, column // patch_columns]
            left = labels[row // patch_rows, max(column - 1, 0) // patch_columns]
            expected[row, column] = here != above or here != left
    assert 0 < expected.sum() < SIDE * 10
    np.testing.assert_array_equal((picture == WHITE).all(-1), expected)


@pytest.mark.parametrize("grid", [(3, 5), (5, 3), (1, 9)])
def test_grids_that_do_not_divide_the_picture(grid):
    labels = np.arange(grid[0] * grid[1])
    picture = overlay(flat(120), labels, grid)
    assert picture.shape == (SIDE, SIDE, 3)
    for cluster in labels:
        row, column = divmod(cluster, grid[1])
        center = int((row + 0.5) * SIDE / grid[0]), int((column + 0.5) * SIDE / grid[1])
        expected = 0.4 * lightened(120) + 0.6 * 255 * cluster_color(cluster)
        np.testing.assert_allclose(picture[center], expected, atol=0.51)


def test_one_cluster_has_no_borders():
    picture = overlay(flat(90), np.full(6, 2), (2, 3))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1 and picture.max() < WHITE


@pytest.mark.parametrize(
    ("size", "expected"), [((30, 40), (168, 224)), ((40, 30), (224, 168)), ((9, 9), (224, 224)), ((1, 900), (1, 224))]
)
def test_pictures_keep_the_aspect_of_their_images(size, expected):
    assert enlarge(flat(90, size)).shape == (*expected, 3)
    picture = overlay(flat(90, size), np.arange(6), (2, 3))
    assert picture.shape == (*expected, 3)
    if min(expected) > 6:
        rows, columns = expected
        for cluster in range(6):
            row, column = divmod(cluster, 3)
            inside = picture[int((row + 0.5) * rows / 2), int((column + 0.5) * columns / 3)]
            np.testing.assert_allclose(inside, 0.4 * lightened(90) + 0.6 * color_of(cluster), atol=0.51)


def test_enlarged_images_keep_their_content():
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, 10:] = (10, 120, 250)
    large = enlarge(image)
    assert large.shape == (SIDE // 2, SIDE, 3) and large.dtype == np.uint8
    assert (large[:, : SIDE // 2 - 20] == 0).all() and (large[:, SIDE // 2 + 20 :] == (10, 120, 250)).all()


def test_colors_are_distinct_never_gray_and_come_again_after_the_last():
    colors = np.array([cluster_color(index) for index in range(len(CLUSTER_COLORS))])
    assert len(np.unique(colors, axis=0)) == len(CLUSTER_COLORS)
    assert np.ptp(colors, axis=1).min() > 0.2
    np.testing.assert_array_equal(cluster_color(len(CLUSTER_COLORS) + 3), colors[3])

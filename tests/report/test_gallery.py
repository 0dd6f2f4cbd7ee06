"""Pictures of features: components, and objects of a video."""

import numpy as np
import pytest

from croc_jax.evaluation.visualize import tint_objects
from croc_jax.report.gallery import component_colors, plot_components, plot_video


def test_components_are_those_of_the_largest_variance():
    rng = np.random.default_rng(0)
    scores = rng.uniform(-1, 1, (2, 50, 3)) * (5, 3, 1.5)
    basis = np.linalg.qr(rng.standard_normal((8, 3)))[0].T
    colors = component_colors(scores @ basis + 0.01 * rng.standard_normal((2, 50, 8)) + 7)
    assert colors.shape == (2, 50, 3) and colors.min() == 0 and colors.max() == 255
    flat = np.abs(np.corrcoef(colors.reshape(-1, 3).T, scores.reshape(-1, 3).T)[:3, 3:])
    assert (np.diag(flat) > 0.95).all()


def test_colors_do_not_depend_on_the_sign_of_an_axis():
    features = np.random.default_rng(1).standard_normal((1, 30, 6))
    turned = component_colors(features[:, ::-1])
    np.testing.assert_array_equal(turned[:, ::-1], component_colors(features))


def test_features_that_have_no_components():
    for features in (np.zeros((1, 4, 2)), np.full((1, 4, 3), np.nan)):
        with pytest.raises(ValueError, match="features"):
            component_colors(features)


def test_a_picture_has_each_image_above_its_components():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 8, 12, 3)).astype(np.uint8)
    figure = plot_components(images, rng.standard_normal((3, 6, 5)), (2, 3))
    assert len(figure.axes) == 6
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), images[1])
    with pytest.raises(ValueError, match=r"expected \[3 8 d\]"):
        plot_components(images, rng.standard_normal((3, 6, 5)), (2, 4))


def test_objects_are_tinted_and_outlined_and_nothing_else():
    image = np.full((8, 8, 3), 100, np.uint8)
    ids = np.zeros((8, 8), np.uint8)
    ids[2:7, 2:7] = 2
    tinted = tint_objects(image, ids)
    np.testing.assert_array_equal(tinted[0], image[0])
    assert (tinted[2, 2:7] == 255).all() and (tinted[1, 2:7] == 255).all()
    assert len(np.unique(tinted[4, 4])) > 1


def test_a_strip_spreads_over_the_video():
    frames = [np.full((4, 6, 3), 10 * number, np.uint8) for number in range(9)]
    figure = plot_video(frames, [np.zeros((4, 6), np.uint8)] * 9, num_shown=3)
    assert [axes.get_title() for axes in figure.axes] == ["frame 1: given", "frame 5", "frame 9"]
    assert [int(axes.images[0].get_array()[0, 0, 0]) for axes in figure.axes] == [0, 40, 80]
    figure.draw_without_rendering()
    assert all(axes.get_tightbbox().y1 <= figure.bbox.y1 - 2 for axes in figure.axes)

"""J, F and their statistics, by hand."""

import numpy as np
import pytest

from croc_jax.evaluation.davis_metrics import boundary_accuracy, find_boundary, region_similarity, summarize


def box(top, left, bottom, right, shape=(40, 30)):
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_region_similarity_counts_pixels():
    assert region_similarity(box(0, 0, 10, 10), box(0, 5, 10, 15)) == pytest.approx(50 / 150)
    empty = np.zeros((40, 30), bool)
    assert (region_similarity(empty, empty), region_similarity(empty, box(0, 0, 2, 2))) == (1, 0)


def test_boundaries_match_within_the_tolerance():
    # 0.008 of a diagonal of 50 is less than a pixel, which is rounded up to one.
    assert boundary_accuracy(box(5, 5, 20, 20), box(5, 5, 20, 20)) == 1
    assert boundary_accuracy(box(5, 5, 20, 20), box(6, 5, 21, 20)) > 0.9
    assert boundary_accuracy(box(5, 5, 20, 20), box(9, 9, 16, 16)) == 0
    assert boundary_accuracy(box(5, 5, 20, 20), box(7, 7, 18, 18), tolerance=0.05) == 1
    empty = np.zeros((40, 30), bool)
    assert boundary_accuracy(empty, empty) == 1
    assert boundary_accuracy(empty, box(5, 5, 9, 9)) == boundary_accuracy(box(5, 5, 9, 9), empty) == 0


def test_the_boundary_lies_left_and_above_the_change():
    boundary = find_boundary(box(2, 2, 4, 4, (6, 6)))
    expected = np.zeros((6, 6), bool)
    expected[1, 1:4] = expected[1:4, 1] = True
    expected[3, 1:4] = expected[1:4, 3] = True
    np.testing.assert_array_equal(boundary, expected)


def test_statistics_of_an_object():
    found = summarize(np.array([1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.5, 0.7]))
    # Quarters end at frames 0, 2, 4, 5 and 7 (half a frame is rounded up).
    decay = np.mean([1.0, 0.8, 0.6]) - np.mean([0.0, 0.5, 0.7])
    assert found == pytest.approx({"mean": 4.2 / 8, "recall": 4 / 8, "decay": decay})
    assert summarize(np.array([0.3])) == pytest.approx({"mean": 0.3, "recall": 0, "decay": 0})

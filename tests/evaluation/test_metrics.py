"""Metrics equal scikit-learn's and exhaustive search."""

import itertools

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from croc_jax.evaluation.metrics import class_iou, confusion_matrix, iou_scores, match_clusters, mean_iou

RNG = np.random.default_rng(0)


def test_confusion_and_iou_equal_scikit_learn():
    labels, predictions = RNG.integers(0, 5, (2, 7, 30, 20))
    confusion = confusion_matrix(labels, predictions, num_classes=5)
    pair = labels.ravel(), predictions.ravel()
    np.testing.assert_array_equal(confusion, sklearn_metrics.confusion_matrix(*pair))
    expected = sklearn_metrics.jaccard_score(*pair, average=None)
    np.testing.assert_allclose(class_iou(confusion), expected, atol=1e-15)
    assert mean_iou(confusion) == pytest.approx(sklearn_metrics.jaccard_score(*pair, average="macro"))


def test_ignored_pixels_count_nowhere():
    labels, predictions = np.array([0, 1, 255, 255], np.uint8), np.array([0, 0, 1, 2], np.uint8)
    found = confusion_matrix(labels, predictions, num_classes=3)
    np.testing.assert_array_equal(found, [[1, 0, 0], [1, 0, 0], [0, 0, 0]])


def test_classes_that_never_occur_are_left_out_of_the_mean():
    confusion = confusion_matrix(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 3]), num_classes=4)
    np.testing.assert_array_equal(class_iou(confusion), [1, 0.5, np.nan, 0])
    assert mean_iou(confusion) == 0.5
    assert np.isnan(mean_iou(np.zeros((3, 3), int)))


def test_ids_outside_the_classes_are_refused():
    with pytest.raises(ValueError, match="label 3 lies outside the 3 classes"):
        confusion_matrix(np.array([0, 3]), np.array([0, 0]), num_classes=3)
    with pytest.raises(ValueError, match="prediction 255 lies outside the 3 classes"):
        confusion_matrix(np.array([0, 1]), np.array([255, 0]), num_classes=3)


def test_matching_is_the_best_of_all_permutations():
    for _ in range(20):
        confusion = RNG.integers(0, 50, (4, 4))
        best = max(mean_iou(confusion[:, list(order)]) for order in itertools.permutations(range(4)))
        matching = match_clusters(confusion)
        assert sorted(matching.clusters) == [0, 1, 2, 3]
        assert matching.miou == pytest.approx(best, abs=1e-15)
        np.testing.assert_allclose(matching.class_iou, class_iou(confusion[:, matching.clusters]), atol=1e-15)


def test_matching_undoes_a_permutation_of_perfect_clusters():
    labels = RNG.integers(0, 6, 500)
    order = RNG.permutation(6)
    matching = match_clusters(confusion_matrix(labels, order[labels], num_classes=6))
    np.testing.assert_array_equal(matching.clusters, order)
    assert matching.miou == 1


def test_scores_say_how_many_classes_occur():
    scores = iou_scores(np.array([[3, 0, 0, 1], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]), "abcd")
    assert [scores[f"num_{name}"] for name in ("classes", "classes_in_labels", "classes_predicted")] == [4, 2, 3]
    assert scores["class_iou"] == {"a": 75, "b": 100, "c": None, "d": 0} and scores["miou"] == pytest.approx(175 / 3)


@pytest.mark.parametrize(("pixels", "held"), [((9, 0), "only b"), ((4, 5), "only b"), ((0, 0), "none")])
def test_labels_of_one_class_have_no_score(pixels, held):
    with pytest.raises(ValueError, match=f"of 3 classes the labels that are scored hold {held}: with fewer than two"):
        iou_scores(np.array([[0, 0, 0], [*pixels, 0], [0, 0, 0]]), "abc")

"""Clusters are given to classes and scored, as counted by hand; bands of one color are found without labels."""

import numpy as np
import pytest

from croc_jax.data.labeled.segmentation import open_segmentation
from croc_jax.evaluation.features import FrozenFeatures, MemoryBudget
from croc_jax.evaluation.unsupervised import UnsupervisedProtocol, evaluate_unsupervised, name_clusters

PROTOCOL = UnsupervisedProtocol(image_size=(24, 36), label_size=(24, 36), seeds=(0, 1, 2))


def test_bands_are_found_without_labels(folder, backbone, params):
    val = open_segmentation(folder, "val")
    features = FrozenFeatures(backbone, params, budget=MemoryBudget(batch_size=2))
    score = evaluate_unsupervised(features, val=val, protocol=PROTOCOL)
    assert score.miou > 85 and score.miou == pytest.approx(score.seed_miou.mean())
    assert score.miou_deviation == pytest.approx(np.std(score.seed_miou, ddof=1))
    assert score.seed_miou[0] == pytest.approx(np.nanmean(score.class_iou))
    assert len(score.gallery.typical) == len(score.gallery.best) == len(score.gallery.worst) == 5
    again = evaluate_unsupervised(features, val=val, protocol=PROTOCOL)
    np.testing.assert_allclose(again.seed_miou, score.seed_miou, atol=0.1)
    over = UnsupervisedProtocol(
        image_size=(24, 36), label_size=(24, 36), num_clusters=20, matching="greedy", l2_normalize=True, seeds=(0,)
    )
    many = evaluate_unsupervised(features, val=val, protocol=over)
    assert many.miou > 85 and np.isnan(many.miou_deviation)


def test_hungarian_and_greedy_matching_by_hand():
    labels = np.array([[[0, 0, 0, 0, 1, 1, 2, 255]]], np.uint8)
    maps = np.array([[[3, 3, 1, 1, 1, 1, 0, 2]]])
    one_to_one = UnsupervisedProtocol(num_clusters=4)
    classes, iou = name_clusters(maps, labels, 3, one_to_one)
    # Cluster 3 covers half of class 0; cluster 1 is half of class 1, and a half of class 0.
    np.testing.assert_array_equal(classes, [2, 1, -1, 0])
    np.testing.assert_allclose(iou, [2 / 4, 2 / 4, 1])
    classes, iou = name_clusters(maps, labels, 3, UnsupervisedProtocol(num_clusters=4, matching="greedy"))
    # The tie of cluster 1 goes to class 0, which then holds all of its own pixels and two of class 1.
    assert classes[1] == classes[3] == 0 and classes[0] == 2
    np.testing.assert_allclose(iou, [4 / 6, 0, 1])


def test_clusters_grow_to_the_size_of_labels():
    labels = np.repeat(np.repeat(np.array([[[0, 1], [2, 0]]], np.uint8), 3, axis=1), 5, axis=2)
    _, iou = name_clusters(np.array([[[1, 0], [2, 1]]]), labels, 3, UnsupervisedProtocol())
    np.testing.assert_allclose(iou, [1, 1, 1])


def test_impossible_settings_are_named(folder, backbone, params):
    with pytest.raises(ValueError, match="matching='best'"):
        UnsupervisedProtocol(matching="best")
    with pytest.raises(ValueError, match="seeds="):
        UnsupervisedProtocol(seeds=())
    few = UnsupervisedProtocol(image_size=(24, 36), num_clusters=2)
    with pytest.raises(ValueError, match="num_clusters=2: one-to-one matching needs one for each of 3 classes"):
        evaluate_unsupervised(FrozenFeatures(backbone, params), val=open_segmentation(folder, "val"), protocol=few)

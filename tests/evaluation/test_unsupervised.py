"""Clusters are assigned to classes and scored, as counted by hand."""

import numpy as np
import pytest

from croc_jax.evaluation.features import FrozenFeatures, MemoryBudget
from croc_jax.evaluation.unsupervised import name_clusters
from tests.evaluation.conftest import score

SIZES = {"unsupervised__image_size": (24, 36), "unsupervised__label_size": (24, 36)}


def test_scores_are_means_over_seeds(folder, backbone, params):
    features = FrozenFeatures(backbone, params, budget=MemoryBudget(batch_size=2))
    common = {"dataset__root": folder, **SIZES}
    scores = score("unsupervised", features, **common, unsupervised__seeds=(0, 1, 2))[0].scores
    assert scores["miou"] > 85 and scores["miou"] == pytest.approx(np.mean(scores["seed_miou"]))
    assert scores["miou_deviation"] == pytest.approx(np.std(scores["seed_miou"], ddof=1))
    assert scores["seed_miou"][0] == pytest.approx(np.mean(list(scores["class_iou"].values())))
    over = {"num_clusters": 20, "matching": "greedy", "l2_normalize": True, "seeds": (0,)}
    over = {f"unsupervised__{name}": value for name, value in over.items()}
    scores = score("unsupervised", features, **common, **over)[0].scores
    assert scores["miou"] > 85 and scores["miou_deviation"] is None
    with pytest.raises(ValueError, match="num_clusters=2: one-to-one matching needs one for each of 3 classes"):
        score("unsupervised", features, **common, unsupervised__num_clusters=2)


def test_hungarian_and_greedy_matching_by_hand():
    labels = np.array([[[0, 0, 0, 0, 1, 1, 2, 255]]], np.uint8)
    maps = np.array([[[3, 3, 1, 1, 1, 1, 0, 2]]])
    classes, iou = name_clusters(maps, labels, 4, "hungarian", 3)
    # Cluster 3 covers half of class 0; cluster 1 is half of class 1, and a half of class 0.
    np.testing.assert_array_equal(classes, [2, 1, -1, 0])
    np.testing.assert_allclose(iou, [2 / 4, 2 / 4, 1])
    classes, iou = name_clusters(maps, labels, 4, "greedy", 3)
    # The tie of cluster 1 goes to class 0, which then has all of its own pixels and two of class 1.
    assert classes[1] == classes[3] == 0 and classes[0] == 2
    np.testing.assert_allclose(iou, [4 / 6, 0, 1])


def test_clusters_are_resized_to_the_labels():
    labels = np.repeat(np.repeat(np.array([[[0, 1], [2, 0]]], np.uint8), 3, axis=1), 5, axis=2)
    _, iou = name_clusters(np.array([[[1, 0], [2, 1]]]), labels, 3, "hungarian", 3)
    np.testing.assert_allclose(iou, [1, 1, 1])

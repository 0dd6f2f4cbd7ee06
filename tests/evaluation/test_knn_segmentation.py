"""k-NN segmentation against scikit-learn and SciPy in float64."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import mode
from sklearn.metrics import jaccard_score
from sklearn.preprocessing import StandardScaler

from croc_jax.evaluation.datasets import open_pixel_splits
from croc_jax.evaluation.features import FrozenFeatures
from croc_jax.evaluation.knn_segmentation import (
    KnnSegmentationConfig,
    draw_selection,
    evaluate,
    majority,
    make_metric,
)
from croc_jax.evaluation.patch_memory import cut_patches, join_patches

CONFIG = KnnSegmentationConfig(image_size=(24, 36), neighbors=(1, 4), validation_share=0.25)


@pytest.fixture(scope="module")
def dataset(folder):
    return open_pixel_splits(root=folder, train_split="train", val_split="val")


@pytest.fixture(scope="module")
def features(backbone, params):
    return FrozenFeatures(backbone, params, remember=True)


def read_patches(features, split):
    """Returns tokens in float64, and the ids of the pixels of each patch, ignored ones as class 3."""
    tokens, ids = features.collect_tokens(split, image_size=(24, 36), label_size=(24, 36))
    patches = np.concatenate([cut_patches(one, (6, 9)) for one in ids])
    return tokens.reshape(-1, tokens.shape[-1]).astype(float), np.where(patches == 255, 3, patches)


def reference(fitted, asked, count, distance):
    """Returns predictions of the patches, and their mean IoU."""
    votes = mode(fitted[1], axis=1).mode != 3
    distances = cdist(asked[0], fitted[0][votes], {"cosine": "cosine", "l2": "euclidean"}[distance])
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :count]
    predicted = mode(fitted[1][votes][nearest], axis=1).mode
    counted = asked[1] != 3
    return jaccard_score(asked[1][counted], predicted[counted], average="macro")


@pytest.mark.parametrize("standardize", [True, False])
def test_scores_equal_those_of_scikit_learn(features, dataset, standardize):
    config = dataclasses.replace(CONFIG, standardize=standardize)
    result = evaluate(features, dataset, config)
    rest, chosen = (read_patches(features, split) for split in draw_selection(dataset.train, config))
    val = read_patches(features, dataset.val)
    if standardize:
        scaler = StandardScaler().fit(rest[0])
        rest, chosen, val = ((scaler.transform(tokens), ids) for tokens, ids in (rest, chosen, val))
    grid = {choice: reference(rest, chosen, *choice) for choice in config.choices}
    found = {name: value / 100 for name, value in result.scores["selection_miou"].items()}
    assert found == pytest.approx({f"{distance} {count}": miou for (count, distance), miou in grid.items()}, abs=2e-3)
    best = max(grid, key=lambda choice: grid[choice])
    assert (result.scores["num_neighbors"], result.scores["distance"]) == best
    everything = tuple(map(np.concatenate, zip(rest, chosen, strict=True)))
    assert result.scores["miou"] / 100 == pytest.approx(reference(everything, val, *best), abs=2e-3)
    assert result.settings == {"memory_patches": 9 * 54}


def test_one_choice_sets_no_image_aside(features, dataset):
    config = dataclasses.replace(CONFIG, neighbors=(3,), distances=("l2",), validation_share=0.0)
    rest, chosen = draw_selection(dataset.train, config)
    assert len(rest) == 9 and not len(chosen)
    scores = evaluate(features, dataset, config).scores
    assert scores["num_neighbors"] == 3 and "selection_miou" not in scores
    with pytest.raises(ValueError, match="validation_share=0.1: no image of 9 to choose"):
        draw_selection(dataset.train, KnnSegmentationConfig())
    with pytest.raises(ValueError, match="more than the 4.. labeled patches"):
        evaluate(features, dataset, dataclasses.replace(config, neighbors=(5000,)))


def test_of_equally_frequent_classes_the_lowest_wins():
    ids = np.array([[[2, 1, 1, 2], [0, 3, 3, 1]]], np.uint8)
    np.testing.assert_array_equal(majority(ids, num_classes=4), [[1, 3]])


def test_metrics_order_as_their_distances():
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(2, 3, (50, 6)).astype(np.float16), rng.normal(2, 3, (8, 6)).astype(np.float16)
    scaler = StandardScaler().fit(bank.astype(float))
    mean, scale = (jnp.asarray(of, jnp.float32) for of in (scaler.mean_, 1 / scaler.scale_))
    votes = np.arange(50) % 5 > 0
    for distance, name in (("cosine", "cosine"), ("l2", "euclidean")):
        metric = make_metric(distance, mean, scale)
        products = np.asarray(metric.embed_queries(queries)) @ np.asarray(metric.embed_bank(bank, votes)).T
        expected = cdist(*(scaler.transform(of.astype(float)) for of in (queries, bank)), name)
        expected[:, ~votes] = np.inf
        np.testing.assert_array_equal(np.argsort(-products, axis=1)[:, :40], np.argsort(expected, axis=1)[:, :40])


def test_patches_of_an_image_are_joined_where_they_were_cut():
    ids = np.random.default_rng(0).integers(0, 9, (12, 20), np.uint8)
    patches = cut_patches(ids, (3, 4))
    np.testing.assert_array_equal(patches[5], ids[4:8, 5:10].ravel())
    np.testing.assert_array_equal(join_patches(patches, (12, 20), (3, 4)), ids)

"""Dense retrieval, whole and in parts, against NumPy in float64 on small sets."""

import dataclasses

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import softmax

from croc_jax.data.labeled.segmentation import open_segmentation
from croc_jax.evaluation import retrieval, search
from croc_jax.evaluation.datasets import open_pixel_splits
from croc_jax.evaluation.features import FrozenFeatures, MemoryBudget
from croc_jax.evaluation.interpolation import bilinear_matrix
from croc_jax.evaluation.patch_memory import count_pixels
from croc_jax.evaluation.registry import get_protocol
from croc_jax.evaluation.retrieval import RetrievalConfig, build_retrieval_memory, draw_patches, fit_config, vote
from tests.evaluation.conftest import read_config

CONFIG = RetrievalConfig(image_size=(24, 36), memory_size=300, num_neighbors=5)
GRID = (6, 9)


@pytest.fixture(scope="module")
def dataset(folder):
    return open_pixel_splits(root=folder, train_split="train", val_split="val")


@pytest.fixture(scope="module")
def features(backbone, params):
    return FrozenFeatures(backbone, params, remember=True)


def test_vote_weighs_the_shares_of_counted_pixels():
    rng = np.random.default_rng(0)
    similarities, counts = rng.uniform(-1, 1, (7, 5)), rng.integers(0, 40, (7, 5, 3)).astype(np.uint16)
    counts[0, 0] = 0
    shares = counts / np.maximum(counts.sum(axis=2, keepdims=True), 1)
    expected = np.einsum("qn,qnk->qk", softmax(similarities / 0.1, axis=1), shares)
    found = vote(similarities.astype(np.float32), counts, temperature=0.1)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def reference_iou(features, dataset, ignored, temperature):
    """Returns the IoU of each class, NaN for none, with all patches in memory and labels scored at their own size."""
    width = 3 + (ignored in ("own", "scored"))

    def batches(split, label_size):
        for tokens, labels in features.token_batches(split, image_size=(24, 36), label_size=label_size):
            for one, ids in zip(np.asarray(tokens, np.float64), labels, strict=False):
                yield (one / np.linalg.norm(one, axis=-1, keepdims=True)).reshape(-1, one.shape[-1]), ids.astype(int)

    bank, shares = [], []
    for tokens, ids in batches(dataset.train, (24, 36)):
        if ignored != "left_out":
            ids[ids == 255] = 0 if ignored == "first" else 3
        for place, token in enumerate(tokens):
            row, column = divmod(place, 9)
            patch = ids[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            pixels = patch[patch != 255]
            if pixels.size:
                bank.append(token)
                shares.append(np.bincount(pixels, minlength=width) / pixels.size)
    bank, shares, confusion = np.array(bank), np.array(shares), np.zeros((width, width))
    for tokens, ids in batches(dataset.val, None):
        similarity = tokens @ bank.T
        nearest = np.argsort(-similarity, axis=1)[:, :5]
        weights = softmax(np.take_along_axis(similarity, nearest, axis=1) / temperature, axis=1)
        soft = np.einsum("qn,qnk->qk", weights, shares[nearest]).reshape(*GRID, width)
        rows, columns = (bilinear_matrix(old, new).astype(float) for old, new in zip(GRID, ids.shape, strict=True))
        predicted = np.einsum("Rr,Cc,rck->RCk", rows, columns, soft).argmax(axis=-1)
        if ignored == "scored":
            ids[ids == 255] = 3
        np.add.at(confusion, (ids[ids != 255], predicted[ids != 255]), 1)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - np.diag(confusion)
    return np.where(union > 0, np.diag(confusion) / np.maximum(union, 1), np.nan)


@pytest.mark.parametrize("ignored", ["left_out", "first", "own", "scored"])
def test_scores_equal_those_of_numpy(features, dataset, ignored):
    config = dataclasses.replace(CONFIG, memory_size=54 * 9, ignored=ignored, temperature=0.07)
    result = retrieval.evaluate(features, dataset, config)
    expected = reference_iou(features, dataset, ignored, 0.07)
    found = [np.nan if iou is None else iou for iou in result.scores["class_iou"].values()]
    np.testing.assert_allclose(found, 100 * expected, atol=0.05)
    np.testing.assert_allclose(result.scores["miou"], 100 * np.nanmean(expected), atol=0.05)


def test_no_budget_changes_a_score(backbone, params, dataset, monkeypatch):
    config = dataclasses.replace(CONFIG, sampling="class_balanced")
    whole = retrieval.evaluate(FrozenFeatures(backbone, params), dataset, config)
    monkeypatch.setattr(search, "BANK_CHUNK", 64)
    monkeypatch.setattr(search, "QUERY_CHUNK", 32)
    search.nearest_neighbors.clear_cache()
    shapes, embed = [], search.COSINE_SCALED.embed_bank
    metric = search.COSINE_SCALED._replace(embed_bank=lambda *part: (shapes.append(part[0].shape), embed(*part))[1])
    monkeypatch.setattr(retrieval, "COSINE_SCALED", metric)
    features, allocated = FrozenFeatures(backbone, params, budget=MemoryBudget(host_gib=0, device_gib=1e-9)), []
    allocate = features.allocate
    features.allocate = lambda *of: (allocated.append(allocate(*of)), allocated[-1])[1]
    parts = retrieval.evaluate(features, dataset, config)
    search.nearest_neighbors.clear_cache()
    assert parts.scores == whole.scores
    assert max(shapes)[0] == 64 and sum(rows for rows, _ in shapes) == 9 * 33
    # Tokens, factors and labels of the memory; tokens and factors of queries; similarities and indices.
    assert len(allocated) == 7 and all(isinstance(array, np.memmap) for array in allocated)


def test_arrays_that_are_alive_share_the_budget_of_the_host(backbone, params):
    features = FrozenFeatures(backbone, params, budget=MemoryBudget(host_gib=100 / 2**30))
    first = features.allocate((20,), np.float32)
    assert isinstance(features.allocate((10,), np.float32), np.memmap) and not isinstance(first, np.memmap)
    view = first[:3]
    del first
    assert isinstance(features.allocate((10,), np.float32), np.memmap)
    del view
    assert not isinstance(features.allocate((10,), np.float32), np.memmap)


def test_every_image_gives_the_same_number_of_patches(folder, backbone, params):
    train = open_segmentation(folder, "train")
    memories = [
        build_retrieval_memory(FrozenFeatures(backbone, params, budget=MemoryBudget(batch_size=size)), train, CONFIG)
        for size in (2, 3)
    ]
    vectors, scales = memories[0].tokens
    assert vectors.shape == (9 * 33, 24) and vectors.dtype == np.float16 and memories[0].labels.shape == (9 * 33, 3)
    np.testing.assert_allclose(np.linalg.norm(vectors * scales[:, None], axis=1), 1, rtol=1e-5)
    assert memories[0].labels.any(axis=1).all() and memories[0].labels.sum(axis=1).max() == 16
    np.testing.assert_array_equal(memories[0].labels, memories[1].labels)


# The patches of an image: two alike, one with a class of its own beside, one alone in its class, one without labels.
COUNTS = np.array([[16, 0, 0, 0], [9, 0, 0, 0], [8, 8, 0, 0], [0, 0, 16, 0], [0, 0, 0, 0]], np.uint16)
# Class 0 is in three patches, the others in one each.
SUMS = np.array([3.0, 3, 4, 1])


def test_patches_of_rare_classes_come_first():
    # The chance that u_i s_i is the smallest, for uniform u: integral over t of the density of i times P(others > t).
    def first(index):
        others = np.delete(SUMS, index)
        survive = lambda t: np.prod(np.clip(1 - t / others, 0, 1))  # noqa: E731
        return quad(lambda t: survive(t) / SUMS[index], 0, SUMS[index], limit=200)[0]

    rng, draws = np.random.default_rng(0), 4000
    found = np.array([draw_patches(COUNTS, 4, rng, sampling="class_balanced") for _ in range(draws)])
    expected = np.array([first(index) for index in range(4)])
    assert abs(expected.sum() - 1) < 1e-6
    shares = np.bincount(found[:, 0], minlength=4) / draws
    np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(0.25 / draws))
    assert (np.sort(found, axis=1) == np.arange(4)).all()
    even = np.array([draw_patches(COUNTS, 2, rng, sampling="uniform") for _ in range(draws)])
    np.testing.assert_allclose(np.bincount(even.ravel(), minlength=5) / draws, [0.5] * 4 + [0], atol=0.032)


def test_ignored_pixels_count_for_no_class():
    ids = np.array([[0, 0, 2, 255], [255, 255, 255, 255]], np.uint8)
    np.testing.assert_array_equal(count_pixels(ids, num_classes=3), [[2, 0, 1], [0, 0, 0]])


def test_published_variants_fit_the_patches_of_a_backbone(backbone, params, dataset):
    features = FrozenFeatures(backbone, params)
    for variant, side, temperature in (("hummingbird", 516, 0.02), ("dip", 504, 0.07)):
        config = read_config(f"retrieval:{variant}")
        fitted = fit_config(get_protocol("retrieval").config(**config["retrieval"]), dataset.train, features)
        # Patches of 4 pixels.
        assert fitted.image_size == fitted.score_size == (side, side) and fitted.temperature == temperature
        assert (fitted.memory_size, fitted.num_neighbors, fitted.memory_epochs) == (10_240_000, 30, 2)
    own = dataclasses.replace(fitted, score_size=(0, 0))
    assert fit_config(own, dataset.train, features).score_size is None


def test_published_settings_are_run_and_described(features, dataset):
    config = read_config("retrieval:hummingbird")
    config["retrieval"] |= {"image_size": (27, 37), "score_size": (27, 37), "memory_size": 9 * 2 * 20}
    protocol = get_protocol("retrieval")
    result = retrieval.evaluate(features, dataset, protocol.config(**config["retrieval"]))
    fingerprint = protocol.fingerprint(config, result)
    assert result.scores["miou"] > 40 and fingerprint["retrieval"]["memory_patches"] == 9 * 2 * 20
    rounded = [fingerprint["retrieval"][f"rounded_{name}_size"] for name in ("image", "score")]
    assert rounded == [(24, 36), (24, 36)]
    assert fingerprint["retrieval"]["sampling"] == "class_balanced"
    assert fingerprint["conventions"]["image_resize"] == "bilinear, antialiased"
    plain = protocol.fingerprint(read_config("retrieval"), result._replace(settings={}, conventions={}))
    assert set(plain["retrieval"]) == {
        "image_size", "score_size", "memory_size", "num_neighbors", "temperature", "seed"
    }  # fmt: skip
    assert plain["conventions"] == protocol.conventions


MISTAKES = {
    "memory_size=8: less than one patch for each of 9 images": {"memory_size": 8},
    "memory_size=17: less than one patch for each of 9 images in 2 passes": {
        "memory_size": 17, "memory_epochs": 2, "augmentation": "crop",
    },
    "num_neighbors=30: more than the 9 patches": {"memory_size": 9, "num_neighbors": 30},
    "image_size=.3, 36.: less than one patch of 4": {"image_size": (3, 36), "whole_patches": True},
}  # fmt: skip


@pytest.mark.parametrize("message", MISTAKES)
def test_settings_that_do_not_fit_the_data_are_named(features, dataset, message):
    with pytest.raises(ValueError, match=message):
        retrieval.evaluate(features, dataset, dataclasses.replace(CONFIG, **MISTAKES[message]))


def test_ignored_pixels_of_ade20k_are_no_wall(features, dataset):
    train = dataclasses.replace(dataset.train, kind="ade20k", class_names=("wall", "building", "sky"))
    with pytest.raises(ValueError, match="first class of ade20k is wall.*'own'.*'scored'"):
        fit_config(dataclasses.replace(CONFIG, ignored="first"), train, features)

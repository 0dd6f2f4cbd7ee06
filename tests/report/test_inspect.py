"""Clusters of pairs of crops, and the overlap of these."""

import numpy as np
import pytest

from croc_jax.data.crops import Box, crop_view
from croc_jax.data.decoding import decode
from croc_jax.data.sources import FolderSource
from croc_jax.report.inspect import explore, overlap

K_START, K_MAX, HEADS = 5, 4, 2


def assert_crops_are_of_their_images(found, photos, size):
    source = FolderSource(photos)
    for views, boxes, index in zip(found.views, found.boxes, found.indices, strict=True):
        image = decode(source[int(index)])
        for view, box in zip(views, boxes, strict=True):
            top, left, height, width, flip = map(int, box)
            expected = crop_view(image, Box(top, left, height, width, bool(flip)), size)
            np.testing.assert_array_equal(view, expected)


def test_explore_leaves_the_unreadable_image_out(found, photos):
    assert found.indices.tolist() == [0, 1, 3, 4, 5, 6] and found.grid == (3, 3)
    shapes = {name: getattr(found, name).shape for name in found._fields if name not in ("indices", "grid")}
    assert shapes == {
        "views": (6, 2, 24, 24, 3),
        "boxes": (6, 2, 5),
        "labels": (2, 6, HEADS, 9),
        "valid": (6, HEADS, K_START),
        "num_clusters": (6, HEADS),
        "costs": (6, HEADS, K_START - 1),
        "merging": (K_START - 1, 2, 6, HEADS, 9),
    }
    assert_crops_are_of_their_images(found, photos, 24)


def test_the_cheapest_round_is_chosen_and_its_labels_kept(found):
    np.testing.assert_array_equal(found.num_clusters, K_MAX - found.costs[..., K_START - K_MAX :].argmin(-1))
    assert len(np.unique(found.num_clusters)) > 1
    for image, head in np.ndindex(6, HEADS):
        for index, k in enumerate(range(K_START, 1, -1)):
            labels = found.merging[index, :, image, head]
            assert labels.min() >= 0 and labels.max() < K_START and len(np.unique(labels)) <= k
        chosen = K_START - found.num_clusters[image, head]
        labels = found.labels[:, image, head]
        np.testing.assert_array_equal(labels, found.merging[chosen, :, image, head])
        first, second = (set(view.tolist()) for view in labels)
        assert set(np.flatnonzero(found.valid[image, head]).tolist()) == first & second


def test_another_seed_fewer_images_and_larger_crops(found, backbone, photos):
    other = explore(backbone, FolderSource(photos), seed=1, num_images=4, crop_size=40)
    # Of images 0, 2, 4 and 6 the second cannot be read.
    assert other.indices.tolist() == [0, 4, 6] and other.grid == (5, 5)
    assert (other.boxes != found.boxes[[0, 3, 5]]).any()
    assert_crops_are_of_their_images(other, photos, 40)


def test_nothing_but_unreadable_images_is_an_error(backbone, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of 2 images of the source can be read: cannot read "):
        explore(backbone, FolderSource(tmp_path), num_images=64)


def test_overlap_by_hand():
    cases = [
        ((10, 20, 30, 40), (10, 20, 30, 40), 1.0),
        ((0, 0, 10, 10), (0, 10, 10, 10), 0.0),
        ((0, 0, 10, 10), (30, 5, 10, 10), 0.0),
        ((0, 0, 100, 100), (20, 30, 10, 10), 1.0),
        ((0, 0, 20, 10), (15, 0, 20, 10), 0.25),
        ((0, 0, 10, 10), (5, 5, 40, 40), 0.25),
    ]
    for first, second, expected in cases:
        boxes = np.array([[[*first, 0], [*second, 1]], [[*second, 1], [*first, 1]]], np.float32)
        np.testing.assert_allclose(overlap(boxes), [expected, expected])

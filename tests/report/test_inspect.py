"""What a backbone makes of pairs of crops, and how much these share."""

import numpy as np
import pytest

from croc_jax.data.crops import Box, crop_view, decode
from croc_jax.data.sources import FolderSource
from croc_jax.report.inspect import explore, overlap

READABLE = [0, 1, 3, 4, 5, 6]
K_START, K_MAX, HEADS = 5, 4, 2


def assert_crops_are_of_their_images(found, photos, size):
    source = FolderSource(photos)
    for views, boxes, index in zip(found.views, found.boxes, found.indices, strict=True):
        image = decode(source[int(index)])
        for view, box in zip(views, boxes, strict=True):
            top, left, height, width, flip = map(int, box)
            expected = crop_view(image, Box(top, left, height, width, bool(flip)), size)
            np.testing.assert_array_equal(view, expected)


def test_shapes_and_the_unreadable_image_is_left_out(found, photos):
    assert found.indices.tolist() == READABLE and found.grid == (3, 3)
    batch, tokens = len(READABLE), 9
    assert {name: getattr(found, name).shape for name in found._fields if name not in ("indices", "grid")} == {
        "views": (batch, 2, 24, 24, 3),
        "boxes": (batch, 2, 5),
        "labels": (2, batch, HEADS, tokens),
        "valid": (batch, HEADS, K_START),
        "num_clusters": (batch, HEADS),
        "costs": (batch, HEADS, K_START - 1),
        "merging": (K_START - 1, 2, batch, HEADS, tokens),
    }
    assert all(isinstance(part, np.ndarray) for name, part in found._asdict().items() if name != "grid")
    assert_crops_are_of_their_images(found, photos, 24)


def each_head(found):
    return [(image, head) for image in range(len(found.indices)) for head in range(HEADS)]


def test_every_round_has_one_cluster_less_and_only_merges(found):
    for index, k in enumerate(range(K_START, 1, -1)):
        for image, head in each_head(found):
            labels = found.merging[index, :, image, head]
            assert labels.min() >= 0 and labels.max() < K_START and len(np.unique(labels)) <= k
    distinct = [len(np.unique(found.merging[0, :, image, head])) for image, head in each_head(found)]
    assert max(distinct) > 2


def test_the_cheapest_round_within_the_bound_is_chosen(found):
    allowed = found.costs[..., K_START - K_MAX :]
    np.testing.assert_array_equal(found.num_clusters, K_MAX - allowed.argmin(-1))
    assert len(np.unique(found.num_clusters)) > 1


def test_labels_are_those_of_the_chosen_round(found):
    for image, head in each_head(found):
        chosen = K_START - found.num_clusters[image, head]
        np.testing.assert_array_equal(found.labels[:, image, head], found.merging[chosen, :, image, head])


def test_valid_clusters_are_those_that_both_views_show(found):
    for image, head in each_head(found):
        first, second = (set(found.labels[view, image, head].tolist()) for view in range(2))
        assert set(np.flatnonzero(found.valid[image, head]).tolist()) == first & second
    assert found.valid.any() and found.valid.sum() < found.num_clusters.sum()


def test_the_same_seed_gives_the_same(found, look):
    again = look(seed=0)
    for name in found._fields:
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


def test_another_seed_fewer_images_and_larger_crops(found, look, photos):
    other = look(seed=1, num_images=4, crop_size=40)
    # Of images 0, 2, 4 and 6 the second cannot be read.
    assert other.indices.tolist() == [0, 4, 6] and other.grid == (5, 5)
    assert other.views.shape == (3, 2, 40, 40, 3) and other.labels.shape == (2, 3, HEADS, 25)
    assert (other.boxes != found.boxes[[0, 3, 5]]).any()
    assert_crops_are_of_their_images(other, photos, 40)


def test_nothing_but_unreadable_images_is_an_error(backbone, recipe, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of 2 images of the source can be read: check the files"):
        explore(backbone.module, backbone.params, recipe, FolderSource(tmp_path), num_images=64)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((10, 20, 30, 40), (10, 20, 30, 40), 1.0),
        ((0, 0, 10, 10), (0, 10, 10, 10), 0.0),
        ((0, 0, 10, 10), (30, 30, 10, 10), 0.0),
        ((0, 0, 10, 10), (30, 5, 10, 10), 0.0),
        ((0, 0, 100, 100), (20, 30, 10, 10), 1.0),
        ((0, 0, 10, 20), (0, 10, 10, 20), 0.5),
        ((0, 0, 20, 10), (15, 0, 20, 10), 0.25),
        ((0, 0, 10, 10), (5, 5, 40, 40), 0.25),
    ],
)
def test_overlap_by_hand(first, second, expected):
    boxes = np.array([[[*first, 0], [*second, 1]], [[*second, 1], [*first, 1]]], np.float32)
    np.testing.assert_allclose(overlap(boxes), [expected, expected])

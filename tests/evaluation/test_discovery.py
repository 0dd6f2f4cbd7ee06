"""Discovery follows LOST step by step: degrees, seed, expanded set, component, box, CorLoc."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.data.labeled.boxes import open_voc_boxes
from croc_jax.evaluation.discovery import DiscoveryConfig, box_iou, evaluate, find_boxes, lost, seed_box
from croc_jax.evaluation.features import FrozenFeatures
from croc_jax.evaluation.visualize import RIGHT, WRONG, draw_boxes
from tests.data.tiny_sets import write_voc_boxes

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
RNG = np.random.default_rng(0)


def reference(tokens, num_patches):
    """Returns seed and mask, one patch after the other, in float64."""
    products = tokens.astype(float) @ tokens.astype(float).T
    count = len(tokens)
    degrees = [sum(products[i, j] > 0 for j in range(count) if j != i) for i in range(count)]
    order = sorted(range(count), key=lambda i: (degrees[i], i))
    seed = order[0]
    expanded = [i for i in order[:num_patches] if products[seed, i] > 0]
    return seed, np.array([sum(products[i, j] for i in expanded) > 0 for j in range(count)])


def reference_box(seed, mask, patch_size, size):
    """Returns the box around what a flood from the seed reaches."""
    reached, open_ = set(), [tuple(int(i) for i in np.unravel_index(seed, mask.shape))]
    while open_:
        row, column = open_.pop()
        if (row, column) in reached or not (0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]):
            continue
        if mask[row, column]:
            reached.add((row, column))
            open_ += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    rows, columns = zip(*reached, strict=True)
    edges = np.array([min(columns), min(rows), max(columns) + 1, max(rows) + 1]) * patch_size
    return np.minimum(edges, [size[1], size[0], size[1], size[0]])


@pytest.mark.parametrize("num_patches", [1, 8, 100])
def test_seed_and_mask_equal_the_definition(num_patches):
    for _ in range(5):
        tokens = RNG.standard_normal((30, 4)).astype(np.float32)
        found, found_mask = lost(jnp.asarray(tokens), num_patches=num_patches)
        seed, mask = reference(tokens, num_patches)
        assert int(found) == seed
        np.testing.assert_array_equal(found_mask, mask)


def test_a_small_object_before_a_uniform_background_is_found():
    grid = np.tile(np.array([1.0, 0.0]), (6, 8, 1))
    grid[2:4, 5:7] = [-0.5, 1.0]
    seed, mask = lost(jnp.asarray(grid.reshape(48, 2), jnp.float32), num_patches=10)
    box = seed_box(int(seed), np.asarray(mask).reshape(6, 8), 16, (90, 125))
    np.testing.assert_array_equal(box, [80, 32, 112, 64])


def test_boxes_hold_the_seed_s_part_alone_and_stay_inside():
    for _ in range(10):
        mask, seed = RNG.random((5, 7)) < 0.5, int(RNG.integers(35))
        mask.flat[seed] = True
        np.testing.assert_array_equal(seed_box(seed, mask, 8, (37, 50)), reference_box(seed, mask, 8, (37, 50)))
    np.testing.assert_array_equal(seed_box(34, np.zeros((5, 7), bool), 8, (37, 50)), [48, 32, 50, 37])


def test_iou_counts_pixels():
    boxes = np.array([[0, 0, 4, 4], [2, 1, 6, 5], [3, 3, 8, 9], [7, 7, 9, 9]], float)
    painted = np.zeros((4, 10, 10), bool)
    for canvas, (left, top, right, bottom) in zip(painted, boxes.astype(int), strict=True):
        canvas[top:bottom, left:right] = True
    expected = [(painted[1] & other).sum() / (painted[1] | other).sum() for other in painted]
    np.testing.assert_allclose(box_iou(boxes[1], boxes), expected, atol=1e-12)


@pytest.fixture
def tokens_of(backbone, params):
    """Returns the tokens `[n d]` of an image at its own size, its heads side by side."""
    apply = jax.jit(backbone.apply)

    def compute(image, kind):
        height, width = image.shape[:2]
        pixels = np.zeros((-(-height // 4) * 4, -(-width // 4) * 4, 3))
        pixels[:height, :width] = (image / 255 - MEAN) / DEVIATION
        tokens = getattr(apply({"params": params}, jnp.asarray(pixels[None], jnp.float32)), kind)
        return np.concatenate([np.asarray(head)[1:] for head in tokens[0]], -1), (pixels.shape[0] // 4, -1)

    return compute


@pytest.mark.parametrize("kind", ["keys", "values"])
def test_corloc_equals_the_definition(backbone, params, tokens_of, tmp_path, kind):
    images = [RNG.integers(0, 256, (size[0] // 6, size[1] // 6, 3), dtype=np.uint8) for size in ((84, 108), (84, 108))]
    images = [image.repeat(6, 0).repeat(6, 1) for image in images]
    images = [images[0][:22, :26], images[1][:24, :28], images[1][5:27, 3:31]]
    write_voc_boxes(tmp_path, images, [[(1, 1, 2, 2, "1")]] * 3)
    expected = []
    for pixels, _ in map(open_voc_boxes(tmp_path).load, range(3)):
        tokens, grid = tokens_of(pixels, kind)
        seed, mask = reference(tokens, 12)
        expected.append(reference_box(seed, mask.reshape(grid), 4, pixels.shape[:2]))
    # The first image has its very box, the second one of half its width and another, the last none that counts.
    left, top, right, bottom = expected[1]
    truths = [
        [(1, 1, 1, 1, "0"), (*(expected[0] + [1, 1, 0, 0]), "0")],
        [(left + 1, top + 1, left + (right - left) * 0.4, bottom, "0")],
        [(1, 1, 2, 2, "1")],
    ]
    write_voc_boxes(tmp_path, images, truths)
    split, config = open_voc_boxes(tmp_path, hard=False), DiscoveryConfig(tokens=kind, num_patches=12)
    features = FrozenFeatures(backbone, params)
    boxes, ious, num_boxes = find_boxes(features, split, config)
    np.testing.assert_array_equal(boxes, expected)
    np.testing.assert_allclose(ious, [1, 0.4, np.nan], atol=1e-12)
    assert evaluate(features, split, config).scores == {"corloc": 50, "num_images": 3, "num_scored": 2, "num_boxes": 3}
    write_voc_boxes(tmp_path / "none", images[:1], [[(1, 1, 2, 2, "1")]])
    with pytest.raises(ValueError, match="hard=True"):
        evaluate(features, open_voc_boxes(tmp_path / "none", hard=False), config)
    sheet = np.asarray(draw_boxes(split, boxes, ious, count=3))
    for color in (RIGHT, WRONG):
        assert (sheet == color).all(-1).sum() > 100

"""Crops follow Pillow, and labels stay with their pixels."""

import numpy as np
import pytest
from PIL import Image

from croc_jax.data.labeled.label_files import IGNORED
from croc_jax.evaluation.interpolation import bilinear_matrix
from croc_jax.evaluation.labeled_crops import crop_batches, draw_crop, resize_bilinear
from croc_jax.evaluation.settings import CropConfig

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [(13, 40), (50, 60), (7, 5)])
def test_resizing_with_antialiasing_is_pillows_and_without_it_interpolation(size):
    image = RNG.integers(0, 256, (33, 41, 3), np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(resize_bilinear(image, size, antialias=True) - expected).max() <= 1
    rows, columns = map(bilinear_matrix, image.shape[:2], size)
    expected = np.einsum("Rr,Cc,rck->RCk", rows, columns, image.astype(float))
    np.testing.assert_allclose(resize_bilinear(image, size, antialias=False), np.rint(expected), atol=1)
    deep = np.concatenate([image, image[..., :2]], -1).astype(np.uint16) * 257
    found = resize_bilinear(deep, size, slice(2, 6), slice(1, 4), antialias=False)
    assert found.dtype == np.uint16 and found.shape == (4, 3, 5)
    np.testing.assert_allclose(found[..., :3], 257 * expected[2:6, 1:4], atol=1)


def colored(labels):
    """An image that shows its labels."""
    return np.repeat(40 * labels[..., None], 3, axis=-1)


def test_labels_stay_with_their_pixels_and_padding_is_ignored():
    labels = np.kron(RNG.integers(0, 6, (4, 5)), np.ones((12, 12))).astype(np.uint8)
    config = CropConfig(short_side=64, crop_size=48, scale=(0.5, 1.6), max_class_share=1)
    flipped = 0
    for seed in range(12):
        crop, ids, size = draw_crop(np.random.default_rng(seed), colored(labels), labels, config)
        assert crop.shape == (48, 48, 3) and ids.shape == (48, 48) and crop.dtype == np.uint8
        outside = np.ones((48, 48), bool)
        outside[: size[0], : size[1]] = False
        assert (ids[outside] == IGNORED).all() and not crop[outside].any() and (ids[~outside] < 6).all()
        # Borders between classes are blended.
        assert np.mean((crop[..., 0] == 40 * ids)[~outside]) > 0.75
        again = draw_crop(np.random.default_rng(seed), colored(labels)[:, ::-1], labels[:, ::-1], config)
        flipped += np.array_equal(again[1][:, : size[1]], ids[:, : size[1]][:, ::-1])
        assert min(size) == min(48, int(64 * np.random.default_rng(seed).uniform(0.5, 1.6)))
    assert flipped < 12


def test_crops_of_one_class_are_drawn_again():
    labels = np.zeros((40, 200), np.uint8)
    labels[:, :60:2], labels[:, 60] = 1, IGNORED
    shares = {}
    for most in (1.0, 0.75):
        config = CropConfig(short_side=40, crop_size=40, scale=(1, 1), max_class_share=most)
        crops = [draw_crop(np.random.default_rng(seed), colored(labels), labels, config)[1] for seed in range(20)]
        shares[most] = np.mean(
            [np.bincount(ids[ids != IGNORED]).max() < 0.75 * np.sum(ids != IGNORED) for ids in crops]
        )
    assert shares[1.0] < 0.5 < 0.9 < shares[0.75]


class Numbered:
    """Five images, each as bright as its number."""

    def __len__(self):
        return 5

    def load(self, index, pixels):
        return np.full((6, 6, 3), index, np.uint8), np.full((6, 6), index % 2, np.uint8)


def test_every_image_is_seen_once_before_any_again_with_any_number_of_threads():
    config = CropConfig(short_side=6, crop_size=4)
    one, three = (
        list(crop_batches(Numbered(), config, count=5, batch_size=3, seed=7, num_threads=threads)) for threads in (1, 3)
    )
    for first, second in zip(one, three, strict=True):
        for of, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(of, other)
    order = np.concatenate([batch.images[:, 0, 0, 0] for batch in one]).reshape(3, 5)
    np.testing.assert_array_equal(np.sort(order), np.tile(np.arange(5), (3, 1)))
    assert len({tuple(epoch) for epoch in order}) == 3
    other = next(crop_batches(Numbered(), config, count=5, batch_size=3, seed=8, num_threads=1))
    assert not all(np.array_equal(of, wanted) for of, wanted in zip(other, one[0], strict=True))

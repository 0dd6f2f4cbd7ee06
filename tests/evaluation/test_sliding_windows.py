"""Windows give what a canvas of all logits gives."""

import numpy as np
import pytest

from croc_jax.data.labeled.segmentation import open_segmentation
from croc_jax.evaluation.features import FrozenFeatures, MemoryBudget
from croc_jax.evaluation.interpolation import bilinear_matrix
from croc_jax.evaluation.labeled_crops import resize_bilinear
from croc_jax.evaluation.metrics import confusion_matrix
from croc_jax.evaluation.settings import CropConfig
from croc_jax.evaluation.sliding_windows import score_windows, window_starts


def upsample(grid, size):
    rows, columns = (bilinear_matrix(old, new).astype(float) for old, new in zip(grid.shape[:2], size, strict=True))
    return np.einsum("Rr,Cc,rck->RCk", rows, columns, grid)


@pytest.mark.parametrize(("length", "expected"), [(8, [0]), (9, [0, 1]), (13, [0, 5]), (14, [0, 5, 6])])
def test_the_last_window_ends_with_the_image(length, expected):
    assert window_starts(length, 8, 5) == expected


def logits_of(windows):
    """Logits of patches of 4 pixels, nonlinear in the pixels."""
    count, side = len(windows), windows.shape[1] // 4
    patches = windows.astype(np.float32).reshape(count, side, 4, side, 4, 3).mean((2, 4)) / 255
    return np.sin(9 * patches + np.arange(side)[:, None] / 3) + patches**2


def test_windows_are_averaged_and_resized_to_each_label(backbone, folder):
    split, config = open_segmentation(folder, "val"), CropConfig(short_side=20, crop_size=16)
    features = FrozenFeatures(backbone, None, budget=MemoryBudget(batch_size=2))
    confusion, examples = score_windows(logits_of, features, split, config, stride=9)
    wrong, total = 0, 0
    for index, example in enumerate(examples.typical):
        image, labels = split.load(index)
        size = (20, int(20 * labels.shape[1] / labels.shape[0] + 0.5))
        image = resize_bilinear(image, size, antialias=False)
        canvas, counts = np.zeros((*size, 3)), np.zeros((*size, 1))
        for top in window_starts(size[0], 16, 9):
            for left in window_starts(size[1], 16, 9):
                place = slice(top, top + 16), slice(left, left + 16)
                canvas[place] += upsample(logits_of(image[place][None])[0], (16, 16))
                counts[place] += 1
        assert counts.min() > 0
        expected = upsample(canvas / counts, labels.shape).argmax(-1)
        wrong, total = wrong + np.sum(expected != example.prediction), total + labels.size
        np.testing.assert_array_equal(example.labels, labels)
        confusion -= confusion_matrix(labels, example.prediction, num_classes=3)
    assert len(examples.typical) == len(split) and wrong <= 0.001 * total and not confusion.any()

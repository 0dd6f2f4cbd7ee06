"""Linear segmentation from images to score, and the pictures of it."""

import jax
import numpy as np
import pytest

from croc_jax.data.labeled.segmentation import open_segmentation
from croc_jax.evaluation.features import FrozenFeatures, MemoryBudget, make_extract_fn
from croc_jax.evaluation.metrics import confusion_matrix
from croc_jax.evaluation.pixel_scoring import score_split
from croc_jax.evaluation.probe import LinearHead, apply_head
from croc_jax.evaluation.visualize import WRONG, Example, ExampleSelector, class_palette, draw_examples

RNG = np.random.default_rng(0)
HEAD = LinearHead(RNG.standard_normal((24, 3), np.float32), RNG.standard_normal(3, np.float32))


@pytest.mark.parametrize("label_size", [None, (10, 15)])
def test_score_split_predicts_the_largest_upsampled_logits(backbone, params, folder, label_size):
    split, extract = open_segmentation(folder, "val"), make_extract_fn(backbone)
    features = FrozenFeatures(backbone, params, budget=MemoryBudget(batch_size=2))
    sizes = {"image_size": (24, 36), "label_size": label_size}
    confusion, examples = score_split(lambda tokens: apply_head(HEAD, tokens), features, split, **sizes)
    assert len(examples.typical) == len(split) == 5
    total, counts = np.zeros((3, 3)), np.zeros(3)
    for index, example in enumerate(examples.typical):
        image, labels = split.load(index, **sizes)
        np.testing.assert_array_equal(example.image, image)
        np.testing.assert_array_equal(example.labels, labels)
        logits = apply_head(HEAD, extract(params, image[None]))
        expected = np.asarray(jax.image.resize(logits[0], (*labels.shape, 3), "bilinear").argmax(-1))
        assert np.mean(example.prediction == expected) > 0.998
        total += confusion_matrix(labels, expected, num_classes=3)
        counts += np.bincount(labels[labels != 255], minlength=3)
    assert np.abs(confusion - total).sum() < 0.004 * total.sum()
    np.testing.assert_array_equal(confusion.sum(1), counts)


class Numbered:
    """Nine images, each as bright as its number."""

    def __len__(self):
        return 9

    def load(self, index, *, image_size, pixels):
        return np.full((*image_size, 3), index, np.uint8), None


def test_best_and_worst_are_ordered_by_right_pixels():
    selector, labels = ExampleSelector(Numbered(), (2, 5), count=3), np.zeros((2, 5), np.uint8)
    labels[0, 0] = 255
    for wrong in [3, 0, 5, 1, 8, 2, 9, 4, 7]:
        prediction = np.zeros((2, 5), np.uint8)
        prediction.ravel()[1 : 1 + wrong] = 1
        selector.add(labels, prediction)
    # Without a pixel that counts, an image is neither best nor worst.
    selector.add(np.full((2, 5), 255, np.uint8), labels)
    found = [[int(example.image[0, 0, 0]) for example in part] for part in selector.examples()]
    assert found == [[0, 4, 8], [1, 3, 5], [6, 4, 8]]


def test_pictures_show_classes_in_their_colors_and_errors_in_red():
    labels = np.zeros((20, 30), np.uint8)
    prediction = labels.copy()
    prediction[:, 15:] = 1
    sheet = np.asarray(draw_examples([Example(np.zeros((20, 30, 3), np.uint8), labels, prediction)], ("a", "b")))
    errors = sheet[60:140, -260:]
    np.testing.assert_allclose(errors[:, 200], np.broadcast_to(0.7 * np.array(WRONG), (80, 3)), atol=1)
    assert not errors[:, 20].any()
    palette = class_palette(2)
    for color in palette[:2]:
        assert (sheet[-40:] == color).all(-1).sum() > 100, "the legend shows it"
    assert (palette[0] != palette[1]).any() and not palette[255].any()

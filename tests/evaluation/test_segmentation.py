"""Linear segmentation from images to score."""

import jax
import numpy as np
import pytest

from croc_jax.data.labeled import open_segmentation
from croc_jax.evaluation.features import MemoryBudget, make_extract_fn
from croc_jax.evaluation.linear import LinearHead, LinearProtocol, apply_head
from croc_jax.evaluation.metrics import confusion_matrix
from croc_jax.evaluation.pictures import class_palette, draw_examples
from croc_jax.evaluation.segmentation import evaluate_linear, score_linear

PROTOCOL = LinearProtocol(image_size=(24, 36), train_size=(12, 18), epochs=20, batch_size=4)


def evaluate(backbone, params, folder, protocol=PROTOCOL):
    train, val = (open_segmentation(folder, name) for name in ("train", "val"))
    return evaluate_linear(backbone, params, train=train, val=val, protocol=protocol, budget=MemoryBudget(batch_size=4))


@pytest.fixture(scope="module")
def score(backbone, params, folder):
    return evaluate(backbone, params, folder)


def test_separable_classes_are_learned(score):
    assert score.miou > 90
    assert score.miou == pytest.approx(score.class_iou.mean())
    assert score.losses[-1] < 0.3 < score.losses[0]
    assert set(score.seconds) == {"features", "training", "scoring"} and min(score.seconds.values()) > 0


def test_every_labeled_pixel_is_scored_once(score, folder):
    val = open_segmentation(folder, "val")
    labels = np.concatenate([val.load(index)[1].ravel() for index in range(len(val))])
    np.testing.assert_array_equal(score.confusion.sum(1), np.bincount(labels[labels != 255], minlength=3))


def test_examples_are_validation_images_with_their_labels(score, folder):
    val = open_segmentation(folder, "val")
    assert len(score.examples) == 5
    for index, example in enumerate(score.examples):
        image, labels = val.load(index, image_size=(24, 36))
        np.testing.assert_array_equal(example.image, image)
        np.testing.assert_array_equal(example.labels, labels)
        assert example.prediction.shape == labels.shape
    confusions = [confusion_matrix(e.labels, e.prediction, num_classes=3) for e in score.examples]
    np.testing.assert_array_equal(sum(confusions), score.confusion)


def test_the_same_seed_gives_the_same_score(score, backbone, params, folder):
    again = evaluate(backbone, params, folder)
    assert again.miou == score.miou
    np.testing.assert_array_equal(again.confusion, score.confusion)


@pytest.mark.parametrize("score_size", [None, (10, 15)])
def test_predictions_are_the_largest_upsampled_logits(backbone, params, folder, score_size):
    rng, split, extract = (
        np.random.default_rng(0),
        open_segmentation(folder, "val"),
        make_extract_fn(backbone),
    )
    head = LinearHead(rng.standard_normal((24, 3), np.float32), rng.standard_normal(3, np.float32))
    protocol = LinearProtocol(image_size=(24, 36), score_size=score_size)
    confusion, examples = score_linear(
        extract, params, head, split, protocol=protocol, budget=MemoryBudget(batch_size=2), num_examples=5
    )
    total = np.zeros((3, 3))
    for index, example in enumerate(examples):
        image, labels = split.load(index, image_size=(24, 36), label_size=score_size)
        logits = apply_head(head, extract(params, image[None]))
        logits = jax.image.resize(logits[0], (*labels.shape, 3), "bilinear")
        expected = np.asarray(np.argmax(logits, -1))
        assert np.mean(example.prediction == expected) > 0.998
        total += confusion_matrix(labels, expected, num_classes=3)
    assert np.abs(confusion - total).sum() < 0.004 * total.sum()


def test_an_image_size_of_broken_patches_is_named(backbone, params, folder):
    with pytest.raises(ValueError, match=r"image_size=\(24, 35\).*patches of 4"):
        evaluate(backbone, params, folder, LinearProtocol(image_size=(24, 35)))


def test_pictures_show_each_class_in_its_color(score):
    sheet = np.asarray(draw_examples(score.examples[:2], ("red", "green", "blue")))
    assert sheet.shape[1] == 3 * 320 + 4 * 12 and sheet.shape[0] > 2 * 213
    palette = class_palette(3)
    assert len({tuple(color) for color in palette[:3]}) == 3 and not palette[255].any()
    for color in palette[:3]:
        assert (sheet[-40:] == color).all(-1).sum() > 100, "the legend shows it"

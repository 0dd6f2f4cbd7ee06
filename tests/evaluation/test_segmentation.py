"""Linear segmentation from images to score."""

import jax
import numpy as np
import pytest

from croc_jax.data.labeled.segmentation import open_segmentation
from croc_jax.evaluation.examples import Example, GalleryKeeper, pixel_accuracy
from croc_jax.evaluation.features import FrozenFeatures, MemoryBudget, make_extract_fn
from croc_jax.evaluation.linear import LinearHead, LinearProtocol, apply_head
from croc_jax.evaluation.metrics import confusion_matrix
from croc_jax.evaluation.pictures import WRONG, class_palette, draw_examples
from croc_jax.evaluation.segmentation import evaluate_linear, score_linear

PROTOCOL = LinearProtocol(image_size=(24, 36), train_size=(12, 18), epochs=20, batch_size=4)


def evaluate(backbone, params, folder, protocol=PROTOCOL):
    train, val = (open_segmentation(folder, name) for name in ("train", "val"))
    features = FrozenFeatures(backbone, params, budget=MemoryBudget(batch_size=4))
    return evaluate_linear(features, train=train, val=val, protocol=protocol)


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
    assert len(score.gallery.typical) == 5
    for index, example in enumerate(score.gallery.typical):
        image, labels = val.load(index, image_size=(24, 36))
        np.testing.assert_array_equal(example.image, image)
        np.testing.assert_array_equal(example.labels, labels)
        assert example.prediction.shape == labels.shape
    confusions = [confusion_matrix(e.labels, e.prediction, num_classes=3) for e in score.gallery.typical]
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
    features = FrozenFeatures(backbone, params, budget=MemoryBudget(batch_size=2))
    confusion, gallery = score_linear(features, head, split, protocol=protocol)
    total = np.zeros((3, 3))
    for index, example in enumerate(gallery.typical):
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
    sheet = np.asarray(draw_examples(score.gallery.typical[:2], ("red", "green", "blue")))
    assert sheet.shape[1] == 4 * 260 + 5 * 12 and sheet.shape[0] > 2 * 173
    palette = class_palette(3)
    assert len({tuple(color) for color in palette[:3]}) == 3 and not palette[255].any()
    for color in palette[:3]:
        assert (sheet[-40:] == color).all(-1).sum() > 100, "the legend shows it"


class Numbered:
    """Nine images, each as bright as its number."""

    def __len__(self):
        return 9

    def load(self, index, *, image_size):
        return np.full((*image_size, 3), index, np.uint8), None


def test_best_and_worst_are_ordered_by_right_pixels():
    keeper, labels = GalleryKeeper(Numbered(), (2, 5), count=3), np.zeros((2, 5), np.uint8)
    labels[0, 0] = 255
    for wrong in [3, 0, 5, 1, 8, 2, 9, 4, 7]:
        prediction = labels.copy()
        prediction[1, :] = prediction[0, 1:] = 0
        prediction.ravel()[1 : 1 + wrong] = 1
        assert pixel_accuracy(labels, prediction) == pytest.approx(1 - wrong / 9)
        keeper.consider(labels, prediction)
    typical, best, worst = ([int(e.image[0, 0, 0]) for e in part] for part in keeper.gallery())
    assert (typical, best, worst) == ([0, 4, 8], [1, 3, 5], [6, 4, 8])
    nothing = np.full((2, 5), 255, np.uint8)
    keeper.consider(nothing, labels)
    assert np.isnan(pixel_accuracy(nothing, labels))
    assert [int(e.image[0, 0, 0]) for e in keeper.gallery().worst] == [6, 4, 8]


def test_errors_are_red_in_pictures():
    labels = np.zeros((20, 30), np.uint8)
    prediction = labels.copy()
    prediction[:, 15:] = 1
    sheet = np.asarray(draw_examples([Example(np.zeros((20, 30, 3), np.uint8), labels, prediction)], ("a", "b")))
    errors = sheet[60:140, -260:]
    np.testing.assert_allclose(errors[:, 200], np.broadcast_to(0.7 * np.array(WRONG), (80, 3)), atol=1)
    assert not errors[:, 20].any()

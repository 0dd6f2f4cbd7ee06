"""Data sets that no score can come from are refused before any work, and results say what a score is of."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.evaluation import FrozenFeatures
from croc_jax.evaluation.datasets import (
    check_classes,
    check_labels,
    open_class_splits,
    open_pixel_split,
    open_pixel_splits,
)
from croc_jax.evaluation.results import describe_counts
from tests.data.tiny_sets import save, write_voc_boxes
from tests.evaluation.conftest import score

RNG = np.random.default_rng(0)
SPLITS = {"train_split": "train", "val_split": "val"}


def write_pixels(root, train, val):
    """Two images a split, with the given ids in their labels."""
    for split, ids in (("train", train), ("val", val)):
        for index in range(2):
            save(root / "images" / split / f"{index}.png", RNG.integers(0, 256, (8, 8, 3)))
            save(root / "labels" / split / f"{index}.png", np.resize(np.array(ids), (8, 8)))
    return root


def write_classes(root, **splits):
    """One image for each name of a class in a split."""
    for split, names in splits.items():
        for index, name in enumerate(names):
            save(root / split / name / f"{index}.png", RNG.integers(0, 256, (8, 8, 3)))
    return root


@pytest.mark.parametrize("num_classes", [2, 21])
@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ([0, 255], [0, 255], "all labels in {root}/labels/train are 0 or 255, and 255 is ignored"),
        ([0, 1], [0, 255], "all labels in {root}/labels/val are 0 or 255"),
        ([0, 1], [1], "all labels in {root}/labels/val are 1, and"),
        ([255], [0, 1], "all labels in {root}/labels/train are 255"),
    ],
)
def test_labels_of_one_class_are_refused_whatever_num_classes_says(tmp_path, train, val, message, num_classes):
    root = write_pixels(tmp_path, train, val)
    with pytest.raises(ValueError) as caught:
        open_pixel_splits(root=root, num_classes=num_classes, **SPLITS)
    assert message.format(root=root) in str(caught.value) and "\n" not in str(caught.value)
    (root / "classes.txt").write_text("ground\nobject\n")
    if "val" in message:
        with pytest.raises(ValueError, match="labels/val are"):
            open_pixel_split(root=root, **SPLITS)


def test_labels_are_read_until_they_show_two_classes(tmp_path, monkeypatch):
    split = open_pixel_split(root=write_pixels(tmp_path, [0, 1], [0, 1, 255]), **SPLITS)
    (tmp_path / "labels/val/1.png").unlink()
    check_labels(split)
    write_pixels(tmp_path, [0, 1], [2, 3, 255])
    with pytest.raises(ValueError, match=r"have no class in common \(0 and 1; 2 and 3\)"):
        open_pixel_splits(root=tmp_path, num_classes=4, **SPLITS)


def test_training_images_are_not_scored(tmp_path):
    root, classes = write_pixels(tmp_path / "pixels", [0, 1], [0, 1]), write_classes(tmp_path, train="ab", val="ab")
    for open_splits, folder in ((open_pixel_splits, root), (open_class_splits, classes)):
        with pytest.raises(ValueError, match="train_split and val_split are both 'val': a score on training images"):
            open_splits(root=folder, train_split="val", val_split="val")
    (root / "images/val/0.png").unlink()
    (root / "images/val/0.png").hardlink_to(root / "images/train/0.png")
    for open_splits, folder in ((open_pixel_splits, root), (open_class_splits, classes)):
        assert len(open_splits(root=folder, **SPLITS).val) == 2
    for folder in (root / "images", classes):
        shutil.rmtree(folder / "val")
        (folder / "val").symlink_to(folder / "train")
    for open_splits, folder in ((open_pixel_splits, root), (open_class_splits, classes)):
        with pytest.raises(ValueError, match="all 2 images to score, such as .*, are training images, too"):
            open_splits(root=folder, **SPLITS)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": "aa", "val": "a"}, "all images to learn from are of the class a: with one class every score is"),
        ({"train": "ab", "val": "bb"}, "all images to score are of the class b"),
        ({"train": "abb", "val": "abc"}, "1 classes to score, such as c, have no training image"),
    ],
)
def test_classes_that_no_score_can_come_from_are_refused(tmp_path, splits, message):
    root = write_classes(tmp_path, **splits)
    (root / "train" / "c").mkdir()
    with pytest.raises(ValueError, match=message):
        open_class_splits(root=root, **SPLITS)


@pytest.mark.parametrize(("train", "val", "message"), [([0, 1], [0, -1], "-1 to 0"), ([0, 2], [0, 1], "0 to 2")])
def test_labels_outside_the_classes_are_refused(train, val, message):
    with pytest.raises(ValueError, match=f"labels from {message}, but the classes are 0 to 1"):
        check_classes(np.array(train), np.array(val), ("a", "b"))


def test_counts_are_told_in_words():
    counts = {"num_images": 1200, "num_classes_predicted": 0, "num_classes_in_labels": 9, "num_sequences": None}
    assert describe_counts({"miou": 3.0, **counts}) == "1,200 images, 9 classes in labels"


@pytest.mark.parametrize("name", ["retrieval", "knn", "discovery"])
def test_features_that_are_not_finite_have_no_score(tmp_path, backbone, params, name):
    damaged = jax.tree.map(lambda leaf: jnp.full_like(leaf, np.nan), params)
    features, overrides = FrozenFeatures(backbone, damaged), {}
    if name == "discovery":
        write_voc_boxes(tmp_path, [np.zeros((8, 8, 3))], [[(1, 1, 4, 4, "0")]])
    elif name == "knn":
        write_classes(tmp_path, train="ab", val="ab")
        overrides = {"knn__resize": 16, "knn__image_size": 16}
    else:
        write_pixels(tmp_path, [0, 1], [0, 1])
        overrides = {"retrieval__image_size": (8, 8)}
    with pytest.raises(ValueError, match="the features of .* are not finite: the weights hold NaN"):
        score(name, features, dataset__root=tmp_path, **overrides)

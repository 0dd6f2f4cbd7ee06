"""Halves of the images to score: settings are chosen on one, results published on the other."""

import numpy as np
import pytest

from croc_jax.data.labeled import open_labeled
from croc_jax.evaluation import find_protocols
from croc_jax.evaluation.datasets import choose_part, describe_pixels, scored_files, take_part
from tests.data.tiny_sets import save

PIXELS = ("knn_segmentation", "linear", "linear_crops", "logreg", "retrieval", "unsupervised")


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """Three training and five validation images, listed in another order than that of their names."""
    root = tmp_path_factory.mktemp("pixels")
    for split, count in (("train", 3), ("val", 5)):
        for index in range(count):
            image = np.random.default_rng([count, index]).integers(0, 256, (8, 8, 3))
            save(root / "images" / split / f"{index}.png", image)
            save(root / "labels" / split / f"{index}.png", np.arange(64).reshape(8, 8) % 2)
    return root


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three videos of two frames."""
    root = tmp_path_factory.mktemp("videos")
    for name in ("c", "a", "b"):
        for frame in range(2):
            save(root / "images" / name / f"{frame}.png", np.zeros((8, 8, 3)))
            save(root / "masks" / name / f"{frame}.png", np.arange(64).reshape(8, 8) % 2)
    return root


def names(files):
    return {f"{file.parent.name}/{file.stem}" for file in files}


@pytest.mark.parametrize("name", PIXELS)
def test_halves_and_training_images_are_disjoint_and_nothing_is_missing(pixels, name):
    splits = {"train_split": "train", "val_split": "val"}

    def open_part(part):
        return find_protocols()[name].open_dataset(root=str(pixels), **splits, val_part=part)

    parts = {part: names(scored_files(open_part(part))) for part in ("all", "tuning", "reporting")}
    assert parts["tuning"] == {"val/0", "val/1"} and parts["reporting"] == {"val/2", "val/3", "val/4"}
    assert parts["all"] == parts["tuning"] | parts["reporting"]
    for part in parts if name != "unsupervised" else ():
        train = names(pair.image for pair in open_part(part).train.pairs)
        assert len(train) == 3 and not train & parts["all"]


def test_videos_are_halved_whole(videos):
    def open_part(part):
        return find_protocols()["video"].open_dataset(root=videos, split="val", val_part=part)

    parts = {part: names(scored_files(open_part(part))) for part in ("all", "tuning", "reporting")}
    assert parts["tuning"] == {"a/0", "a/1"} and parts["reporting"] == {"b/0", "b/1", "c/0", "c/1"}
    assert parts["all"] == parts["tuning"] | parts["reporting"]


def test_a_half_has_a_fingerprint_of_its_own_and_all_images_the_one_they_had(pixels):
    split = open_labeled(str(pixels), "val")
    assert take_part(split, "all") is split
    described = {part: describe_pixels(take_part(split, part)) for part in ("all", "tuning", "reporting")}
    assert described["all"]["val_split"] == "val" and described["all"]["num_val"] == 5
    assert described["tuning"]["val_split"] == "val[tuning half]" and described["tuning"]["num_val"] == 2
    assert len({one["digest"] for one in described.values()}) == 3


@pytest.mark.parametrize(
    ("part", "words"), [("test", "val_part='test': choose 'all', 'tuning', 'reporting'"), ("tuning", "1 to score")]
)
def test_other_parts_and_single_images_are_refused(part, words):
    with pytest.raises(ValueError, match=words):
        choose_part(["one"], part)

"""Segmentation folders are listed, checked and loaded as their contract says."""

import numpy as np
import pytest
from PIL import Image

from croc_jax.data.labeled.davis import open_videos
from croc_jax.data.labeled.segmentation import open_segmentation

RNG = np.random.default_rng(0)


def write_pair(root, split, stem, image, label, suffix=".png"):
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / "images" / split / f"{stem}{suffix}")
    if label is not None:
        Image.fromarray(label).save(root / "labels" / split / f"{stem}.png")


def random_pair(size=(6, 8), num_classes=3):
    image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    label = RNG.integers(0, num_classes, size, dtype=np.uint8)
    label.flat[: num_classes + 1] = [*range(num_classes), 255]
    return image, label


@pytest.fixture
def folder(tmp_path):
    """Two training pairs and one validation pair, three classes."""
    pairs = {}
    for split, stems in (("train", "ba"), ("val", "c")):
        for stem in stems:
            pairs[split, stem] = random_pair()
            write_pair(tmp_path, split, stem, *pairs[split, stem])
    return tmp_path, pairs


def test_pairs_are_sorted_by_name_and_loaded_unchanged(folder):
    root, pairs = folder
    split = open_segmentation(root, "train")
    assert [pair.image.stem for pair in split.pairs] == ["a", "b"] and len(split) == 2
    for index, stem in enumerate("ab"):
        image, label = split.load(index)
        np.testing.assert_array_equal(image, pairs["train", stem][0])
        np.testing.assert_array_equal(label, pairs["train", stem][1])


def test_number_of_classes_comes_from_training_labels_names_or_the_caller(folder):
    root, _ = folder
    assert open_segmentation(root, "val").num_classes == 3
    assert open_segmentation(root, "val").class_names == ("0", "1", "2")
    assert open_segmentation(root, "val", num_classes=7).num_classes == 7
    (root / "classes.txt").write_text("sky\nroad\ncar\ntree\n")
    split = open_segmentation(root, "val")
    assert split.num_classes == 4 and split.class_names == ("sky", "road", "car", "tree")


def test_palette_labels_are_read_as_ids(folder):
    root, pairs = folder
    label = Image.fromarray(pairs["val", "c"][1]).convert("P")
    label.putpalette(list(range(256))[::-1] * 3)
    label.save(root / "labels" / "val" / "c.png")
    stored = np.asarray(Image.open(root / "labels" / "val" / "c.png"))
    np.testing.assert_array_equal(open_segmentation(root, "val").load(0)[1], stored)


def test_labels_are_resized_to_the_nearest_pixel_center(folder):
    root, pairs = folder
    label = pairs["val", "c"][1]
    for size in ((3, 4), (12, 16), (4, 32)):
        resized = open_segmentation(root, "val").load(0, label_size=size)[1]
        rows, columns = (((np.arange(n) + 0.5) * old / n).astype(int) for n, old in zip(size, (6, 8), strict=True))
        np.testing.assert_array_equal(resized, label[rows][:, columns])


def test_images_are_resized_without_aliasing(tmp_path):
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 254
    write_pair(tmp_path, "train", "a", stripes, np.eye(32, dtype=np.uint8))
    image, label = open_segmentation(tmp_path, "train").load(0, image_size=(8, 8))
    assert image.shape == (8, 8, 3) and label.shape == (32, 32)
    np.testing.assert_allclose(image.astype(float)[:, 1:-1], 127, atol=2)


def test_batches_keep_the_order_and_their_size(folder):
    root, pairs = folder
    write_pair(root, "train", "d", *random_pair())
    split = open_segmentation(root, "train")
    batches = list(split.batches(2, image_size=(6, 8), label_size=None))
    assert [batch.images.shape for batch in batches] == [(2, 6, 8, 3)] * 2
    assert [len(batch.labels) for batch in batches] == [2, 1]
    np.testing.assert_array_equal(batches[0].images[1], pairs["train", "b"][0])
    np.testing.assert_array_equal(batches[0].labels[0], pairs["train", "a"][1])
    assert batches[1].images[0].any() and not batches[1].images[1].any()


def error_of(root, split="train", **settings):
    """Opens and reads a whole split; returns the message, which must be one line."""
    with pytest.raises(ValueError) as caught:
        split = open_segmentation(root, split, **settings)
        for index in range(len(split)):
            split.load(index)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_or_empty_split_is_named(folder):
    root, _ = folder
    assert f"no folder {root / 'images' / 'test'}" in error_of(root, "test")
    (root / "images" / "test").mkdir()
    assert f"no folder {root / 'labels' / 'test'}" in error_of(root, "test")
    (root / "labels" / "test").mkdir()
    assert f"no images in {root / 'images' / 'test'}" in error_of(root, "test")


def test_pairs_that_cannot_be_used_are_named(folder):
    root, pairs = folder
    labels, images = root / "labels" / "train", root / "images" / "train"
    assert "a.png holds class 2, but the data set has 2 classes" in error_of(root, num_classes=2)
    Image.fromarray(np.zeros((4, 8), np.uint8)).save(labels / "b.png")
    message = error_of(root)
    assert "labels/train/b.png has 4 x 8" in message and "images/train/b.png has 6 x 8" in message
    (labels / "b.png").unlink()
    message = error_of(root)
    assert str(labels / "b.png") in message and "images/train/b.png" in message
    Image.fromarray(pairs["train", "a"][0]).save(images / "a.jpg")
    assert "a.png and a.jpg" in error_of(root)
    (images / "a.jpg").unlink()
    Image.fromarray(pairs["train", "b"][1]).save(labels / "b.png")
    Image.fromarray(pairs["train", "a"][0]).save(labels / "a.png")
    assert "labels/train/a.png has pixels of mode RGB" in error_of(root)
    (labels / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")
    assert f"cannot read {labels / 'a.png'}" in error_of(root)
    Image.fromarray(pairs["train", "a"][1]).save(labels / "a.png")
    (images / "b.png").write_bytes(b"\x89PNG but no more")
    assert f"cannot read {images / 'b.png'}" in error_of(root)


def test_names_and_number_of_classes_must_agree(folder):
    root, _ = folder
    (root / "classes.txt").write_text("sky\nroad\n")
    assert "classes.txt names 2 classes, but num_classes=3" in error_of(root, num_classes=3)


@pytest.mark.parametrize(("values", "held"), [((255,), "255"), ((0, 255), "0 or 255")])
def test_labels_of_no_or_one_class_are_refused(tmp_path, values, held):
    write_pair(tmp_path, "train", "a", random_pair()[0], np.resize(np.array(values, np.uint8), (6, 8)))
    assert f"all labels in {tmp_path}/labels/train are {held}, and 255 is ignored" in error_of(tmp_path)
    assert open_segmentation(tmp_path, "train", num_classes=2).num_classes == 2


def test_images_are_decoded_as_in_training(tmp_path):
    deep = (np.arange(48, dtype=np.uint16) * 1300).reshape(6, 8)
    write_pair(tmp_path, "train", "a", deep, random_pair()[1])
    image, _ = open_segmentation(tmp_path, "train").load(0)
    np.testing.assert_array_equal(image, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=-1))


def test_open_videos_orders_frames_by_number_and_needs_objects(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind / "dog").mkdir(parents=True)
    for number in range(12):
        Image.fromarray(random_pair()[0]).save(tmp_path / "images" / "dog" / f"{number}.jpg")
    mask = np.zeros((6, 8), np.uint8)
    for value, stem in ((1, "0"), (1, "10")):
        mask[2:4] = value
        Image.fromarray(mask).save(tmp_path / "masks" / "dog" / f"{stem}.png")
    (video,) = open_videos(tmp_path)
    assert [frame.stem for frame in video.frames] == [str(number) for number in range(12)]
    assert {number: file.stem for number, file in video.masks.items()} == {0: "0", 10: "10"}
    mask[2:4] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / "dog" / "0.png")
    with pytest.raises(ValueError, match=r"dog/0\.png holds no object, only 255, which is ignored: number objects"):
        open_videos(tmp_path)

"""Class folders are listed, checked, cropped and batched as their contract says."""

import numpy as np
import pytest
from PIL import Image

from croc_jax.data.labeled.classes import center_crop, open_class_folder, open_classes
from tests.data.tiny_sets import save


def write(root, *paths):
    """Writes images of one color, 10 times their number."""
    for number, path in enumerate(paths):
        save(root / path, np.full((6, 8, 3), 10 * number))
    return root


@pytest.fixture
def folder(tmp_path):
    return write(
        tmp_path, "train/cat/b.png", "train/cat/a.png", "train/ant/deep/c.png", "val/cat/d.png", "val/cat/e.png"
    )


def test_classes_are_the_training_folders_sorted_by_name(folder):
    train, val = open_class_folder(folder, "train"), open_class_folder(folder, "val")
    assert train.class_names == val.class_names == ("ant", "cat") and train.num_classes == 2
    np.testing.assert_array_equal(train.labels, [0, 1, 1])
    np.testing.assert_array_equal(val.labels, [1, 1])
    means = [train.load(index, resize=4, image_size=4).mean() for index in range(len(train))]
    assert means == [20, 10, 0]


def test_a_folder_is_named_with_or_without_its_kind(folder):
    for spec in (folder, f"folder:{folder}"):
        assert len(open_classes(spec, "val")) == 2


@pytest.mark.parametrize(("size", "resize", "image_size"), [((90, 61), 40, 32), ((61, 90), 40, 32), ((50, 50), 33, 20)])
def test_crops_equal_torchvision_s(size, resize, image_size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    cropped = center_crop(Image.fromarray(pixels), resize=resize, image_size=image_size)
    scale = resize / min(size)
    width, height = (resize if side == min(size) else int(resize * side / min(size)) for side in size)
    assert abs(width - size[0] * scale) < 1 and abs(height - size[1] * scale) < 1
    left, top = int(round((width - image_size) / 2.0)), int(round((height - image_size) / 2.0))
    box = (left, top, left + image_size, top + image_size)
    expected = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).crop(box)
    np.testing.assert_array_equal(cropped, expected)


def test_batches_keep_the_order_and_their_size(folder):
    train = open_class_folder(folder, "train")
    batches = list(train.batches(2, resize=6, image_size=4))
    assert [batch.images.shape for batch in batches] == [(2, 4, 4, 3)] * 2
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in batches]), train.labels)
    assert [batch.images[0].mean() for batch in batches] == [20, 0] and not batches[1].images[1].any()


def error_of(root, split):
    with pytest.raises(ValueError) as caught:
        opened = open_class_folder(root, split)
        for index in range(len(opened)):
            opened.load(index, resize=4, image_size=4)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_used_is_named(folder):
    assert f"no folder {folder / 'test'}" in error_of(folder, "test")
    (folder / "test").mkdir()
    assert f"no folders in {folder / 'test'}" in error_of(folder, "test")
    (folder / "test" / "cat").mkdir()
    assert f"no images in {folder / 'test'}" in error_of(folder, "test")
    write(folder, "test/cow/a.png")
    assert f"{folder / 'test' / 'cow'} is no class of {folder / 'train'}" in error_of(folder, "test")
    write(folder, "val/stray.png")
    assert f"{folder / 'val' / 'stray.png'} lies outside" in error_of(folder, "val")
    (folder / "train" / "cat" / "a.png").write_bytes(b"no image")
    assert f"cannot read {folder / 'train' / 'cat' / 'a.png'}" in error_of(folder, "train")

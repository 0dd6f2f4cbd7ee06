"""Segmentation folders, class folders, boxes and videos are listed, checked and loaded as their contract says."""

import numpy as np
import pytest
from PIL import Image

from croc_jax.data.labeled.boxes import open_voc_boxes
from croc_jax.data.labeled.classes import center_crop, open_class_folder, open_classes
from croc_jax.data.labeled.davis import open_videos
from croc_jax.data.labeled.segmentation import open_segmentation
from tests.data.tiny_sets import error_of, image, save, write_text, write_voc_boxes

RNG = np.random.default_rng(0)


def random_pair(size=(6, 8), num_classes=3):
    pixels = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = RNG.integers(0, num_classes, size, dtype=np.uint8)
    labels.flat[: num_classes + 1] = [*range(num_classes), 255]
    return pixels, labels


def write_pair(root, split, stem, pixels, labels):
    save(root / "images" / split / f"{stem}.png", pixels)
    save(root / "labels" / split / f"{stem}.png", labels)
    return pixels, labels


@pytest.fixture
def folder(tmp_path):
    """Two training pairs and one validation pair, three classes."""
    stems = (("train", "b"), ("train", "a"), ("val", "c"))
    return tmp_path, {(split, stem): write_pair(tmp_path, split, stem, *random_pair()) for split, stem in stems}


def test_pairs_are_sorted_by_name_and_loaded_unchanged(folder):
    root, pairs = folder
    split = open_segmentation(root, "train")
    assert [pair.image.stem for pair in split.pairs] == ["a", "b"] and len(split) == 2
    for index, stem in enumerate("ab"):
        for found, expected in zip(split.load(index), pairs["train", stem], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_number_of_classes_comes_from_training_labels_names_or_the_caller(folder):
    root, _ = folder
    assert open_segmentation(root, "val").class_names == ("0", "1", "2")
    assert open_segmentation(root, "val", num_classes=7).num_classes == 7
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (root / "classes.txt").write_text("# mine\r\nsky\r\nroad\n\ncar\ntree\x1a", encoding=encoding)
        split = open_segmentation(root, "val")
        assert split.num_classes == 4 and split.class_names == ("sky", "road", "car", "tree")


def add_sidecars(*folders):
    """Writes, into each folder, what is neither image, class, label nor frame."""
    for folder in folders:
        for path in ("._a.png", ".DS_Store", "Thumbs.db", "@eaDir/a.png", ".ipynb_checkpoints/a.png", "note.txt"):
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"no image")


def test_a_segmentation_folder_holds_more_than_pairs(folder, caplog):
    root, pairs = folder
    images, labels = root / "images" / "val", root / "labels" / "val"
    add_sidecars(images, labels, root / "images", root / "labels")
    for kind in ("TIF", "bmp", "PNG"):
        save(images / f"{kind}.{kind}", pairs["val", "c"][0])
        save(labels / f"{kind}.{kind}", pairs["val", "c"][1])
    save(labels / "spare.png", pairs["val", "c"][1])
    split = open_segmentation(root, "val", num_classes=3)
    assert [(pair.image.name, pair.label.name) for pair in split.pairs] == [
        (name, name) for name in ("PNG.PNG", "TIF.TIF", "bmp.bmp", "c.png")
    ]
    np.testing.assert_array_equal(split.load(1)[1], pairs["val", "c"][1])
    open_segmentation(root, "val", num_classes=3)
    assert [record.getMessage() for record in caplog.records] == [
        f"{images}: 4 files are read, 6 are left out: 1 .txt, 5 hidden or of the system",
        f"{labels}: 4 files are read, 7 are left out: 1 .txt, 5 hidden or of the system, 1 labels without an image",
    ]


def test_palette_labels_and_deep_images_are_read_as_stored(folder):
    root, pairs = folder
    label = Image.fromarray(pairs["val", "c"][1]).convert("P")
    label.putpalette(list(range(256))[::-1] * 3)
    label.save(root / "labels" / "val" / "c.png")
    deep = (np.arange(48, dtype=np.uint16) * 1300).reshape(6, 8)
    Image.fromarray(deep).save(root / "images" / "val" / "c.png")
    pixels, labels = open_segmentation(root, "val").load(0)
    np.testing.assert_array_equal(labels, np.asarray(Image.open(root / "labels" / "val" / "c.png")))
    # As the decoder of training does.
    np.testing.assert_array_equal(pixels, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=-1))


def test_labels_are_resized_to_the_nearest_pixel_center_and_images_without_aliasing(folder):
    root, pairs = folder
    for size in ((3, 4), (12, 16), (4, 32)):
        resized = open_segmentation(root, "val").load(0, label_size=size)[1]
        rows, columns = (((np.arange(n) + 0.5) * old / n).astype(int) for n, old in zip(size, (6, 8), strict=True))
        np.testing.assert_array_equal(resized, pairs["val", "c"][1][rows][:, columns])
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 254
    write_pair(root, "val", "c", stripes, np.eye(32, dtype=np.uint8))
    pixels, labels = open_segmentation(root, "val").load(0, image_size=(8, 8))
    assert pixels.shape == (8, 8, 3) and labels.shape == (32, 32)
    np.testing.assert_allclose(pixels.astype(float)[:, 1:-1], 127, atol=2)


def test_batches_keep_the_order_and_their_size(folder):
    root, pairs = folder
    write_pair(root, "train", "d", *random_pair())
    batches = list(open_segmentation(root, "train").batches(2, image_size=(6, 8), label_size=None))
    assert [batch.images.shape for batch in batches] == [(2, 6, 8, 3)] * 2
    assert [len(batch.labels) for batch in batches] == [2, 1]
    np.testing.assert_array_equal(batches[0].images[1], pairs["train", "b"][0])
    np.testing.assert_array_equal(batches[0].labels[0], pairs["train", "a"][1])
    assert batches[1].images[0].any() and not batches[1].images[1].any()


def test_what_a_segmentation_folder_lacks_is_named(folder):
    root, pairs = folder
    labels, images = root / "labels" / "train", root / "images" / "train"

    def error(split="train", **settings):
        return error_of(lambda: open_segmentation(root, split, **settings))

    assert f"no folder {root / 'images' / 'test'}" in error("test")
    (root / "images" / "test").mkdir()
    assert f"no folder {root / 'labels' / 'test'}" in error("test")
    (root / "labels" / "test").mkdir()
    assert f"no images in {root / 'images' / 'test'}" in error("test")
    assert "a.png holds class 2, but the data set has 2 classes" in error(num_classes=2)
    save(labels / "b.png", np.zeros((4, 8)))
    assert "labels/train/b.png has 4 x 8" in error() and "images/train/b.png has 6 x 8" in error()
    (labels / "b.png").unlink()
    assert f"no labels {labels / 'b.png'} for {images / 'b.png'}" in error()
    save(images / "a.jpg", pairs["train", "a"][0])
    assert f"{images}/a.jpg and a.png have the same stem" in error()
    (images / "a.jpg").unlink()
    save(labels / "a.bmp", pairs["train", "a"][1])
    assert f"{labels}/a.bmp and a.png have the same stem" in error()
    (labels / "a.bmp").unlink()
    save(labels / "b.png", pairs["train", "b"][1])
    save(labels / "a.png", pairs["train", "a"][0])
    assert "labels/train/a.png has pixels of mode RGB" in error()
    (labels / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")
    assert f"cannot read {labels / 'a.png'}" in error()
    save(labels / "a.png", pairs["train", "a"][1])
    (images / "b.png").write_bytes(b"\x89PNG but no more")
    assert f"cannot read {images / 'b.png'}" in error()
    (root / "classes.txt").write_text("sky\nroad\n")
    assert "classes.txt names 2 classes, but num_classes=3" in error(num_classes=3)
    (root / "classes.txt").write_text("sky\n\nroad\nsky\n")
    assert "classes.txt, line 4, 'sky': line 1 names it already" in error()


HELD = [((255,), "255"), ((0, 255), "0 or 255"), ((3, 255), "3 or 255"), ((1,), "1")]


@pytest.mark.parametrize(("values", "held"), HELD)
def test_labels_of_no_or_one_class_are_refused(tmp_path, values, held):
    write_pair(tmp_path, "train", "a", random_pair()[0], np.resize(np.array(values, np.uint8), (6, 8)))
    message = f"all labels in {tmp_path}/labels/train are {held}, and 255 is ignored"
    assert message in error_of(lambda: open_segmentation(tmp_path, "train"))
    assert open_segmentation(tmp_path, "train", num_classes=4).num_classes == 4


@pytest.mark.parametrize("values", [(0, 100, 200), (0, 128), (38, 75, 113, 255)])
def test_labels_without_most_ids_need_a_number_of_classes(tmp_path, values):
    write_pair(tmp_path, "train", "a", random_pair()[0], np.resize(np.array(values, np.uint8), (6, 8)))
    ids = [value for value in values if value != 255]
    message = error_of(lambda: open_segmentation(tmp_path, "train"))
    assert f"of {max(ids) + 1} classes (0 to {max(ids)}) {max(ids) + 1 - len(ids)} never occur" in message
    assert f"number the classes 0 to {len(ids) - 1}, or set num_classes={max(ids) + 1}" in message
    assert open_segmentation(tmp_path, "train", num_classes=max(ids) + 1).num_classes == max(ids) + 1


def test_open_videos_orders_frames_by_number(tmp_path, caplog):
    for number in range(12):
        save(tmp_path / "images" / "dog" / f"{number}.jpg", random_pair()[0])
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4] = 1
    for stem in ("0", "10"):
        save(tmp_path / "masks" / "dog" / f"{stem}.png", mask)
    (video,) = open_videos(tmp_path)
    assert [frame.stem for frame in video.frames] == [str(number) for number in range(12)]
    assert {number: file.stem for number, file in video.masks.items()} == {0: "0", 10: "10"}
    add_sidecars(tmp_path / "images", tmp_path / "images" / "dog", tmp_path / "masks", tmp_path / "masks" / "dog")
    (tmp_path / "masks" / "dog" / "10.png").rename(tmp_path / "masks" / "dog" / "10.PNG")
    assert open_videos(tmp_path)[0].frames == video.frames and open_videos(tmp_path)[0].masks.keys() == {0, 10}
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == f"{tmp_path}: 24 are left out: 4 .txt, 20 hidden or of the system"
    for second in ("3.PNG", "003.jpg"):
        save(tmp_path / "images" / "dog" / second, random_pair()[0])
        with pytest.raises(ValueError, match=r"dog/(003|3)\.\w+ and (003|3)\.\w+ are the same frame: remove one"):
            open_videos(tmp_path)
        (tmp_path / "images" / "dog" / second).unlink()


def test_the_list_of_davis_is_read_with_care(tmp_path):
    frames, masks = tmp_path / "JPEGImages" / "480p", tmp_path / "Annotations" / "480p"
    for stem in ("frame_10", "frame_9", "frame_0100"):
        save(frames / "dog 1" / f"{stem}.jpg", random_pair()[0])
    save(masks / "dog 1" / "frame_9.png", np.eye(6, 8))
    listed = tmp_path / "ImageSets" / "2017" / "val.txt"
    write_text(listed, "\ufeffdog 1\r\n\r\n# bear\r\n\x1a")
    (video,) = open_videos(tmp_path)
    assert [frame.stem for frame in video.frames] == ["frame_9", "frame_10", "frame_0100"]
    for text, message in (("dog 1\ncat\n", r"val\.txt, line 2, 'cat': no folder"), ("dog 1\ndog 1", "line 2, 'dog 1'")):
        write_text(listed, text)
        with pytest.raises(ValueError, match=message):
            open_videos(tmp_path)


@pytest.fixture
def classes(tmp_path):
    """Images of one color, 10 times their number, in two classes."""
    paths = ("train/cat/b.png", "train/cat/a.png", "train/ant/deep/c.png", "val/cat/d.png", "val/cat/e.png")
    for number, path in enumerate(paths):
        save(tmp_path / path, np.full((6, 8, 3), 10 * number))
    return tmp_path


def test_classes_are_the_training_folders_sorted_by_name(classes):
    add_sidecars(classes, *(classes / split / name for split in ("train", "val") for name in ("", "cat")))
    train, val = open_class_folder(classes, "train"), open_classes(f"folder:{classes}", "val")
    assert train.class_names == val.class_names == ("ant", "cat") and train.num_classes == 2
    assert [val.label_of(index) for index in range(2)] == [1, 1] and len(open_classes(classes, "val")) == 2
    batches = list(train.batches(2, resize=6, image_size=4))
    assert [batch.images.shape for batch in batches] == [(2, 4, 4, 3)] * 2
    assert [batch.labels for batch in batches] == [[0, 1], [1]]
    assert [image.mean() for batch in batches for image in batch.images] == [20, 10, 0, 0]


@pytest.mark.parametrize(("size", "resize", "image_size"), [((90, 61), 40, 32), ((61, 90), 40, 32), ((50, 50), 33, 20)])
def test_center_crop_equals_torchvision_s(size, resize, image_size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    width, height = (resize if side == min(size) else int(resize * side / min(size)) for side in size)
    left, top = int(round((width - image_size) / 2.0)), int(round((height - image_size) / 2.0))
    box = (left, top, left + image_size, top + image_size)
    expected = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).crop(box)
    np.testing.assert_array_equal(center_crop(pixels, resize=resize, image_size=image_size), expected)


def test_what_a_class_folder_lacks_is_named(classes):
    def error(split):
        return error_of(lambda: open_class_folder(classes, split), resize=4, image_size=4)

    assert f"no folder {classes / 'test'}" in error("test")
    (classes / "test").mkdir()
    assert f"no folders in {classes / 'test'}" in error("test")
    (classes / "test" / "cat").mkdir()
    assert f"no images in {classes / 'test'}" in error("test")
    save(classes / "test/cow/a.png", image(0))
    assert f"{classes / 'test' / 'cow'} is no class of {classes / 'train'}" in error("test")
    save(classes / "val/stray.png", image(0))
    assert f"{classes / 'val' / 'stray.png'} lies outside" in error("val")
    (classes / "train" / "cat" / "a.png").write_bytes(b"no image")
    assert f"cannot read {classes / 'train' / 'cat' / 'a.png'}" in error("train")


BOXES = [[(2, 1, 4, 3, "0"), (1, 1, 6, 4, "1")], [(1, 2, 3, 4, "1")]]


def test_boxes_count_from_zero_with_exclusive_ends(tmp_path):
    folder = write_voc_boxes(tmp_path, [image(0), image(5)], BOXES)
    for root in (tmp_path, tmp_path / "VOCdevkit", folder):
        split = open_voc_boxes(root)
        pixels, boxes = split.load(0)
        np.testing.assert_array_equal(boxes, [[1, 0, 4, 3], [0, 0, 6, 4]])
        assert pixels.shape == (4, 6, 3) and split.load(1)[0].mean() == pytest.approx(50, abs=1) and len(split) == 2
    easy = open_voc_boxes(tmp_path, hard=False)
    np.testing.assert_array_equal(easy.load(0)[1], [[1, 0, 4, 3]])
    assert easy.load(1)[1].shape == (0, 4)


def test_what_voc_with_boxes_lacks_is_named(tmp_path):
    def error(split="trainval", **settings):
        return error_of(lambda: open_voc_boxes(tmp_path, split, **settings))

    assert f"no folder {tmp_path / 'Annotations'}" in error() and "VOCtrainval_06-Nov-2007.tar" in error()
    assert "VOCtrainval_11-May-2012.tar" in error(year=2012) and "year=2010" in error(year=2010)
    folder = write_voc_boxes(tmp_path, [image(0), image(5)], BOXES)
    assert f"no list {folder / 'ImageSets' / 'Main' / 'test.txt'}" in error("test")
    for broken in (
        "<annotation><object></object></annotation>",
        "<annotation><object>",
        '<?xml version="1.0" encoding="no"?>',
    ):
        write_text(folder / "Annotations" / "000001.xml", broken)
        assert f"cannot read the boxes of {folder / 'Annotations' / '000001.xml'}" in error()
    for wrong, message in (
        ((4, 1, 2, 3, "0"), "000001.xml has the box xmin=4, ymin=1, xmax=2, ymax=3: xmin and ymin must not exceed"),
        ((1, 4, 2, 2, "0"), "has the box xmin=1, ymin=4, xmax=2, ymax=2: xmin and ymin must not exceed"),
        ((1, 1, "nan", 2, "0"), "has the box xmin=1, ymin=1, xmax=nan, ymax=2: xmin"),
        ((1, 1, 60, 40, "0"), "has the box xmin=1, ymin=1, xmax=60, ymax=40, but"),
        ((-9, 1, 2, 2, "0"), "000001.jpg has 6 x 4, width x height"),
    ):
        write_voc_boxes(tmp_path, [image(0), image(5)], [BOXES[0], [wrong]])
        assert message in error()
    for size, refused in (("<width>12</width><height>8</height>", True), ("<width>0</width><height>0</height>", False)):
        write_text(folder / "Annotations" / "000001.xml", f"<annotation><size>{size}</size></annotation>")
        if refused:
            assert "000001.xml is about 12 x 8 pixels, but" in error()
        else:
            assert len(open_voc_boxes(tmp_path).load(1)[1]) == 0
    (folder / "Annotations" / "000000.xml").unlink()
    assert f"no labels {folder / 'Annotations' / '000000.xml'}" in error()
    write_text(folder / "ImageSets" / "Main" / "trainval.txt", "\n")
    assert "trainval.txt names no images" in error()

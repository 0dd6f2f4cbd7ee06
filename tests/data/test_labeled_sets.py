"""Labeled data sets are read as their owners ship them, and what is missing is named with its origin."""

import json
import pickle

import numpy as np
import pytest

from croc_jax.data.labeled import KINDS, coco, open_labeled
from tests.data import tiny_sets
from tests.data.tiny_sets import (
    fill,
    save,
    write_ade20k,
    write_cityscapes,
    write_panoptic,
    write_pixelmaps,
    write_text,
    write_voc,
)


def error_of(spec, split, **settings):
    return tiny_sets.error_of(lambda: open_labeled(spec, split, **settings))


def stems(split):
    return [pair.image.stem for pair in split.pairs]


@pytest.mark.parametrize("inside", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_has_its_splits_wherever_the_root_points(tmp_path, inside):
    folder = write_voc(tmp_path)
    names = ("train", "val", "trainval", "trainaug")
    train, val, trainval, trainaug = (open_labeled(f"voc:{tmp_path / inside}", name) for name in names)
    assert stems(train) == ["2007_000032", "2007_000039"] and stems(val) == ["2007_000042"] and len(trainval) == 3
    assert (train.num_classes, len(train.class_names), train.kind, train.name) == (21, 21, "voc", "train")
    assert (train.class_names[0], train.class_names[15], train.class_names[20]) == ("background", "person", "tvmonitor")
    np.testing.assert_array_equal(val.load(0)[1], fill([0, 3, 255]))
    assert val.load(0)[0].mean() == pytest.approx(20, abs=1)
    # Other labels, and a list of paths.
    assert stems(trainaug) == ["2007_000032", "2007_000039", "2008_000002"]
    np.testing.assert_array_equal(trainaug.load(2)[1], fill([3, 20, 255]))
    (folder / "ImageSets/Segmentation/trainaug.txt").unlink()
    write_text(folder / "ImageSets/Segmentation/train_aug.txt", "\ufeff2008_000002\r\n\r\n# no name\r\n\x1a")
    assert stems(open_labeled(f"voc:{tmp_path}", "trainaug")) == ["2008_000002"]
    write_text(folder / "ImageSets/Segmentation/train_aug.txt", "2008_000002\n2007_000032\n\n2008_000002 -1\n")
    assert "train_aug.txt, line 4, '2008_000002': line 1 names it already" in error_of(f"voc:{tmp_path}", "trainaug")


def test_what_voc_lacks_is_named(tmp_path):
    spec = f"voc:{tmp_path}"
    assert f"no folder {tmp_path / 'JPEGImages'}: get http://host.robots" in error_of(spec, "val")
    folder = write_voc(tmp_path)
    assert "voc has no split 'test': choose one of train, val" in error_of(spec, "test")
    assert "voc has 21 classes" in error_of(spec, "val", num_classes=20)
    (folder / "SegmentationClass" / "2007_000042.png").unlink()
    message = error_of(spec, "val")
    assert f"no labels {folder / 'SegmentationClass' / '2007_000042.png'}" in message and "VOCtrainval" in message
    (folder / "JPEGImages" / "2008_000002.jpg").unlink()
    assert f"no image {folder / 'JPEGImages' / '2008_000002.jpg'}" in error_of(spec, "trainaug")
    (folder / "ImageSets/Segmentation/trainaug.txt").unlink()
    message = error_of(spec, "trainaug")
    assert "trainaug.txt" in message and "SegmentationClassAug.zip" in message and "10,582" in message
    save(folder / "SegmentationClass" / "2007_000039.png", fill([21]))
    assert "2007_000039.png holds class 21, but the data set has 21 classes" in error_of(spec, "train")


def test_coco_things_are_the_supercategories_sorted_by_name(tmp_path):
    write_panoptic(tmp_path)
    split = open_labeled(f"coco-things:{tmp_path}", "val")
    assert split.num_classes == 12 and list(split.class_names) == sorted(split.class_names)
    assert stems(split) == ["000000000139", "000000000140", "000000000141"]
    person = split.class_names.index("person")
    # Splits go to worker processes.
    for opened in (split, pickle.loads(pickle.dumps(split))):
        for index, other in enumerate(("vehicle", "indoor", "accessory")):
            expected = fill([person, split.class_names.index(other), 255, 255])
            np.testing.assert_array_equal(opened.load(index)[1], expected)
    assert person == 9


def test_what_coco_things_lacks_is_named(tmp_path):
    spec, file = f"coco-things:{tmp_path}", tmp_path / "annotations" / "panoptic_val2017.json"
    message = error_of(spec, "val")
    assert f"no file {file}: get http://images.cocodataset.org/annotations/panoptic_annotations_trainval" in message
    write_panoptic(tmp_path, extra_segment=301)
    assert "139.png holds segment 301, which its annotations do not list" in error_of(spec, "val")
    (tmp_path / "val2017" / "000000000140.jpg").unlink()
    message = error_of(spec, "val")
    assert "no image" in message and "000000000140.jpg" in message and "zips/val2017.zip" in message
    for text, message in (
        ('{"annotations": [], "categories": []}', "supercategories of things"),
        ('{"annotations": []}', "is no panoptic annotation (KeyError: 'categories')"),
        ('{"annotations": [', "cannot read"),
        ("[" * 100_000, "cannot read"),
    ):
        write_text(file, text)
        assert message in error_of(spec, "val")
    write_panoptic(tmp_path)
    content = json.loads(file.read_text())
    first, second, _ = content["annotations"]
    for change, message in (
        ({"file_name": second["file_name"]}, f"file_name {second['file_name']!r} occurs twice"),
        ({"file_name": f"val/{first['file_name']}"}, "is in a folder"),
        ({"segments_info": [{"id": -1, "category_id": 1}]}, "OverflowError"),
        ({"segments_info": 5}, "TypeError"),
    ):
        write_text(file, json.dumps(content | {"annotations": [first | change, second]}))
        message_found = error_of(spec, "val")
        assert f"{file} is no panoptic annotation" in message_found and message in message_found
    # As some editors save it.
    file.write_text(json.dumps(content), encoding="utf-8-sig")
    assert len(open_labeled(spec, "val")) == 3


def test_coco_stuff_is_without_other_and_things(tmp_path):
    write_pixelmaps(tmp_path, [92, 182, 106, 183, 0, 95])
    split = open_labeled(f"coco-stuff:{tmp_path}", "val")
    assert split.num_classes == 15 and list(split.class_names) == sorted(split.class_names)
    names = ["textile", "solid", "sky", None, None, "building"]
    expected = fill([255 if name is None else split.class_names.index(name) for name in names])
    np.testing.assert_array_equal(split.load(0)[1], expected)
    assert sorted(id_ for ids in coco.STUFF.values() for id_ in ids) == list(range(92, 183))


def test_what_coco_stuff_lacks_is_named(tmp_path):
    spec, folder = f"coco-stuff:{tmp_path}", tmp_path / "annotations" / "stuff_train2017_pixelmaps"
    message = error_of(spec, "train")
    assert f"no folder {folder}: get http://images" in message and "stuff_annotations_trainval2017.zip" in message
    write_pixelmaps(tmp_path, [92, 91], split="train")
    assert "000000000139.png holds id 91, which the data set does not have" in error_of(spec, "train")
    (tmp_path / "images" / "train2017").rename(tmp_path / "elsewhere")
    assert f"no folder {tmp_path / 'train2017'}: get http://images.cocodataset.org/zips" in error_of(spec, "train")


def test_ade20k_counts_from_one_and_ignores_zero(tmp_path, caplog):
    assert "ADEChallengeData2016.zip" in error_of(f"ade20k:{tmp_path}", "val")
    folder = write_ade20k(tmp_path, [0, 1, 150, 3])
    for spec, name in ((f"ade20k:{tmp_path}", "val"), (f"ade20k:{folder}", "validation")):
        split = open_labeled(spec, name)
        np.testing.assert_array_equal(split.load(0)[1], fill([255, 0, 149, 2]))
    assert split.num_classes == len(set(split.class_names)) == 150
    assert (split.class_names[0], split.class_names[12], split.class_names[149]) == ("wall", "person", "flag")
    for name in ("._ADE_val_00000001.jpg", ".ipynb_checkpoints/ADE_val_00000001.jpg", "Thumbs.db"):
        write_text(folder / "images" / "validation" / name, "no image")
    assert len(open_labeled(f"ade20k:{folder}", "val")) == 1
    assert "validation: 1 files are read, 3 are left out: 3 hidden or of the system" in caplog.records[-1].getMessage()
    write_ade20k(tmp_path, [151])
    assert "holds id 151" in error_of(f"ade20k:{tmp_path}", "val")
    assert f"no folder {folder / 'images' / 'training'}" in error_of(f"ade20k:{tmp_path}", "train")


def test_cityscapes_has_the_official_train_ids(tmp_path):
    spec = f"cityscapes:{tmp_path}"
    message = error_of(spec, "train")
    assert f"no folder {tmp_path / 'leftImg8bit' / 'train'}" in message and "https://www.cityscapes-dataset" in message
    write_cityscapes(tmp_path, [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33, 0, 29, 255])
    split = open_labeled(spec, "val")
    frames = ["aachen_000000_000019", "frankfurt_000000_000294", "frankfurt_000000_000576"]
    assert stems(split) == [f"{frame}_leftImg8bit" for frame in frames]
    np.testing.assert_array_equal(split.load(0)[1], fill([*range(19), 255, 255, 255]))
    assert split.class_names[0] == "road" and split.class_names[13] == "car" and split.num_classes == 19
    for name in (".DS_Store", "README.txt", "@eaDir/a_leftImg8bit.png", "aachen/._a_leftImg8bit.png"):
        write_text(tmp_path / "leftImg8bit" / "val" / name, "no image")
    assert len(open_labeled(spec, "val")) == 3
    write_cityscapes(tmp_path, [34])
    assert "labelIds.png holds id 34" in error_of(spec, "val")


def test_a_share_of_a_plain_folder_is_drawn_by_seed_alone(tmp_path):
    for index in range(20):
        save(tmp_path / "images/train" / f"{index:02d}.png", np.zeros((4, 6, 3)))
        save(tmp_path / "labels/train" / f"{index:02d}.png", fill([0, 1]))
    whole = open_labeled(f"folder:{tmp_path}", "train", num_classes=4)
    assert (whole.kind, whole.num_classes, whole.name) == ("folder", 4, "train")
    draws = [open_labeled(tmp_path, "train", fraction=0.1, seed=seed) for seed in (0, 0, 1)]
    assert [len(draw) for draw in draws] == [2, 2, 2] and draws[0].pairs == draws[1].pairs != draws[2].pairs
    assert stems(draws[0]) == sorted(stems(draws[0])) and set(stems(draws[0])) < set(stems(whole))
    assert draws[0].name == "train[10%, seed 0]" and len(open_labeled(tmp_path, "train", fraction=1e-9)) == 1
    for wrong in (0, 1.5):
        assert f"fraction={wrong}" in error_of(tmp_path, "train", fraction=wrong)


def test_specs_that_name_no_data_set():
    message = error_of("pascal:somewhere", "val")
    assert all(f"{kind}:ROOT" in message for kind in KINDS) and "'pascal'" in message
    assert "write voc:ROOT" in error_of("voc:", "val")

"""Data sets in their owners' layouts, small: the right files, the right classes, and what is missing by name."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from croc_jax.data.labeled import LabeledDataError
from croc_jax.data.segmentation_sets import CITYSCAPES_CLASSES, VOC_CLASSES, open_labeled

IDS = np.array([[0, 1, 2], [20, 150, 255]], np.uint8)


def write(file, pixels):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def write_image(file):
    write(file, np.zeros((2, 3, 3), np.uint8))


def text(file, contents):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(contents)


def voc(root, home="VOCdevkit/VOC2012"):
    base = root / home
    for name in ("2007_000032", "2007_000039"):
        write_image(base / "JPEGImages" / f"{name}.jpg")
        for folder in ("SegmentationClass", "SegmentationClassAug"):
            write(base / folder / f"{name}.png", np.where(IDS == 150, 255, IDS).astype(np.uint8))
    sets = base / "ImageSets" / "Segmentation"
    text(sets / "train.txt", "2007_000032\n")
    text(sets / "val.txt", "2007_000039\n\n")
    rows = [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in ("2007_000032", "2007_000039")]
    text(sets / "trainaug.txt", "\n".join(rows))
    return root / "VOCdevkit"


def ade20k(root):
    for folder in ("training", "validation"):
        write_image(root / "images" / folder / f"ADE_{folder}_1.jpg")
        write(root / "annotations" / folder / f"ADE_{folder}_1.png", np.where(IDS == 255, 0, IDS).astype(np.uint8))
    return root


def cityscapes(root):
    for split in ("train", "val"):
        for city in ("aachen", "ulm"):
            write_image(root / "leftImg8bit" / split / city / f"{city}_0_leftImg8bit.png")
            write(
                root / "gtFine" / split / city / f"{city}_0_gtFine_labelIds.png",
                np.array([[7, 0, 33], [8, 9, 11]], np.uint8),
            )
    return root


STUFF = [
    {"id": 92, "name": "banner", "supercategory": "textile"},
    {"id": 95, "name": "bridge", "supercategory": "building"},
    {"id": 183, "name": "other", "supercategory": "other"},
]


def coco(root):
    panoptic = {
        "categories": [
            {"id": 1, "isthing": 1, "supercategory": "person"},
            {"id": 3, "isthing": 1, "supercategory": "vehicle"},
            {"id": 95, "isthing": 0, "supercategory": "building"},
        ],
        "annotations": [
            {
                "file_name": "000000000139.png",
                "segments_info": [
                    {"id": 70000, "category_id": 3},
                    {"id": 500, "category_id": 1},
                    {"id": 7, "category_id": 95},
                ],
            },
            {"file_name": "000000000285.png", "segments_info": []},
        ],
    }
    numbers = np.array([[70000, 500, 7], [500, 0, 70000]])
    colors = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)
    for split in ("train", "val"):
        text(root / "annotations" / f"panoptic_{split}2017.json", json.dumps(panoptic))
        for name in ("000000000139", "000000000285"):
            write_image(root / f"{split}2017" / f"{name}.jpg")
            write(root / "annotations" / f"panoptic_{split}2017" / f"{name}.png", colors)
            stuff = np.array([[92, 95, 183], [0, 92, 255]], np.uint8)
            write(root / "annotations" / f"stuff_{split}2017_pixelmaps" / f"{name}.png", stuff)
    text(root / "annotations" / "stuff_val2017.json", json.dumps({"categories": STUFF}))
    return root


@pytest.mark.parametrize(
    "kind, make, count, names, expected",
    [
        ("voc", voc, 1, VOC_CLASSES, [[0, 1, 2], [20, 255, 255]]),
        ("ade20k", ade20k, 1, tuple(map(str, range(150))), [[255, 0, 1], [19, 149, 255]]),
        ("cityscapes", cityscapes, 2, tuple(CITYSCAPES_CLASSES), [[0, 255, 18], [1, 255, 2]]),
        ("coco-stuff", coco, 2, ("building", "textile"), [[1, 0, 255], [255, 1, 255]]),
        ("coco-things", coco, 2, ("person", "vehicle"), [[1, 0, 255], [0, 255, 1]]),
    ],
)
def test_layouts_and_classes(tmp_path, kind, make, count, names, expected):
    root = make(tmp_path)
    for name in ("train", "val"):
        split = pickle.loads(pickle.dumps(open_labeled(f"{kind}:{root}", name)))
        assert len(split) == count and split.class_names == names and split.num_classes == len(names)
        image, labels = split.load(0)
        assert image.shape == (2, 3, 3) and labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected)


def test_all_classes_are_there():
    assert len(VOC_CLASSES) == 21 and len(CITYSCAPES_CLASSES) == 19
    assert len(set(CITYSCAPES_CLASSES.values())) == 19


def test_an_image_without_segments_counts_nowhere(tmp_path):
    _, labels = open_labeled(f"coco-things:{coco(tmp_path)}", "val").load(1)
    assert (labels == 255).all()


def test_trainaug_takes_the_augmented_labels(tmp_path):
    split = open_labeled(f"voc:{voc(tmp_path)}", "trainaug")
    assert len(split) == 2 and all(pair.label.parent.name == "SegmentationClassAug" for pair in split.pairs)


def test_names_of_ade20k_come_from_its_own_list(tmp_path):
    rows = ["Idx\tRatio\tTrain\tVal\tName"] + [f"{i}\t0.1\t1\t1\tthing{i}, item" for i in range(1, 151)]
    text(ade20k(tmp_path) / "objectInfo150.txt", "\n".join(rows))
    assert open_labeled(f"ade20k:{tmp_path}", "val").class_names[:2] == ("thing1", "thing2")


def test_a_share_of_the_images_is_always_the_same(tmp_path):
    for index in range(20):
        write_image(tmp_path / "images" / "train" / f"{index:02d}.jpg")
        write(tmp_path / "labels" / "train" / f"{index:02d}.png", np.zeros((2, 3), np.uint8))
    whole = open_labeled(str(tmp_path), "train")
    part = open_labeled(f"folder:{tmp_path}", "train", share=0.1)
    assert len(whole) == 20 and len(part) == 2 and set(part.pairs) < set(whole.pairs)
    assert open_labeled(str(tmp_path), "train", share=0.1).pairs == part.pairs
    with pytest.raises(LabeledDataError, match="share=0: lies over 0"):
        open_labeled(str(tmp_path), "train", share=0)


@pytest.mark.parametrize(
    "kind, make, missing, message",
    [
        ("voc", voc, "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", "val.txt: get it from http.*pascal"),
        ("voc", voc, "VOCdevkit/VOC2012/SegmentationClass/2007_000039.png", "2007_000039.png: get it"),
        (
            "ade20k",
            ade20k,
            "annotations/validation/ADE_validation_1.png",
            "ADE_validation_1.png: .*ADEChallengeData2016",
        ),
        ("cityscapes", cityscapes, "gtFine/val/ulm/ulm_0_gtFine_labelIds.png", "labelIds.png: .*cityscapes"),
        ("coco-stuff", coco, "annotations/stuff_val2017.json", "stuff_val2017.json: .*cocodataset"),
        ("coco-things", coco, "val2017/000000000285.jpg", "000000000285.jpg: .*cocodataset"),
    ],
)
def test_missing_files_are_named_with_where_to_get_them(tmp_path, kind, make, missing, message):
    root = make(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(LabeledDataError, match=message):
        open_labeled(f"{kind}:{root}", "val")


def test_unknown_kinds_and_splits_are_named(tmp_path):
    with pytest.raises(LabeledDataError, match="unknown kind 'pascal'.*choose one of folder, voc"):
        open_labeled(f"pascal:{tmp_path}", "val")
    ade20k(tmp_path)
    with pytest.raises(LabeledDataError, match="no .*images/test"):
        open_labeled(f"ade20k:{tmp_path}", "test")

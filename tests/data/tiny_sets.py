"""Tiny labeled data sets in the folders and encodings of their owners."""

import json

import numpy as np
import pytest
from PIL import Image

SIZE = (4, 6)


def error_of(open_split, **load):
    """Opens and reads a split; returns the message, which must be one line."""
    with pytest.raises(ValueError) as caught:
        split = open_split()
        for index in range(len(split)):
            split.load(index, **load)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def image(number):
    """Returns an image of one color."""
    return np.full((*SIZE, 3), 10 * number, np.uint8)


def fill(ids):
    """Returns a label map that holds these ids in order, row by row, again and again."""
    return np.resize(np.array(ids), SIZE)


def save(file, array, *, palette=False):
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(array).astype(np.uint8))
    if palette:
        picture.putpalette([255 - value // 3 for value in range(768)])
    picture.save(file)


def write_text(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def write_voc(root):
    """VOCdevkit: two train, one val, and trainaug with another image and a list of paths."""
    folder = root / "VOCdevkit" / "VOC2012"
    stems = ("2007_000032", "2007_000039", "2007_000042", "2008_000002")
    lists = {"train": (1, 0), "val": (2,), "trainval": (0, 1, 2)}
    for index, stem in enumerate(stems):
        save(folder / "JPEGImages" / f"{stem}.jpg", image(index))
        save(folder / "SegmentationClassAug" / f"{stem}.png", fill([index, 20, 255]))
        if index < 3:
            save(folder / "SegmentationClass" / f"{stem}.png", fill([0, index + 1, 255]), palette=True)
    for name, chosen in lists.items():
        write_text(folder / "ImageSets" / "Segmentation" / f"{name}.txt", "".join(f"{stems[i]}\n" for i in chosen))
    paths = "".join(f"/JPEGImages/{stems[i]}.jpg /SegmentationClassAug/{stems[i]}.png\n" for i in (3, 0, 1))
    write_text(folder / "ImageSets" / "Segmentation" / "trainaug.txt", paths)
    return folder


# One category of each supercategory of things, with their official ids; then some stuff.
THINGS = {
    "person": 1, "vehicle": 3, "outdoor": 10, "animal": 17, "accessory": 27, "sports": 34, "kitchen": 44,
    "food": 52, "furniture": 62, "electronic": 72, "appliance": 78, "indoor": 84,
}  # fmt: skip


def write_panoptic(root, split="val", extra_segment=None):
    """Three images of COCO; each has a person, something else, stuff, and pixels of no segment."""
    categories = [{"id": id_, "name": name, "supercategory": name, "isthing": 1} for name, id_ in THINGS.items()]
    categories += [{"id": 187, "name": "sky-other-merged", "supercategory": "sky", "isthing": 0}]
    annotations, others = [], ("vehicle", "indoor", "accessory")
    for index, other in enumerate(others):
        stem = f"{139 + index:012d}"
        save(root / f"{split}2017" / f"{stem}.jpg", image(index))
        # Ids that need all three bytes, not in order.
        segments = {70_000 + index: 1, 300: THINGS[other], 5_000_000: 187}
        ids = fill([*segments, 0] + ([extra_segment] if extra_segment else []))
        save(
            root / f"annotations/panoptic_{split}2017/{stem}.png", np.stack([ids >> shift for shift in (0, 8, 16)], -1)
        )
        infos = [{"id": id_, "category_id": category, "iscrowd": 0} for id_, category in segments.items()]
        annotations.append({"image_id": 139 + index, "file_name": f"{stem}.png", "segments_info": infos})
    content = {"images": [], "annotations": annotations[::-1], "categories": categories}
    write_text(root / f"annotations/panoptic_{split}2017.json", json.dumps(content))


def write_pixelmaps(root, ids, split="val"):
    save(root / "images" / f"{split}2017" / "000000000139.jpg", image(1))
    save(root / f"annotations/stuff_{split}2017_pixelmaps/000000000139.png", fill(ids), palette=True)


def write_ade20k(root, ids, name="validation"):
    folder = root / "ADEChallengeData2016"
    stem = {"training": "ADE_train_00000001", "validation": "ADE_val_00000001"}[name]
    save(folder / "images" / name / f"{stem}.jpg", image(1))
    save(folder / "annotations" / name / f"{stem}.png", fill(ids))
    return folder


def write_cityscapes(root, ids, split="val"):
    """Two cities, two frames in the first."""
    for city, frame in (("frankfurt", 294), ("frankfurt", 576), ("aachen", 19)):
        stem = f"{city}_000000_{frame:06d}"
        save(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", image(1))
        for kind in ("labelIds", "instanceIds"):
            save(root / "gtFine" / split / city / f"{stem}_gtFine_{kind}.png", fill(ids))


def write_voc_boxes(root, images, boxes):
    """VOCdevkit of 2007 with boxes (xmin, ymin, xmax, ymax, difficult) as its XML files hold them."""
    folder = root / "VOCdevkit" / "VOC2007"
    for index, (pixels, objects) in enumerate(zip(images, boxes, strict=True)):
        save(folder / "JPEGImages" / f"{index:06d}.jpg", pixels)
        text = "".join(
            f"<object><name>cat</name><truncated>0</truncated><difficult>{hard}</difficult><bndbox><xmin>{left}</xmin>"
            f"<ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>\n"
            for left, top, right, bottom, hard in objects
        )
        write_text(folder / "Annotations" / f"{index:06d}.xml", f"<annotation>{text}</annotation>")
    write_text(folder / "ImageSets/Main/trainval.txt", "".join(f"{index:06d}\n" for index in range(len(images))))
    return folder

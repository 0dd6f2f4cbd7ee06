"""Cityscapes, 19 classes, as its two archives unpack: leftImg8bit and gtFine."""

from pathlib import Path

from croc_jax.data.labeled.label_files import IGNORED, RecodedIds
from croc_jax.data.labeled.listing import check_pairs, check_split, folders_in, names_in
from croc_jax.data.labeled.segmentation import LabeledPair, SegmentationSplit

# The id in *_labelIds.png of each class, in the order of the official train ids.
CLASSES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26,
    "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
CLASS_NAMES = tuple(CLASSES)
SPLITS = ("train", "val")
NUM_IDS = 34
REMEDY = (
    "get leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com/downloads/"
)


def open_cityscapes(root: str | Path, split: str) -> SegmentationSplit:
    """Lists Cityscapes' finely annotated images of all cities of a split.

    Args:
        root: holds leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_labelIds.png.
        split: "train" (2,975 images) or "val" (500).

    Raises:
        ValueError: for a missing file, with where to get it.
    """
    check_split(split, SPLITS, kind="cityscapes")
    remedy = f"{REMEDY} and unpack both in {root}"
    images, labels = (Path(root) / kind / split for kind in ("leftImg8bit", "gtFine"))
    suffix = "_leftImg8bit.png"
    pairs = (
        LabeledPair(images / city / f"{name}{suffix}", labels / city / f"{name}_gtFine_labelIds.png")
        for city in folders_in(images, remedy=remedy)
        for name in names_in(images / city, suffix=suffix, remedy=remedy)
    )
    ignored = dict.fromkeys((*range(NUM_IDS), IGNORED), IGNORED)
    recoded = RecodedIds(ignored | {id_: index for index, id_ in enumerate(CLASSES.values())})
    checked = check_pairs(pairs, remedy=remedy)
    return SegmentationSplit(Path(root), split, checked, CLASS_NAMES, recoded, "cityscapes")

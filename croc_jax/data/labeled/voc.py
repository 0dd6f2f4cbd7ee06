"""PASCAL VOC 2012 segmentation, 21 classes, as in VOCdevkit; trainaug with the labels of SBD."""

from pathlib import Path

from croc_jax.data.labeled.listing import check_pairs, check_split, find_root, read_names
from croc_jax.data.labeled.segmentation import LabeledPair, SegmentationSplit

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
SPLITS = ("train", "val", "trainval", "trainaug")
URL = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
AUGMENTED_URL = "https://www.dropbox.com/s/oeu149j8qtbs1x0/SegmentationClassAug.zip"
# Both names are in use for the same list of 10,582 images.
AUGMENTED_LISTS = ("trainaug.txt", "train_aug.txt")


def open_voc(root: str | Path, split: str) -> SegmentationSplit:
    """Lists a split of VOC 2012: train (1,464), val (1,449), trainval, or trainaug (10,582).

    Args:
        root: VOCdevkit/VOC2012, VOCdevkit, or the folder that holds VOCdevkit. trainaug needs
            SegmentationClassAug and ImageSets/Segmentation/trainaug.txt there, too; the list has
            one name a line, or the paths of image and labels.
        split: one of these names.

    Raises:
        ValueError: for a missing file, with where to get it.
    """
    check_split(split, SPLITS, kind="voc")
    remedy = f"get {URL} and unpack it in {root}"
    folder = find_root(root, marker="JPEGImages", below=("VOC2012", "VOCdevkit/VOC2012"), remedy=remedy)
    lists, labels, hint = [f"{split}.txt"], folder / "SegmentationClass", ""
    if split == "trainaug":
        lists, labels = list(AUGMENTED_LISTS), folder / "SegmentationClassAug"
        remedy = f"get {AUGMENTED_URL} (the labels of SBD as PNG files) and unpack it in {folder}"
        hint = " and list there, one a line, its names that are not in val.txt (10,582)"
    files = [folder / "ImageSets" / "Segmentation" / name for name in lists]
    file = next(filter(Path.is_file, files), files[0])
    # Where a line holds several paths, that of the image comes first.
    names = sorted(Path(name).stem for name in read_names(file, remedy=remedy + hint))
    pairs = (LabeledPair(folder / "JPEGImages" / f"{name}.jpg", labels / f"{name}.png") for name in names)
    checked = check_pairs(pairs, remedy=remedy)
    return SegmentationSplit(folder, split, checked, CLASS_NAMES, kind="voc")

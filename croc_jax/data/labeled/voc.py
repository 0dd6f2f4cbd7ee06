"""PASCAL VOC 2012 segmentation, 21 classes, as in VOCdevkit; trainaug with the labels of SBD."""

from pathlib import Path

from croc_jax.data.labeled.listing import check_pairs, check_split, find_root
from croc_jax.data.labeled.segmentation import LabeledDataError, LabeledPair, SegmentationSplit

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
SPLITS = ("train", "val", "trainval", "trainaug")
URL = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
AUGMENTED_URL = "https://www.dropbox.com/s/oeu149j8qtbs1x0/SegmentationClassAug.zip"
# All names under which the same list of 10,582 images goes around.
AUGMENTED_LISTS = ("trainaug.txt", "train_aug.txt")


def open_voc(root: str | Path, split: str) -> SegmentationSplit:
    """Lists a split of VOC 2012: train (1,464), val (1,449), trainval, or trainaug (10,582).

    Args:
        root: VOCdevkit/VOC2012, VOCdevkit, or the folder that VOCdevkit lies in. trainaug needs
            SegmentationClassAug and ImageSets/Segmentation/trainaug.txt there, too; the list has
            one name a line, or the paths of image and labels.
        split: see above.

    Raises:
        LabeledDataError: for a missing file, with where to get it.
    """
    check_split(split, SPLITS, kind="voc")
    remedy = f"get {URL} and unpack it in {root}"
    folder = find_voc(root)
    names_folder, augmented = folder / "ImageSets" / "Segmentation", split == "trainaug"
    if augmented:
        remedy = f"get {AUGMENTED_URL} (the labels of SBD as PNG files) and unpack it in {folder}"
    files = [names_folder / name for name in (AUGMENTED_LISTS if augmented else (f"{split}.txt",))]
    file = next(filter(Path.is_file, files), None)
    if file is None:
        hint = " and list there, one a line, its names that are not in val.txt (10,582)" if augmented else ""
        raise LabeledDataError(f"no list {files[0]}: {remedy}{hint}")
    labels = folder / ("SegmentationClassAug" if augmented else "SegmentationClass")
    pairs = (
        LabeledPair(folder / "JPEGImages" / f"{name}.jpg", labels / f"{name}.png") for name in sorted(_read_list(file))
    )
    checked = check_pairs(pairs, remedy=remedy)
    return SegmentationSplit(folder, split, checked, len(CLASS_NAMES), CLASS_NAMES, kind="voc")


def find_voc(root: str | Path) -> Path:
    """Returns the folder that holds JPEGImages.

    Raises:
        LabeledDataError: if there is none.
    """
    below = ("VOC2012", "VOCdevkit/VOC2012")
    return find_root(root, marker="JPEGImages", below=below, remedy=f"get {URL} and unpack it in {root}")


def _read_list(file: Path) -> list[str]:
    """Returns the names in a list; where a line holds several paths, that of the image comes first."""
    names = [Path(line.split()[0]).stem for line in file.read_text().splitlines() if line.strip()]
    if not names:
        raise LabeledDataError(f"{file} names no images: write one name a line")
    return names

"""ADE20K with 150 classes, as in ADEChallengeData2016 (the scene parsing benchmark)."""

from pathlib import Path

from croc_jax.data.labeled.label_files import IGNORED, RecodedIds
from croc_jax.data.labeled.listing import check_pairs, check_split, find_root, names_in
from croc_jax.data.labeled.segmentation import LabeledPair, SegmentationSplit

# The first name of each class in objectInfo150.txt.
CLASS_NAMES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet",
    "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
    "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk",
    "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column", "signboard",
    "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path",
    "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase",
    "blind", "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove", "palm",
    "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus", "towel", "light",
    "truck", "tower", "chandelier", "awning", "streetlight", "booth", "television", "airplane", "dirt track",
    "apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle", "buffet", "poster", "stage", "van",
    "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool", "barrel",
    "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank", "trade name",
    "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture", "hood", "sconce",
    "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen", "plate", "monitor", "bulletin board",
    "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip
FOLDERS = {"train": "training", "val": "validation", "training": "training", "validation": "validation"}
URL = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"


def open_ade20k(root: str | Path, split: str) -> SegmentationSplit:
    """Lists ADE20K; id 0 of its label files is ignored, and 1 to 150 are the classes.

    Args:
        root: ADEChallengeData2016, or the folder that holds it.
        split: "train" (20,210 images) or "val" (2,000).

    Raises:
        ValueError: for a missing file, with where to get it.
    """
    check_split(split, FOLDERS, kind="ade20k")
    remedy = f"get {URL} and unpack it in {root}"
    folder = find_root(root, marker="annotations", below=("ADEChallengeData2016",), remedy=remedy)
    images, labels = (folder / kind / FOLDERS[split] for kind in ("images", "annotations"))
    names = names_in(images, suffix=".jpg", remedy=remedy)
    pairs = (LabeledPair(images / f"{name}.jpg", labels / f"{name}.png") for name in names)
    recoded = RecodedIds({0: IGNORED} | {index + 1: index for index in range(len(CLASS_NAMES))})
    checked = check_pairs(pairs, remedy=remedy)
    return SegmentationSplit(folder, split, checked, CLASS_NAMES, recoded, "ade20k")

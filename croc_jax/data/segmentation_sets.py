"""Segmentation data sets as their owners distribute them, by name: VOC, ADE20K, COCO, Cityscapes, plain folders."""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from croc_jax.data.labeled import (
    IGNORED,
    LabeledDataError,
    LabeledPair,
    SegmentationSplit,
    open_segmentation,
    read_ids,
)

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# The number in label files of each class that is scored.
CITYSCAPES_CLASSES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26,
    "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
_NUM_ADE20K = 150
_VOC_URL = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012 (VOCtrainval_11-May-2012.tar)"
_SBD_URL = "SBD's SegmentationClassAug and its list trainaug.txt, as DeepLab distributes them"
_ADE_URL = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
_COCO_URL = "https://cocodataset.org/#download"
_CITYSCAPES_URL = "https://www.cityscapes-dataset.com (leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip)"


@dataclasses.dataclass(frozen=True)
class TableReader:
    """Reads label files whose numbers stand for classes by a table; picklable."""

    table: tuple[int, ...]

    def __call__(self, file: Path) -> UInt8[np.ndarray, "H W"]:
        """Returns the class of each pixel."""
        return np.array(self.table, np.uint8)[read_ids(file)]


@dataclasses.dataclass(frozen=True)
class PanopticReader:
    """Reads COCO's panoptic files, whose colors are numbers of segments; picklable.

    Attributes:
        segments: of each file by its name: their numbers, sorted, and their classes.
    """

    segments: Mapping[str, tuple[Int[np.ndarray, " s"], UInt8[np.ndarray, " s"]]]

    def __call__(self, file: Path) -> UInt8[np.ndarray, "H W"]:
        """Returns the class of each pixel."""
        try:
            with Image.open(file) as image:
                red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int64), -1, 0)
        except OSError as error:
            raise LabeledDataError(f"cannot read {file} ({error}): replace it") from error
        numbers, classes = self.segments[file.name]
        pixels = red + 256 * green + 65536 * blue
        if not len(numbers):
            return np.full(pixels.shape, IGNORED, np.uint8)
        place = np.minimum(np.searchsorted(numbers, pixels), len(numbers) - 1)
        return np.where(numbers[place] == pixels, classes[place], IGNORED).astype(np.uint8)


def open_labeled(
    spec: str, split: str, *, num_classes: int | None = None, train_split: str = "train", share: float = 1
) -> SegmentationSplit:
    """Returns a split of a segmentation data set.

    Args:
        spec: KIND:ROOT, or the root of a segmentation folder.
        split: as the data set names it, such as "train", "val", or VOC's "trainaug".
        num_classes: of a segmentation folder, see `open_segmentation`; others know.
        train_split: alike.
        share: of the images to take, drawn with a fixed seed.

    Raises:
        LabeledDataError: for an unknown kind, or a missing file, with where to get it.
    """
    match = re.fullmatch(r"([\w-]+):(.+)", spec)
    kind, root = (match[1], Path(os.path.expanduser(match[2]))) if match else ("folder", Path(spec))
    if kind == "folder":
        found = open_segmentation(root, split, num_classes=num_classes, train_split=train_split)
    elif kind in _KINDS:
        found = _KINDS[kind](root, split)
    else:
        raise LabeledDataError(f"unknown kind {kind!r} in {spec}: choose one of folder, {', '.join(_KINDS)}")
    if share == 1:
        return found
    if not 0 < share < 1:
        raise LabeledDataError(f"share={share}: lies over 0, up to 1")
    count = max(1, round(share * len(found)))
    chosen = np.sort(np.random.default_rng(0).choice(len(found), count, replace=False))
    return dataclasses.replace(found, pairs=tuple(found.pairs[index] for index in chosen))


def open_voc(root: Path, split: str) -> SegmentationSplit:
    """Returns PVOC12: ROOT/JPEGImages beside SegmentationClass, or SegmentationClassAug for "trainaug"; 21 classes."""
    if not (root / "JPEGImages").is_dir() and (root / "VOC2012").is_dir():
        root = root / "VOC2012"
    augmented = split == "trainaug"
    labels, url = ("SegmentationClassAug", _SBD_URL) if augmented else ("SegmentationClass", _VOC_URL)
    listed = _need(root / "ImageSets" / "Segmentation" / f"{split}.txt", url)
    # Some lists hold paths of image and labels.
    names = [Path(line.split()[0]).stem for line in listed.read_text().splitlines() if line.strip()]
    pairs = [(root / "JPEGImages" / f"{name}.jpg", root / labels / f"{name}.png") for name in names]
    return _split(root, split, pairs, VOC_CLASSES, read_ids, url)


def open_ade20k(root: Path, split: str) -> SegmentationSplit:
    """Returns ADE20K (scene parsing): ROOT/images and annotations, each with training and validation; 150 classes."""
    folder = {"train": "training", "val": "validation"}.get(split, split)
    images = _files(_need(root / "images" / folder, _ADE_URL), ".jpg")
    pairs = [(image, root / "annotations" / folder / f"{image.stem}.png") for image in images]
    names, listed = tuple(map(str, range(_NUM_ADE20K))), root / "objectInfo150.txt"
    if listed.is_file():
        rows = [line.split("\t") for line in listed.read_text().splitlines()[1:] if line.strip()]
        names = tuple(row[-1].split(",")[0].strip() for row in rows)
    table = (IGNORED, *range(_NUM_ADE20K), *[IGNORED] * (255 - _NUM_ADE20K))
    return _split(root, split, pairs, names, TableReader(table), _ADE_URL)


def open_cityscapes(root: Path, split: str) -> SegmentationSplit:
    """Returns Cityscapes: ROOT/leftImg8bit and gtFine; 19 classes."""
    images = _files(_need(root / "leftImg8bit" / split, _CITYSCAPES_URL), "_leftImg8bit.png")
    pairs = []
    for image in images:
        name = image.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")
        pairs.append((image, root / "gtFine" / split / image.parent.name / name))
    table = _table({number: index for index, number in enumerate(CITYSCAPES_CLASSES.values())})
    return _split(root, split, pairs, tuple(CITYSCAPES_CLASSES), TableReader(table), _CITYSCAPES_URL)


def open_coco_stuff(root: Path, split: str) -> SegmentationSplit:
    """Returns the 15 coarse classes of COCO-Stuff, its supercategories without "other", sorted by name.

    ROOT holds SPLIT2017 (images), annotations/stuff_SPLIT2017_pixelmaps (or stuff_SPLIT2017_pixelmaps),
    and annotations/stuff_val2017.json, which names the classes.
    """
    categories = _load_json(_need(root / "annotations" / "stuff_val2017.json", _COCO_URL))["categories"]
    names = sorted({category["supercategory"] for category in categories} - {"other"})
    index = {name: number for number, name in enumerate(names)}
    known = {c["id"]: index[c["supercategory"]] for c in categories if c["supercategory"] in index}
    folder = f"stuff_{split}2017_pixelmaps"
    maps = root / folder if (root / folder).is_dir() else root / "annotations" / folder
    labels = _files(_need(maps, _COCO_URL), ".png")
    pairs = [(root / f"{split}2017" / f"{label.stem}.jpg", label) for label in labels]
    return _split(root, split, pairs, tuple(names), TableReader(_table(known)), _COCO_URL)


def open_coco_things(root: Path, split: str) -> SegmentationSplit:
    """Returns the 12 coarse classes of COCO-Things: supercategories of panoptic things, sorted by name.

    ROOT holds SPLIT2017 (images), annotations/panoptic_SPLIT2017.json and the folder panoptic_SPLIT2017
    (or annotations/panoptic_SPLIT2017).
    """
    contents = _load_json(_need(root / "annotations" / f"panoptic_{split}2017.json", _COCO_URL))
    things = {c["id"]: c["supercategory"] for c in contents["categories"] if c["isthing"]}
    names = sorted(set(things.values()))
    segments = {}
    for annotation in contents["annotations"]:
        found = sorted(
            (info["id"], names.index(things[info["category_id"]]))
            for info in annotation["segments_info"]
            if info["category_id"] in things
        )
        numbers, classes = np.array(found, np.int64).reshape(-1, 2).T
        segments[annotation["file_name"]] = (numbers, classes.astype(np.uint8))
    folder = f"panoptic_{split}2017"
    maps = root / folder if (root / folder).is_dir() else root / "annotations" / folder
    pairs = [(root / f"{split}2017" / f"{Path(name).stem}.jpg", maps / name) for name in sorted(segments)]
    return _split(root, split, pairs, tuple(names), PanopticReader(segments), _COCO_URL)


_KINDS: dict[str, Callable[[Path, str], SegmentationSplit]] = {
    "voc": open_voc,
    "ade20k": open_ade20k,
    "coco-things": open_coco_things,
    "coco-stuff": open_coco_stuff,
    "cityscapes": open_cityscapes,
}


def _split(
    root: Path,
    split: str,
    pairs: Iterable[tuple[Path, Path]],
    names: Sequence[str],
    read_label: Callable[[Path], np.ndarray],
    url: str,
) -> SegmentationSplit:
    found = tuple(LabeledPair(*pair) for pair in pairs)
    if not found:
        raise LabeledDataError(f"no images of the split {split!r} in {root}: get them from {url}")
    for pair in found:
        for file in pair:
            _need(file, url)
    return SegmentationSplit(root, split, found, len(names), tuple(names), read_label)


def _need(file: Path, url: str) -> Path:
    if not file.exists():
        raise LabeledDataError(f"no {file}: get it from {url}, and unpack it as it comes")
    return file


def _files(folder: Path, ending: str) -> list[Path]:
    return sorted(file for file in folder.rglob(f"*{ending}") if file.is_file())


def _table(known: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(known.get(number, IGNORED) for number in range(256))


@functools.lru_cache(maxsize=1)
def _load_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))

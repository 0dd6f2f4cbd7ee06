"""COCO 2017 with coarse classes: 12 of things from the panoptic labels, 15 of stuff from the pixel maps."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from jaxtyping import UInt8, UInt32

from croc_jax.data.labeled.label_files import IGNORED, Ids, LabelReader, RecodedIds, read_colors
from croc_jax.data.labeled.listing import check_pairs, check_split, find_root, names_in
from croc_jax.data.labeled.segmentation import LabeledPair, SegmentationSplit
from croc_jax.machine_errors import is_machine_error
from croc_jax.regular_files import read_regular

SPLITS = ("train", "val")
THINGS = (
    "accessory", "animal", "appliance", "electronic", "food", "furniture", "indoor", "kitchen", "outdoor",
    "person", "sports", "vehicle",
)  # fmt: skip
# The categories of each supercategory of stuff in the pixel maps (stuff_val2017.json).
STUFF = {
    "building": (95, 96, 128, 151, 158, 166),
    "ceiling": (102, 103),
    "floor": (101, 114, 115, 116, 117, 118),
    "food-stuff": (121, 122, 153, 170),
    "furniture-stuff": (98, 107, 108, 110, 112, 123, 130, 133, 156, 161, 165),
    "ground": (111, 125, 126, 136, 140, 144, 145, 147, 149, 154, 159),
    "plant": (94, 97, 119, 124, 129, 134, 142, 163, 169),
    "raw-material": (100, 132, 139, 143),
    "sky": (106, 157),
    "solid": (127, 135, 150, 160, 162, 182),
    "structural": (99, 113, 138, 146, 164),
    "textile": (92, 93, 104, 105, 109, 131, 137, 141, 152, 167, 168),
    "wall": (171, 172, 173, 174, 175, 176, 177),
    "water": (120, 148, 155, 178, 179),
    "window": (180, 181),
}
# Ids of the pixel maps for pixels without any label, and for "other", which is all things.
UNLABELED, OTHER = 0, 183

_URL = "http://images.cocodataset.org"


@dataclasses.dataclass(frozen=True, eq=False)
class PanopticLabels:
    """Reads panoptic PNGs, whose colors are segment ids, and returns the class of each segment.

    Attributes:
        segments: by file name, sorted ids (red + 256 green + 65536 blue) and the class of each; 255 for stuff.
    """

    segments: dict[str, tuple[UInt32[np.ndarray, " s"], UInt8[np.ndarray, " s"]]]

    def __call__(self, file: Path) -> Ids:
        """Returns the classes of a file; pixels of no segment are ignored.

        Raises:
            ValueError: for an unreadable file, or a segment that the annotations do not list.
        """
        known, classes = self.segments[file.name]
        colors = read_colors(file).astype(np.uint32)
        pixels = colors[..., 0] + 256 * colors[..., 1] + 65536 * colors[..., 2]
        places = np.minimum(np.searchsorted(known, pixels), len(known) - 1)
        if (wrong := pixels[known[places] != pixels]).size:
            raise ValueError(
                f"{file} holds segment {wrong[0]}, which its annotations do not list: use both from one archive"
            )
        return classes[places]


def open_coco_things(root: str | Path, split: str) -> SegmentationSplit:
    """Lists COCO-Things: supercategories of the panoptic things, sorted by name; all else is ignored.

    Crowds count as their category, as in the official conversion to semantic labels.

    Args:
        root: holds {train,val}2017 (or images/...) and annotations/panoptic_{train,val}2017 with
            the PNG files beside panoptic_{train,val}2017.json.
        split: "train" (118,287 images) or "val" (5,000).

    Raises:
        ValueError: for a missing or unusable file, with where to get it.
    """
    check_split(split, SPLITS, kind="coco-things")
    folder = Path(root) / "annotations" / f"panoptic_{split}2017"
    url = f"{_URL}/annotations/panoptic_annotations_trainval2017.zip"
    remedy = f"get {url}, unpack it in {root}, and {folder.name}.zip in {folder.parent}"
    labels = _read_panoptic(folder.with_suffix(".json"), remedy)
    return _make_split(root, split, folder, sorted(labels.segments), THINGS, labels, kind="coco-things", remedy=remedy)


def open_coco_stuff(root: str | Path, split: str) -> SegmentationSplit:
    """Lists COCO-Stuff: supercategories of the stuff pixel maps but "other", sorted by name; all else is ignored.

    Args:
        root: holds {train,val}2017 (or images/...) and annotations/stuff_{train,val}2017_pixelmaps.
        split: "train" (118,287 images) or "val" (5,000).

    Raises:
        ValueError: for a missing file, with where to get it.
    """
    check_split(split, SPLITS, kind="coco-stuff")
    folder = Path(root) / "annotations" / f"stuff_{split}2017_pixelmaps"
    url = f"{_URL}/annotations/stuff_annotations_trainval2017.zip"
    remedy = f"get {url}, unpack it in {root}, and {folder.name}.zip in {folder.parent}"
    names = [f"{name}.png" for name in names_in(folder, suffix=".png", remedy=remedy)]
    classes = {category: index for index, ids in enumerate(STUFF.values()) for category in ids}
    labels = RecodedIds(classes | {UNLABELED: IGNORED, OTHER: IGNORED})
    return _make_split(root, split, folder, names, tuple(STUFF), labels, kind="coco-stuff", remedy=remedy)


def _make_split(
    root: str | Path,
    split: str,
    folder: Path,
    names: Sequence[str],
    class_names: tuple[str, ...],
    read_label: LabelReader,
    *,
    kind: str,
    remedy: str,
) -> SegmentationSplit:
    marker, url = f"{split}2017", f"{_URL}/zips/{split}2017.zip"
    images = find_root(root, marker=marker, below=("images",), remedy=f"get {url} and unpack it in {root}") / marker
    pairs = (LabeledPair((images / name).with_suffix(".jpg"), folder / name) for name in names)
    checked = check_pairs(pairs, remedy=f"{remedy}; images come from {url}")
    return SegmentationSplit(Path(root), split, checked, class_names, read_label, kind)


class _Category(TypedDict):
    id: int
    supercategory: str
    isthing: int


def _read_panoptic(file: Path, remedy: str) -> PanopticLabels:
    """Returns the segments that the JSON file lists, in a few bytes a segment."""
    if not file.is_file():
        raise ValueError(f"no file {file}: {remedy}")
    try:
        content = json.loads(read_regular(file))
    except (OSError, ValueError, RecursionError) as error:
        if is_machine_error(error):
            raise
        raise ValueError(f"cannot read {file} ({error}): {remedy}") from error
    try:
        class_of = _things_classes(content["categories"])
        segments = {}
        for annotation in content["annotations"]:
            found = ((segment["id"], class_of[segment["category_id"]]) for segment in annotation["segments_info"])
            # 0 is the color of pixels of no segment.
            ids, classes = zip((0, IGNORED), *sorted(found), strict=True)
            name = str(annotation["file_name"])
            if "/" in name or name in segments:
                raise ValueError(f"file_name {name!r} {'occurs twice' if name in segments else 'is in a folder'}")
            segments[name] = np.array(ids, np.uint32), np.array(classes, np.uint8)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} is no panoptic annotation ({reason}): {remedy}") from error
    if not segments:
        raise ValueError(f"{file} annotates no images: {remedy}")
    return PanopticLabels(segments)


def _things_classes(categories: list[_Category]) -> dict[int, int]:
    """Returns the class of each category, 255 for stuff; raises ValueError if they are not those of COCO."""
    found = sorted({category["supercategory"] for category in categories if category["isthing"]})
    if tuple(found) != THINGS:
        raise ValueError(f"the supercategories of things are {', '.join(found)}, but COCO has {', '.join(THINGS)}")
    return {
        category["id"]: THINGS.index(category["supercategory"]) if category["isthing"] else IGNORED
        for category in categories
    }

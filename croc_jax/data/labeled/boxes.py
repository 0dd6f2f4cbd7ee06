"""PASCAL VOC with boxes around objects, as in VOCdevkit."""

import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float, UInt8

from croc_jax.data.labeled.label_files import read_image
from croc_jax.data.labeled.listing import check_pairs, find_root, read_names
from croc_jax.data.labeled.segmentation import LabeledPair

_HOST = "http://host.robots.ox.ac.uk/pascal/VOC"
URLS = {
    2007: f"{_HOST}/voc2007/VOCtrainval_06-Nov-2007.tar",
    2012: f"{_HOST}/voc2012/VOCtrainval_11-May-2012.tar",
}
_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclasses.dataclass(frozen=True)
class BoxSplit:
    """One split of VOC with its boxes.

    Attributes:
        root: VOCdevkit/VOC2007 or VOC2012.
        name: name of the split.
        pairs: image and annotation, in the order of the list.
        hard: whether truncated and difficult objects count.
    """

    root: Path
    name: str
    pairs: tuple[LabeledPair, ...]
    hard: bool

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.pairs)

    def load(self, index: int) -> tuple[UInt8[np.ndarray, "H W 3"], Float[np.ndarray, "m 4"]]:
        """Returns an image and its boxes (left, top, right, bottom), in pixels from 0, right and bottom exclusive.

        Raises:
            ValueError: for a file that cannot be read, a box without area, or one outside the image.
        """
        image, file = self.pairs[index]
        pixels, boxes = read_image(image), read_boxes(file, hard=self.hard)
        height, width = pixels.shape[:2]
        # By a pixel, because annotations differ in where they begin to count.
        if (wrong := boxes[((boxes < -1) | (boxes > [width + 1, height + 1] * 2)).any(axis=1)]).size:
            raise ValueError(
                f"{file} has the box {_as_written(wrong[0])}, but {image} has {width} x {height} pixels (width x "
                "height): use both from one archive"
            )
        return pixels, boxes


def open_voc_boxes(root: str | Path, split: str = "trainval", *, year: int = 2007, hard: bool = True) -> BoxSplit:
    """Lists a split of VOC with boxes.

    Args:
        root: VOCdevkit/VOC<year>, VOCdevkit, or the folder that holds VOCdevkit.
        split: any list in ImageSets/Main, such as "trainval" (5,011 images in 2007, 11,540 in 2012).
        year: 2007 or 2012.
        hard: whether truncated and difficult objects count.

    Raises:
        ValueError: for a missing file, with where to get it.
    """
    if year not in URLS:
        raise ValueError(f"year={year}: choose one of {', '.join(map(str, URLS))}")
    remedy = f"get {URLS[year]} and unpack it in {root}"
    folder = find_root(root, marker="Annotations", below=(f"VOC{year}", f"VOCdevkit/VOC{year}"), remedy=remedy)
    names = read_names(folder / "ImageSets" / "Main" / f"{split}.txt", remedy=f"{remedy}, or choose another split")
    images, annotations = folder / "JPEGImages", folder / "Annotations"
    pairs = (LabeledPair(images / f"{name}.jpg", annotations / f"{name}.xml") for name in names)
    return BoxSplit(folder, split, check_pairs(pairs, remedy=remedy), hard)


def read_boxes(file: Path, *, hard: bool) -> Float[np.ndarray, "m 4"]:
    """Returns the boxes of an annotation, whose pixels count from 1 and whose ends are inclusive.

    Raises:
        ValueError: for a file that cannot be read, or a box without area.
    """
    try:
        boxes = [
            [float(item.findtext(f"bndbox/{side}") or "") for side in _SIDES]
            for item in ElementTree.parse(file).iterfind("object")
            if hard or not any(item.findtext(flag, "0").strip() == "1" for flag in ("truncated", "difficult"))
        ]
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise ValueError(f"cannot read the boxes of {file} ({error}): replace it") from error
    found = np.array(boxes).reshape(-1, 4) - [1, 1, 0, 0]
    if (wrong := found[~(found[:, 2:] > found[:, :2]).all(axis=1) | ~np.isfinite(found).all(axis=1)]).size:
        raise ValueError(f"{file} has the box {_as_written(wrong[0])}: xmin and ymin must not exceed xmax and ymax")
    return found


def _as_written(box: Float[np.ndarray, "4"]) -> str:
    values = box + [1, 1, 0, 0]
    return ", ".join(f"{side}={value:g}" for side, value in zip(_SIDES, values, strict=True))

"""PASCAL VOC with boxes around objects, as in VOCdevkit."""

import dataclasses
import io
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float, Real

from croc_jax.data.labeled.label_files import image_header, read_image
from croc_jax.data.labeled.listing import check_pairs, find_root, read_names
from croc_jax.data.labeled.segmentation import LabeledPair
from croc_jax.data.labeled.turned import TurnedImages, fit_of
from croc_jax.data.orientation import UPRIGHT, turn_boxes
from croc_jax.machine_errors import is_machine_error
from croc_jax.pixel_format import RGB8, PixelFormat
from croc_jax.regular_files import read_regular

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
        turned: the images that their EXIF orientation turned, of those read so far.
    """

    root: Path
    name: str
    pairs: tuple[LabeledPair, ...]
    hard: bool
    turned: TurnedImages = dataclasses.field(default_factory=TurnedImages, compare=False, repr=False)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.pairs)

    def load(
        self, index: int, pixels: PixelFormat = RGB8
    ) -> tuple[Real[np.ndarray, "H W c"], Float[np.ndarray, "m 4"]]:
        """Returns an image and its boxes (left, top, right, bottom), in pixels from 0, right and bottom exclusive.

        Boxes are turned with an image that its EXIF orientation turns if their annotation states the size of the
        image as it is stored.

        Raises:
            ValueError: for a file that cannot be read, a box without area, or the boxes of another image.
        """
        image, file = self.pairs[index]
        annotation, values = (
            self._turn_along(read_boxes(file, hard=self.hard), image, pixels),
            read_image(image, pixels),
        )
        size, boxes = np.array(values.shape[1::-1]), annotation.boxes
        if annotation.size is not None and (abs(size - annotation.size) > 1).any():
            what = f"is about {_product(annotation.size)} pixels"
        # By a pixel, because annotations differ in where they begin to count.
        elif (wrong := boxes[((boxes < -1) | (boxes > [*(size + 1)] * 2)).any(axis=1)]).size:
            what = f"has the box {_as_written(wrong[0])}"
        else:
            return values, boxes
        raise ValueError(f"{file} {what}, but {image} has {_product(size)}, width x height: use both from one archive")

    def _turn_along(self, annotation: "Annotation", image: Path, pixels: PixelFormat) -> "Annotation":
        """Returns an annotation in the pixels of the upright image, and counts images that are turned."""
        header = image_header(image, pixels)
        if header.orientation == UPRIGHT:
            return annotation
        stated = header.size if annotation.size is None else tuple(annotation.size[::-1].astype(int).tolist())
        self.turned.add(image, header, fit := fit_of(stated, header))
        if fit != "stored":
            return annotation
        height, width = header.size
        boxes = turn_boxes(annotation.boxes, header.orientation, height=height, width=width)
        return Annotation(boxes, np.array([width, height], float))


def open_voc_boxes(root: str | Path, split: str = "trainval", *, year: int = 2007, hard: bool = True) -> BoxSplit:
    """Lists a split of VOC with boxes.

    Args:
        root: VOCdevkit/VOC<year>, VOCdevkit, or the folder that holds VOCdevkit.
        split: any list in ImageSets/Main, such as "trainval" (5,011 images in 2007, 11,540 in 2012).
        year: 2007 or 2012.
        hard: whether truncated and difficult objects count.

    Raises:
        ValueError: for a missing file, with where to get it, an annotation that cannot be read, or a box without area.
    """
    if year not in URLS:
        raise ValueError(f"year={year}: choose one of {', '.join(map(str, URLS))}")
    remedy = f"get {URLS[year]} and unpack it in {root}"
    folder = find_root(root, marker="Annotations", below=(f"VOC{year}", f"VOCdevkit/VOC{year}"), remedy=remedy)
    names = read_names(folder / "ImageSets" / "Main" / f"{split}.txt", remedy=f"{remedy}, or choose another split")
    images, annotations = folder / "JPEGImages", folder / "Annotations"
    pairs = (LabeledPair(images / f"{name}.jpg", annotations / f"{name}.xml") for name in names)
    checked = check_pairs(pairs, remedy=remedy)
    for pair in checked:
        read_boxes(pair.label, hard=hard)
    return BoxSplit(folder, split, checked, hard)


class Annotation(NamedTuple):
    """Boxes as `BoxSplit.load` returns them, and width and height of their image, if known."""

    boxes: Float[np.ndarray, "m 4"]
    size: Float[np.ndarray, "2"] | None


def read_boxes(file: Path, *, hard: bool) -> Annotation:
    """Returns the content of an annotation file, whose pixels count from 1 and whose ends are inclusive.

    Raises:
        ValueError: for a file that cannot be read, or a box without area.
    """
    try:
        tree = ElementTree.parse(io.BytesIO(read_regular(file)))
        boxes = [
            [float(item.findtext(f"bndbox/{side}") or "") for side in _SIDES]
            for item in tree.iterfind("object")
            if hard or not any(item.findtext(flag, "0").strip() == "1" for flag in ("truncated", "difficult"))
        ]
        # Some programs write 0 for an unknown size.
        size = np.array([float(tree.findtext(f"size/{side}") or 0) for side in ("width", "height")])
    except (OSError, LookupError, ValueError, ElementTree.ParseError) as error:
        if is_machine_error(error):
            raise
        raise ValueError(f"cannot read the boxes of {file} ({str(error)[:200]}): replace it") from error
    found = np.array(boxes).reshape(-1, 4) - [1, 1, 0, 0]
    if (wrong := found[~(found[:, 2:] > found[:, :2]).all(axis=1) | ~np.isfinite(found).all(axis=1)]).size:
        raise ValueError(f"{file} has the box {_as_written(wrong[0])}: xmin and ymin must not exceed xmax and ymax")
    return Annotation(found, size if (size > 0).all() else None)


def _product(size: np.ndarray) -> str:
    return " x ".join(f"{side:g}" for side in size)


def _as_written(box: Float[np.ndarray, "4"]) -> str:
    values = box + [1, 1, 0, 0]
    return ", ".join(f"{side}={value:g}" for side, value in zip(_SIDES, values, strict=True))

"""PASCAL VOC with boxes around objects, as in VOCdevkit."""

import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float, UInt8

from croc_jax.data.labeled.label_files import image_header, read_image
from croc_jax.data.labeled.listing import check_pairs, find_root, read_names
from croc_jax.data.labeled.segmentation import LabeledPair
from croc_jax.data.labeled.turned import TurnedImages, fit_of
from croc_jax.data.orientation import UPRIGHT, turn_boxes
from croc_jax.machine_errors import is_machine_error

_HOST = "http://host.robots.ox.ac.uk/pascal/VOC"
URLS = {
    2007: f"{_HOST}/voc2007/VOCtrainval_06-Nov-2007.tar",
    2012: f"{_HOST}/voc2012/VOCtrainval_11-May-2012.tar",
}


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

    def load(self, index: int) -> tuple[UInt8[np.ndarray, "H W 3"], Float[np.ndarray, "m 4"]]:
        """Returns an image and its boxes (left, top, right, bottom), in pixels from 0, right and bottom exclusive.

        Boxes are turned with an image that its EXIF orientation turns if their annotation states the size of the
        image as it is stored.

        Raises:
            ValueError: for a file that cannot be read.
        """
        pair = self.pairs[index]
        boxes, header = _read_boxes(pair.label, self.hard), image_header(pair.image)
        if header.orientation != UPRIGHT:
            fit = fit_of(_stated_size(pair.label) or header.size, header)
            self.turned.add(pair.image, header, fit)
            if fit == "stored":
                boxes = turn_boxes(boxes, header.orientation, height=header.size.height, width=header.size.width)
        return read_image(pair.image), boxes


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


def _read_boxes(file: Path, hard: bool) -> Float[np.ndarray, "m 4"]:
    """Returns the boxes of an annotation, whose pixels count from 1 and whose ends are inclusive."""
    try:
        boxes = [
            [float(item.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")]
            for item in ElementTree.parse(file).iterfind("object")
            if hard or not any(item.findtext(flag, "0").strip() == "1" for flag in ("truncated", "difficult"))
        ]
    except (OSError, ValueError, ElementTree.ParseError) as error:
        if is_machine_error(error):
            raise
        raise ValueError(f"cannot read the boxes of {file} ({error}): replace it") from error
    return np.array(boxes).reshape(-1, 4) - [1, 1, 0, 0]


def _stated_size(file: Path) -> tuple[int, ...] | None:
    """Returns the height and width that an annotation gives its image, if any."""
    root = ElementTree.parse(file)
    sides = [(root.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    return tuple(map(int, sides)) if all(side.isdecimal() for side in sides) else None

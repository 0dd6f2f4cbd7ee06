"""Label files: from what their owners store to 8-bit class ids."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

IGNORED = 255

Ids = UInt8[np.ndarray, "h w"]
# Picklable, since a split may go to another process.
LabelReader = Callable[[Path], Ids]


class LabeledDataError(ValueError):
    """A labeled data set cannot be used; the message names the file or folder and a remedy."""


def open_image(file: Path) -> Image.Image:
    """Returns a decoded image.

    Raises:
        LabeledDataError: if the file cannot be read as a whole.
    """
    try:
        image = Image.open(file)
        image.load()
    except OSError as error:
        raise LabeledDataError(f"cannot read {file} ({error}): replace or remove it") from error
    return image


def image_size_of(file: Path) -> tuple[int, int]:
    """Returns width and height from an image's first bytes.

    Raises:
        LabeledDataError: if these cannot be read.
    """
    try:
        with Image.open(file) as image:
            return image.size
    except OSError as error:
        raise LabeledDataError(f"cannot read {file} ({error}): replace or remove it") from error


def read_ids(file: Path) -> Ids:
    """Returns 8-bit ids as they are stored, gray or with a palette.

    Raises:
        LabeledDataError: for an unreadable file, or one in color.
    """
    label = open_image(file)
    if label.mode not in ("L", "P"):
        raise LabeledDataError(f"{file} has pixels of mode {label.mode}: save 8-bit class ids (mode L or P)")
    return np.asarray(label)


@dataclasses.dataclass(frozen=True)
class RecodedIds:
    """Reads 8-bit ids and gives the class of each.

    Attributes:
        classes: of every id that the data set has; 255 for those that do not count.
    """

    classes: dict[int, int]

    def __call__(self, file: Path) -> Ids:
        """Returns the classes of a file.

        Raises:
            LabeledDataError: as `read_ids`, and for an id that the data set does not have.
        """
        table = np.full(256, -1, np.int16)
        table[list(self.classes)] = list(self.classes.values())
        ids = read_ids(file)
        recoded = table[ids]
        if recoded.min(initial=0) < 0:
            raise LabeledDataError(
                f"{file} holds id {ids[recoded < 0][0]}, which the data set does not have (its ids are "
                f"{min(self.classes)} to {max(self.classes)}): take the labels as their owners ship them"
            )
        return recoded.astype(np.uint8)

"""Image and label files: from what data sets ship to pixels and 8-bit class ids."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from croc_jax.data.decoding import Pixels, decode

IGNORED = 255

Ids = UInt8[np.ndarray, "h w"]
# Picklable, since a split may go to another process.
LabelReader = Callable[[Path], Ids]


def read_image(file: Path) -> Pixels:
    """Returns an image as RGB, by the decoder of training; raises ValueError, naming the file, if it cannot be read."""
    try:
        return decode(file.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error


def open_image(file: Path) -> Image.Image:
    """Returns an image in the mode of its file; raises ValueError, naming the file, if it cannot be read."""
    try:
        image = Image.open(file)
        image.load()
    except Exception as error:  # Pillow's parsers raise exceptions of many types.
        raise _unreadable(file, error) from error
    return image


def image_size_of(file: Path) -> tuple[int, int]:
    """Returns width and height from the header of an image; raises ValueError if it cannot be read."""
    try:
        with Image.open(file) as image:
            return image.size
    except Exception as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"cannot read {file} ({error}): replace or remove it")


def read_ids(file: Path) -> Ids:
    """Returns 8-bit ids as they are stored, gray or with a palette.

    Raises:
        ValueError: for an unreadable file, or one in color.
    """
    label = open_image(file)
    if label.mode not in ("L", "P"):
        raise ValueError(f"{file} has pixels of mode {label.mode}: save 8-bit class ids (mode L or P)")
    return np.asarray(label)


@dataclasses.dataclass(frozen=True)
class RecodedIds:
    """Reads 8-bit ids and returns the class of each.

    Attributes:
        classes: class by id, of every id that the data set has; 255 for those that are ignored.
    """

    classes: dict[int, int]

    def __call__(self, file: Path) -> Ids:
        """Returns the classes of a file.

        Raises:
            ValueError: as `read_ids`, and for an id that the data set does not have.
        """
        table = np.full(256, -1, np.int16)
        table[list(self.classes)] = list(self.classes.values())
        ids = read_ids(file)
        recoded = table[ids]
        if recoded.min(initial=0) < 0:
            raise ValueError(
                f"{file} holds id {ids[recoded < 0][0]}, which the data set does not have (its ids are "
                f"{min(self.classes)} to {max(self.classes)}): use the label files of the original distribution"
            )
        return recoded.astype(np.uint8)

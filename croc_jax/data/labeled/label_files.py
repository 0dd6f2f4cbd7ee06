"""Image and label files: from what data sets ship to pixels and 8-bit class ids."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Real, UInt8

from croc_jax.data.channels import decode_pixels
from croc_jax.data.decoding import Header, Pixels, Size, Stored, load_stored, naming, read_header
from croc_jax.data.orientation import UPRIGHT, turn
from croc_jax.data.pixel_modes import WHITE_IS_ZERO, photometric, to_rgb
from croc_jax.pixel_format import RGB8, PixelFormat
from croc_jax.regular_files import read_regular

IGNORED = 255

# Formats that keep every value, by Pillow's names.
_LOSSLESS = ("PNG", "BMP", "TIFF")
# Pillow stretches gray values of 2 and 4 bits to 0 ... 255.
_STRETCHED_BY = {"L;2": 85, "L;4": 17}

Ids = UInt8[np.ndarray, "h w"]
# Picklable, since a split may go to another process.
LabelReader = Callable[[Path], Ids]


def read_image(file: Path, pixels: PixelFormat = RGB8) -> Real[np.ndarray, "H W c"]:
    """Returns an image by the decoder of training; 8-bit RGB upright.

    Args:
        file: the image.
        pixels: the format that it must have.

    Raises:
        ValueError: naming the file, if it cannot be read.
        OSError: for a fault of the machine.
    """
    with naming(file):
        return decode_pixels(read_regular(file), pixels)


def image_header(file: Path, pixels: PixelFormat = RGB8) -> Header:
    """Returns size and orientation of an image; arguments and errors as for `read_image`.

    Images of other formats are decoded for it: some of their headers tell less.
    """
    if not pixels.is_rgb8:
        return upright_header(read_image(file, pixels))
    with naming(file):
        return read_header(read_regular(file))


def upright_header(image: Real[np.ndarray, "H W c"]) -> Header:
    """Returns the header of an image that is stored as it is seen."""
    return Header(Size(*image.shape[:2]), UPRIGHT)


def read_ids(file: Path) -> Ids:
    """Returns 8-bit ids as they are stored, gray or with a palette; those of more bits only if all of them fit.

    Raises:
        ValueError: for an unreadable file, one in color, ids above 255, or a format that changes ids.
        OSError: for a fault of the machine.
    """
    image, raw, orientation = _load_label(file)
    values = np.asarray(image)
    if image.mode.startswith("I"):
        if values.size and not 0 <= values.min() <= values.max() <= 255:
            wrong = values.max() if values.max() > 255 else values.min()
            raise ValueError(f"{file} holds {wrong}, and class ids are 0 to 255: save 8-bit class ids (mode L or P)")
    elif image.mode not in ("1", "L", "P"):
        raise ValueError(f"{file} has pixels of mode {image.mode}: save 8-bit class ids (mode L or P)")
    elif image.mode != "P" and photometric(image) == WHITE_IS_ZERO:
        raise ValueError(f"{file} is a TIFF whose white is zero, which inverts ids: save 8-bit class ids as PNG")
    ids = values.astype(np.uint8, copy=False)
    return turn(ids // _STRETCHED_BY[raw] if raw in _STRETCHED_BY else ids, orientation)


def read_colors(file: Path) -> Pixels:
    """Returns the exact colors of a file whose ids are coded as colors; errors as for `read_ids`."""
    image, raw, orientation = _load_label(file)
    if image.mode not in ("RGB", "RGBA", "P", "L") or ";16" in raw:
        kind = f"{image.mode} of 16 bits" if ";16" in raw else image.mode
        raise ValueError(f"{file} has pixels of mode {kind}: its ids are coded as 8-bit colors (mode RGB)")
    with naming(file):
        return turn(to_rgb(image), orientation)


def _load_label(file: Path) -> Stored:
    with naming(file):
        stored = load_stored(read_regular(file))
    if stored.image.format not in _LOSSLESS:
        raise ValueError(f"{file} is a {stored.image.format} file, which may change ids: save labels as PNG")
    return stored


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

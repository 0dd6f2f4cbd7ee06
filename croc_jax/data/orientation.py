"""The EXIF orientation of an image: how it is read, and how pixels, ids and boxes are turned by it."""

import numpy as np
from jaxtyping import Float, Shaped
from PIL import ExifTags, Image, TiffImagePlugin

# The orientation of images that are stored as they are seen, and of those without EXIF.
UPRIGHT = 1

_EXIF, _APPLICATION_1 = b"Exif\0\0", 0xE1


def is_sideways(orientation: int) -> bool:
    """Returns whether rows are stored as columns."""
    return orientation >= 5


def jpeg_orientation(encoded: bytes) -> int:
    """Returns the EXIF orientation of a JPEG, 1 to 8, from the segments before its tables; 1 without a usable one."""
    place = 2
    while len(segment := encoded[place : place + 4 + len(_EXIF)]) > 4 and segment[0] == 0xFF:
        kind = segment[1]
        if kind == 0xFF:  # Padding.
            place += 1
            continue
        # Only application segments and comments come before the tables.
        if not (0xE0 <= kind <= 0xEF or kind == 0xFE):
            break
        end = place + 2 + int.from_bytes(segment[2:4], "big")
        if kind == _APPLICATION_1 and segment[4:] == _EXIF:
            exif = Image.Exif()
            try:
                exif.load(encoded[place + 4 : end])
                return checked_orientation(exif.get(ExifTags.Base.Orientation))
            except Exception:  # A damaged EXIF segment does no harm to the pixels.
                break
        place = end
    return UPRIGHT


def orientation_of(image: Image.Image, encoded: bytes) -> int:
    """Returns the EXIF orientation of an opened image that is no JPEG, 1 to 8; 1 without a usable one.

    Args:
        image: the image, not loaded yet.
        encoded: the file that it was opened from.
    """
    if image.format == "PNG" and "exif" not in image.info and b"eXIf" in encoded:
        # The chunk may come after the pixels.
        image.load()
    try:
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            return checked_orientation(image.tag_v2.get(ExifTags.Base.Orientation))
        # PNG's own method decodes the pixels of every image without EXIF.
        return checked_orientation(Image.Image.getexif(image).get(ExifTags.Base.Orientation))
    except Exception:
        return UPRIGHT


def checked_orientation(value: object) -> int:
    """Returns the value of an EXIF or TIFF tag if it is an orientation, else that of upright images."""
    return value if isinstance(value, int) and UPRIGHT <= value <= 8 else UPRIGHT


def turn(pixels: Shaped[np.ndarray, "H W ..."], orientation: int) -> Shaped[np.ndarray, "h w ..."]:
    """Returns stored pixels as they are to be seen, like PIL.ImageOps.exif_transpose.

    Args:
        pixels: an image or labels as stored.
        orientation: EXIF orientation, 1 to 8.
    """
    if orientation == UPRIGHT:
        return pixels
    rows, columns = _flips(orientation)
    pixels = pixels.swapaxes(0, 1) if is_sideways(orientation) else pixels
    return np.ascontiguousarray(pixels[:: -1 if rows else 1, :: -1 if columns else 1])


def turn_boxes(
    boxes: Float[np.ndarray, "m 4"], orientation: int, *, height: int, width: int
) -> Float[np.ndarray, "m 4"]:
    """Returns boxes (left, top, right, bottom) of a stored image in the coordinates of the turned one.

    Args:
        boxes: boxes in pixels from 0, right and bottom exclusive.
        orientation: EXIF orientation, 1 to 8.
        height: height of the turned image.
        width: width of the turned image.
    """
    if is_sideways(orientation):
        boxes = boxes[:, [1, 0, 3, 2]]
    left, top, right, bottom = boxes.T
    rows, columns = _flips(orientation)
    if columns:
        left, right = width - right, width - left
    if rows:
        top, bottom = height - bottom, height - top
    return np.stack([left, top, right, bottom], axis=-1)


def _flips(orientation: int) -> tuple[bool, bool]:
    """Returns whether rows and columns are reversed, after they have been exchanged if they are sideways."""
    return orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)

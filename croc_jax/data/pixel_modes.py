"""What Pillow reads becomes 8-bit RGB wherever that needs no guess; every other kind of pixels is refused by name."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, TiffImagePlugin

# Modes that stand for colors or gray values of a known range.
_KNOWN = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
# 12 bits, as of many cameras and scanners, stored in 16.
_LEAST_MAXIMUM = 2**12
_BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA, _FORMAT, _SUBFILE = 258, 262, 277, 338, 339, 254
WHITE_IS_ZERO, _BLACK_IS_ZERO, _SIGNED = 0, 1, 2
REDUCED_OR_MASK = 1 | 4
# What else helps against images that are no 8-bit RGB.
AS_STORED = (
    "or train on values as stored (data.channels, data.dtype, data.range; in launch/prepare.py, --channels and --dtype)"
)


class DecodeError(ValueError):
    """The bytes are no readable image; the message says why."""


def raw_mode(image: Image.Image) -> str:
    """Returns how Pillow unpacks an image that is not loaded yet, such as "RGB;16B"; "" if it is not said."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def to_rgb(image: Image.Image, raw: str = "") -> UInt8[np.ndarray, "H W 3"]:
    """Returns a loaded image as 8-bit RGB.

    Gray values are repeated, transparency is dropped, and 16-bit values lose their lower half.

    Args:
        image: an image of any mode.
        raw: its `raw_mode`, if it comes from a file.

    Raises:
        DecodeError: for pixels without a known range, and for 16-bit ones that use 12 bits or fewer.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return np.repeat(_upper_half(np.asarray(image), raw)[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        kind = "signed or 32-bit integers" if image.mode == "I" else "floating-point numbers"
        origin = f"{image.format} pixels" if image.format else "pixels"
        raise DecodeError(
            f"{origin} of mode {image.mode} have no known range ({kind}): save 8 or 16 bits a channel, {AS_STORED}"
        )
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    if image.mode not in _KNOWN:
        raise DecodeError(f"pixels of mode {image.mode} are not known: save 8-bit RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    pixels = np.asarray(image.convert("RGB"))
    if ";16" in raw and image.mode in ("RGB", "RGBA") and 0 < pixels.max(initial=0) < _LEAST_MAXIMUM >> 8:
        raise DecodeError(_too_dark(_LEAST_MAXIMUM - 1))
    return pixels


def _upper_half(values: np.ndarray, raw: str) -> UInt8[np.ndarray, "H W"]:
    if ";12" in raw:
        return (values >> 4).astype(np.uint8)
    highest = int(values.max(initial=0))
    if 0 < highest < _LEAST_MAXIMUM:
        raise DecodeError(_too_dark(highest))
    return (values >> 8).astype(np.uint8)


def _too_dark(highest: int) -> str:
    return (
        f"16-bit pixels hold no value above {highest}, so use 12 bits or fewer, and would be nearly black: "
        f"stretch them to 0 ... 65535, save 8 bits, {AS_STORED}"
    )


def photometric(image: Image.Image) -> int | None:
    """Returns what the values of a TIFF mean, by its tag; None for other formats."""
    is_tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
    return image.tag_v2.get(_PHOTOMETRIC, WHITE_IS_ZERO) if is_tiff else None


def check_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Checks what Pillow would read differently from what a TIFF means.

    Raises:
        DecodeError: for several pages, signed bytes, bands without a meaning, and deep images whose white is zero.
    """
    pages = []
    for number in range(image.n_frames):
        image.seek(number)
        # Previews and masks of the image are no pages.
        if not image.tag_v2.get(_SUBFILE, 0) & REDUCED_OR_MASK:
            pages.append(number)
    image.seek(0)
    if len(pages) > 1:
        raise DecodeError(f"a TIFF of {len(pages)} pages: save the one that counts, or each as a file, {AS_STORED}")
    if pages != [0]:
        raise DecodeError("a TIFF that begins with a preview or a mask: save its image alone")
    tags = image.tag_v2
    meaning, samples, bits = photometric(image), tags.get(_SAMPLES, 1), tags.get(_BITS, (1,))
    if _SIGNED in tags.get(_FORMAT, (1,)) and max(bits) <= 8:
        raise DecodeError("a TIFF of signed 8-bit integers, whose range is not known: save them without sign")
    if meaning in (WHITE_IS_ZERO, _BLACK_IS_ZERO) and samples > 1 and tags.get(_EXTRA, ()) not in ((1,), (2,)):
        raise DecodeError(
            f"a TIFF of {samples} bands without colors, where 8-bit RGB is expected: save that, one band as gray, "
            f"{AS_STORED}"
        )
    if meaning == WHITE_IS_ZERO and max(bits) > 8:
        raise DecodeError(f"a TIFF of {max(bits)} bits whose white is zero: save it with black as zero")

"""From the bytes of an image file to pixels, upright, in full or only as fine as needed."""

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

import croc_jax.data.formats  # noqa: F401, registers HEIF where its plugin is installed
from croc_jax.data.bad_records import printable
from croc_jax.data.orientation import UPRIGHT, is_sideways, jpeg_orientation, orientation_of, turn
from croc_jax.data.pixel_modes import AS_STORED, DecodeError, check_tiff, raw_mode, to_rgb
from croc_jax.data.stored_arrays import MAX_PIXELS, TOO_MANY, WINDOWS_HINT, TooManyPixelsError, is_npy, read_npy
from croc_jax.machine_errors import find_fault
from croc_jax.pixel_format import RGB8

if TYPE_CHECKING:
    from croc_jax.data.sources.base import ImageSource

# They name no file, and what matters becomes a DecodeError, which does where it is reported.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL + 1)

_MAX_HALVINGS = 3
_SHOWN_BYTES = 16
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
# The other byte of each value, in Pillow's names for how 16 bits are unpacked; native order is little-endian.
_OTHER_HALF = {"16B": "16L", "16L": "16B", "16N": "16B"}

Pixels = UInt8[np.ndarray, "H W 3"]


class Size(NamedTuple):
    """The size of an image in pixels."""

    height: int
    width: int


class Header(NamedTuple):
    """What an image file states before its pixels.

    Attributes:
        size: size of the upright image.
        orientation: EXIF orientation, 1 to 8; 1 for images that are stored upright.
    """

    size: Size
    orientation: int

    @property
    def stored(self) -> Size:
        """The size of the image as it is stored."""
        return Size(*reversed(self.size)) if is_sideways(self.orientation) else self.size


class Stored(NamedTuple):
    """A loaded image in the mode of its file.

    Attributes:
        image: the pixels.
        raw: how they were stored, see `raw_mode`.
        orientation: EXIF orientation that they have yet to be turned by, 1 to 8.
    """

    image: Image.Image
    raw: str
    orientation: int


def decode(encoded: bytes) -> Pixels:
    """Returns an image as RGB bytes, upright by its EXIF orientation.

    Gray images repeat their value, transparency is dropped, and 16-bit values lose their lower half. Of animations,
    the first frame is taken.

    Args:
        encoded: the contents of a JPEG, PNG, WebP or other image file, or of a .npy file of 8-bit RGB.

    Raises:
        DecodeError: for anything that cannot be decoded as a whole, or of more than `MAX_PIXELS`, or whose values
            have no known range (see `croc_jax.data.pixel_modes`).
    """
    if simplejpeg.is_jpeg(encoded):
        orientation = read_header(encoded).orientation
        try:
            return turn(simplejpeg.decode_jpeg(encoded, colorspace="RGB"), orientation)
        except ValueError:
            # Rare color spaces and harmless defects: Pillow may read them.
            pass
    elif is_npy(encoded):
        with decode_errors(encoded):
            return read_npy(encoded, RGB8)
    image, raw, orientation = load_stored(encoded)
    with decode_errors(encoded):
        pixels = to_rgb(image, raw)
        if raw.startswith("RGB") and raw[-3:] in _OTHER_HALF and not pixels.any() and _has_lower_half(encoded, raw):
            raise DecodeError(f"16-bit pixels hold values below 256, and would be black: save 8 bits, {AS_STORED}")
    return turn(pixels, orientation)


def decode_image(source: "ImageSource", index: int) -> Pixels:
    """Returns an image of a source, as `decode` does.

    Args:
        source: the images.
        index: index of the image.

    Raises:
        DecodeError: naming the image, if it cannot be read.
        OSError: for a fault of the machine.
    """
    with naming(source.name(index)):
        return decode(source[index])


@contextlib.contextmanager
def naming(name: object) -> Iterator[None]:
    """Turns errors of its block into a DecodeError that names what was read, but for faults of the machine.

    Raises:
        DecodeError: for a ValueError or an OSError.
        OSError: for a fault of the machine.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if fault := find_fault(error, str(name)):
            raise fault from error
        raise DecodeError(f"cannot read {printable(str(name))} ({error}): replace or remove it") from error


def decode_at_least(encoded: bytes, full: Size, *, share: float) -> Pixels:
    """Returns an image; a JPEG is decoded approximately, and halved as often as `share` of its sides remains.

    Args:
        encoded: as for `decode`.
        full: the size that `read_size` returns.
        share: fraction of width and height that suffices; 1 or more for full size.

    Raises:
        DecodeError: as `decode` does.
    """
    # libjpeg decodes at 1/2, 1/4 and 1/8 faster than in full.
    halvings = max((n for n in range(_MAX_HALVINGS + 1) if 0.5**n >= share), default=0)
    if simplejpeg.is_jpeg(encoded):
        orientation = jpeg_orientation(encoded)
        stored = Header(full, orientation).stored
        try:
            pixels = simplejpeg.decode_jpeg(
                encoded,
                colorspace="RGB",
                fastdct=True,
                fastupsample=True,
                min_height=math.ceil(stored.height / 2**halvings),
                min_width=math.ceil(stored.width / 2**halvings),
            )
            return turn(pixels, orientation)
        except ValueError:
            pass
    return decode(encoded)


def read_size(encoded: bytes) -> Size:
    """Returns the size that the upright image has by its header; arguments and errors as for `read_header`."""
    return read_header(encoded).size


def read_header(encoded: bytes) -> Header:
    """Returns what the header of an image states, without decoding it.

    Args:
        encoded: as for `decode`.

    Raises:
        DecodeError: for what is no image, or one of more than `MAX_PIXELS`.
    """
    with decode_errors(encoded):
        if simplejpeg.is_jpeg(encoded):
            try:
                height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
                return _make_header(Size(int(height), int(width)), jpeg_orientation(encoded))
            except ValueError:
                pass
        elif is_npy(encoded):
            return _make_header(Size(*read_npy(encoded, RGB8).shape[:2]), UPRIGHT)
        return open_image(encoded)[2]


def load_stored(encoded: bytes) -> Stored:
    """Returns the first image of a file in its own mode, without a change of its values.

    Args:
        encoded: as for `decode`.

    Raises:
        DecodeError: as `decode`, but for the range of values.
    """
    with decode_errors(encoded):
        image, raw, (_, orientation) = open_image(encoded)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            check_tiff(image)
            # Pillow turns these itself.
            orientation = UPRIGHT
        image.load()
        return Stored(image, raw, orientation)


def open_image(encoded: bytes) -> tuple[Image.Image, str, Header]:
    """Returns an image, its `raw_mode` and its header; may load the image.

    Raises:
        DecodeError: for EPS, and for more than `MAX_PIXELS`.
        Exception: of many types, from Pillow, for a damaged file.
    """
    image = Image.open(io.BytesIO(encoded))
    if image.format == "EPS":
        # Pillow would run it: PostScript is a program.
        raise DecodeError("EPS holds drawings, no pixels: export it as PNG")
    stored = Size(image.height, image.width)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # The size that Pillow states is that of the turned image, if its version turns it so early.
        stored = Size(image.tag_v2[TiffImagePlugin.IMAGELENGTH], image.tag_v2[TiffImagePlugin.IMAGEWIDTH])
    # Once before anything is decoded for the orientation.
    _make_header(stored, UPRIGHT)
    raw = raw_mode(image)
    orientation = jpeg_orientation(encoded) if simplejpeg.is_jpeg(encoded) else orientation_of(image, encoded)
    return image, raw, _make_header(stored, orientation)


def _make_header(stored: Size, orientation: int) -> Header:
    """Returns the header of an image; DecodeError if it is too large."""
    if stored.height * stored.width > MAX_PIXELS:
        raise TooManyPixelsError(f"{TOO_MANY}: {stored.width} x {stored.height}{WINDOWS_HINT}")
    # The exchange of sides that leads from the upright to the stored size leads back, too.
    return Header(Header(stored, orientation).stored, orientation)


def _has_lower_half(encoded: bytes, raw: str) -> bool:
    """Returns whether 16-bit colors whose upper halves are zero have others."""
    image, tiles = Image.open(io.BytesIO(encoded)), []
    other = raw[:-3] + _OTHER_HALF[raw[-3:]]
    for tile in image.tile:
        rest = tile.args[1:] if isinstance(tile.args, tuple) else None
        tiles.append(tile._replace(args=other if rest is None else (other, *rest)))
    image.tile = tiles
    return bool(np.asarray(image.convert("RGB")).any())


@contextlib.contextmanager
def decode_errors(encoded: bytes) -> Iterator[None]:
    """Turns what parsers of images raise, exceptions of many types, into a DecodeError of one line.

    Raises:
        DecodeError: for any other exception.
    """
    try:
        yield
    except DecodeError:
        raise
    except Image.DecompressionBombError:
        raise TooManyPixelsError(f"{TOO_MANY}{WINDOWS_HINT}") from None
    except UnidentifiedImageError:
        raise DecodeError(f"cannot identify the image: {_describe(encoded)}") from None
    except MemoryError:
        # With so few pixels, it is what a header asks for, and no fault of the machine.
        raise DecodeError("it asks for more memory than its pixels need") from None
    except Exception as error:
        raise DecodeError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _describe(encoded: bytes) -> str:
    """Returns what bytes that Pillow does not take for an image are, as far as their beginning shows it."""
    if not encoded:
        return "it is empty"
    if encoded[4:8] == b"ftyp" and encoded[8:12] in _HEIF_BRANDS:
        return "it begins as HEIC does: pip install pillow-heif, or convert it to JPEG"
    if encoded[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return (
            "a damaged TIFF, or one whose bits or bands Pillow does not read, where 8-bit RGB is expected: save that, "
            f"gray, {AS_STORED}"
        )
    return f"it begins with {encoded[:_SHOWN_BYTES]!r}"

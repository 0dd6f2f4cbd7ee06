"""Resizes images on the host as torchvision does, with SIMD instructions."""

import cykooz_resizer as simd
import numpy as np
from jaxtyping import Real, UInt8
from PIL import Image

_BICUBIC = simd.ResizeAlg.convolution(simd.FilterType.catmull_rom)
_AREA = simd.ResizeAlg.convolution(simd.FilterType.box)
# By number of channels.
_FLOATS = {
    1: simd.PixelType.F32,
    2: simd.PixelType.F32x2,
    3: simd.PixelType.F32x3,
    4: simd.PixelType.F32x4,
}
_GROUP = max(_FLOATS)


def resize_bicubic(image: Real[np.ndarray, "H W c"], side: int) -> Real[np.ndarray, "side side c"]:
    """Resizes bicubically with antialiasing; 8-bit RGB in integers as Pillow's BICUBIC, differing by 1 at most.

    Args:
        image: an image of any size, of uint8, uint16 or float32.
        side: height and width of the result.
    """
    if not _is_rgb8(image):
        return resize_image(image, (side, side))
    height, width, _ = image.shape
    # The order of the two passes matters at sharp edges, where the first one clips. Since version 13,
    # Pillow resizes the columns first where that leaves less than half as much to do.
    columns_first = height - side > 2 * max(width - side, 0)
    options = simd.ResizeOptions(_BICUBIC)
    between = _new(width, side) if columns_first else _new(side, height)
    simd.Resizer().resize(_copied(image), between, options)
    result = _new(side, side)
    simd.Resizer().resize(between, result, options)
    return _pixels(result, side)


def resize_image(image: Real[np.ndarray, "H W c"], size: tuple[int, int]) -> Real[np.ndarray, "h w c"]:
    """Resizes any number of channels bicubically with antialiasing, as torchvision and Pillow do floating-point images.

    The values are those of Keys' kernel with a = -0.5, computed in floating point; integers are rounded once, at the
    end, and clipped to the range of their type.

    Args:
        image: an image of any size, of uint8, uint16 or float32.
        size: height and width of the result.
    """
    return _resize(image, size, simd.ResizeOptions(_BICUBIC, use_alpha=False))


def resize_with_pillow(
    image: Real[np.ndarray, "H W c"], size: tuple[int, int], resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> Real[np.ndarray, "h w c"]:
    """Resizes with antialiasing as evaluations do: 8-bit RGB by Pillow, as published scores; others in floating point.

    Args:
        image: an image of any size, of uint8, uint16 or float32.
        size: height and width of the result.
        resampling: Pillow's BICUBIC or BILINEAR.
    """

    def resize(plane: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(plane).resize((size[1], size[0]), resampling))

    if _is_rgb8(image):
        return resize(image)
    if resampling == Image.Resampling.BICUBIC:
        return resize_image(image, size)
    planes = [resize(image[..., channel].astype(np.float32)) for channel in range(image.shape[-1])]
    return _as_type(np.stack(planes, axis=-1), image.dtype)


def resize_by_area(
    image: Real[np.ndarray, "H W c"], side: int, box: tuple[float, float, float, float]
) -> Real[np.ndarray, "side side c"]:
    """Averages over the area that each pixel of the result covers; enlargements are bicubic.

    Args:
        image: an image of any size, of uint8, uint16 or float32.
        side: height and width of the result.
        box: left, top, width and height of the region to resize, in pixels and their fractions.
    """
    shrinks = min(box[2:]) >= side
    options = simd.ResizeOptions(_AREA if shrinks else _BICUBIC, use_alpha=False, crop_box=simd.CropBox(*box))
    if not _is_rgb8(image):
        return _resize(image, (side, side), options)
    result = _new(side, side)
    simd.Resizer().resize(_copied(image), result, options)
    return _pixels(result, side)


def _is_rgb8(image: np.ndarray) -> bool:
    return image.shape[-1] == 3 and image.dtype == np.uint8


def _resize(image: np.ndarray, size: tuple[int, int], options: simd.ResizeOptions) -> np.ndarray:
    """Resizes channels in groups, in floating point: with integers, the first of the two passes would clip."""
    resized = np.empty((*size, image.shape[-1]), image.dtype)
    for first in range(0, image.shape[-1], _GROUP):
        group = image[..., first : first + _GROUP].astype(np.float32)
        height, width, channels = group.shape
        result = simd.ImageData(size[1], size[0], _FLOATS[channels])
        source = simd.ImageData(width, height, _FLOATS[channels], group.tobytes())
        simd.Resizer().resize(source, result, options)
        values = np.frombuffer(result.get_buffer(), np.float32).reshape(*size, channels)
        resized[..., first : first + _GROUP] = _as_type(values, image.dtype)
    return resized


def _as_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns floating-point values rounded and clipped to an integer type, or as they are."""
    values = np.rint(values).clip(0, np.iinfo(dtype).max) if dtype.kind == "u" else values
    return values.astype(dtype)


def _copied(image: np.ndarray) -> simd.ImageData:
    return simd.ImageData(image.shape[1], image.shape[0], simd.PixelType.U8x3, image.tobytes())


def _new(width: int, height: int) -> simd.ImageData:
    return simd.ImageData(width, height, simd.PixelType.U8x3)


def _pixels(image: simd.ImageData, side: int) -> UInt8[np.ndarray, "side side 3"]:
    return np.frombuffer(image.get_buffer(), np.uint8).reshape(side, side, 3)

"""Resizes images on the host as torchvision does, with SIMD instructions."""

import cykooz_resizer as simd
import numpy as np
from jaxtyping import Real, UInt8

from croc_jax.data.decoding import Pixels

_BICUBIC = simd.ResizeAlg.convolution(simd.FilterType.catmull_rom)
_TYPES = {"uint8": simd.PixelType.U8, "uint16": simd.PixelType.U16, "float32": simd.PixelType.F32}
_AREA = simd.ResizeAlg.convolution(simd.FilterType.box)


def resize_bicubic(image: Real[np.ndarray, "H W c"], side: int) -> Real[np.ndarray, "side side c"]:
    """Resizes bicubically with antialiasing; 8-bit RGB in integers as Pillow's BICUBIC, differing by 1 at most.

    Args:
        image: an image of any size, of uint8, uint16 or float32.
        side: height and width of the result.
    """
    height, width, channels = image.shape
    if channels != 3 or image.dtype != np.uint8:
        planes = (_resize_plane(image[..., channel], (side, side)) for channel in range(channels))
        return np.stack(list(planes), axis=-1)
    # The order of the two passes matters at sharp edges, where the first one clips. Since version 13,
    # Pillow resizes the columns first where that leaves less than half as much to do.
    columns_first = height - side > 2 * max(width - side, 0)
    options = simd.ResizeOptions(_BICUBIC)
    between = _new(width, side) if columns_first else _new(side, height)
    simd.Resizer().resize(_copied(image), between, options)
    result = _new(side, side)
    simd.Resizer().resize(between, result, options)
    return _pixels(result, side)


def _resize_plane(plane: Real[np.ndarray, "H W"], size: tuple[int, int]) -> Real[np.ndarray, "h w"]:
    kind = _TYPES[plane.dtype.name]
    source = simd.ImageData(plane.shape[1], plane.shape[0], kind, plane.tobytes())
    result = simd.ImageData(size[1], size[0], kind)
    simd.Resizer().resize(source, result, simd.ResizeOptions(_BICUBIC))
    return np.frombuffer(result.get_buffer(), plane.dtype).reshape(size)


def resize_by_area(
    image: Pixels, side: int, box: tuple[float, float, float, float]
) -> UInt8[np.ndarray, "side side 3"]:
    """Averages over the area that each pixel of the result covers; enlargements are bicubic.

    Args:
        image: an image of any size.
        side: height and width of the result.
        box: left, top, width and height of the region to resize, in pixels and their fractions.
    """
    shrinks = min(box[2:]) >= side
    options = simd.ResizeOptions(_AREA if shrinks else _BICUBIC, crop_box=simd.CropBox(*box))
    result = _new(side, side)
    simd.Resizer().resize(_copied(image), result, options)
    return _pixels(result, side)


def _copied(image: Pixels) -> simd.ImageData:
    return simd.ImageData(image.shape[1], image.shape[0], simd.PixelType.U8x3, image.tobytes())


def _new(width: int, height: int) -> simd.ImageData:
    return simd.ImageData(width, height, simd.PixelType.U8x3)


def _pixels(image: simd.ImageData, side: int) -> UInt8[np.ndarray, "side side 3"]:
    return np.frombuffer(image.get_buffer(), np.uint8).reshape(side, side, 3)

"""Resizes images on the host as torchvision does: 8-bit RGB with SIMD instructions, others by sparse matrices."""

import functools
import math

import cykooz_resizer as simd
import numpy as np
from jaxtyping import Real, UInt8
from PIL import Image
from scipy import sparse

_BICUBIC = simd.ResizeAlg.convolution(simd.FilterType.catmull_rom)
_AREA = simd.ResizeAlg.convolution(simd.FilterType.box)
# Of Keys' cubic kernel, as in Pillow and torchvision with antialiasing.
_A = -0.5
# Of a pair of lengths each; that of a side of 10,000 pixels takes 300 KB.
_MAX_MATRICES = 128


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


def resize_image(
    image: Real[np.ndarray, "H W c"], size: tuple[int, int], *, by_area: bool = False
) -> Real[np.ndarray, "h w c"]:
    """Resizes any number of channels bicubically with antialiasing, as Pillow resizes floating-point images.

    Computed in floating point: integers are rounded once, at the end, and clipped to the range of their type.

    Args:
        image: an image of any size, of uint8, uint16 or float32.
        size: height and width of the result.
        by_area: average the area that each pixel of the result covers instead.
    """
    (height, width, channels), (new_height, new_width) = image.shape, size
    rows = np.ascontiguousarray(image).reshape(height, -1).astype(np.float32)
    rows = (_weights(height, new_height, by_area) @ rows).reshape(new_height, width, channels)
    columns = np.ascontiguousarray(rows.swapaxes(0, 1)).reshape(width, -1)
    columns = (_weights(width, new_width, by_area) @ columns).reshape(new_width, new_height, channels)
    return _as_type(np.ascontiguousarray(columns.swapaxes(0, 1)), image.dtype)


def _as_type(values: Real[np.ndarray, "..."], dtype: np.dtype) -> Real[np.ndarray, "..."]:
    """Returns floating-point values in a type of pixels: rounded and clipped if it holds integers."""
    if dtype.kind == "u":
        values = np.rint(values, out=values).clip(0, np.iinfo(dtype).max)
    return values.astype(dtype, copy=False)


@functools.lru_cache(_MAX_MATRICES)
def _weights(length: int, new_length: int, by_area: bool) -> sparse.csr_array:
    """Returns the matrix that resizes one axis; each of its rows sums to 1."""
    step = length / new_length
    # Enlargements interpolate between neighbors.
    scale = max(step, 1.0)
    reach = step / 2 if by_area else 2 * scale
    centers = (np.arange(new_length)[:, None] + 0.5) * step
    places = np.floor(centers - reach).astype(int) + np.arange(math.ceil(2 * reach) + 1)
    if by_area:
        weights = np.minimum(places + 1, centers + reach) - np.maximum(places, centers - reach)
        weights = np.maximum(weights, 0)
    else:
        x = np.abs(places + 0.5 - centers) / scale
        near = ((_A + 2) * x - (_A + 3)) * x**2 + 1
        far = _A * (((x - 5) * x + 8) * x - 4)
        weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    weights *= (places >= 0) & (places < length)
    used = weights != 0
    ends = np.concatenate([[0], used.sum(axis=1).cumsum()])
    values = (weights / weights.sum(axis=1, keepdims=True))[used].astype(np.float32)
    return sparse.csr_array((values, places[used], ends), shape=(new_length, length))


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
    image: UInt8[np.ndarray, "H W 3"], side: int, box: tuple[float, float, float, float]
) -> UInt8[np.ndarray, "side side 3"]:
    """Averages over the area that each pixel of the result covers; enlargements are bicubic.

    Args:
        image: an 8-bit RGB image of any size.
        side: height and width of the result.
        box: left, top, width and height of the region to resize, in pixels and their fractions.
    """
    shrinks = min(box[2:]) >= side
    options = simd.ResizeOptions(_AREA if shrinks else _BICUBIC, crop_box=simd.CropBox(*box))
    result = _new(side, side)
    simd.Resizer().resize(_copied(image), result, options)
    return _pixels(result, side)


def _is_rgb8(image: np.ndarray) -> bool:
    return image.shape[-1] == 3 and image.dtype == np.uint8


def _copied(image: np.ndarray) -> simd.ImageData:
    return simd.ImageData(image.shape[1], image.shape[0], simd.PixelType.U8x3, image.tobytes())


def _new(width: int, height: int) -> simd.ImageData:
    return simd.ImageData(width, height, simd.PixelType.U8x3)


def _pixels(image: simd.ImageData, side: int) -> UInt8[np.ndarray, "side side 3"]:
    return np.frombuffer(image.get_buffer(), np.uint8).reshape(side, side, 3)

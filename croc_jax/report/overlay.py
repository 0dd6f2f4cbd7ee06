"""Draws clusters over an image, pixel by pixel."""

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from croc_jax.report.style import cluster_color

SIDE = 224
_HATCH = 14
_LUMA = np.array((0.299, 0.587, 0.114))
# On darker photos the colors would not show.
_DARKEST = 60


def overlay(
    image: UInt8[np.ndarray, "H W 3"],
    labels: Int[np.ndarray, " n"],
    grid: tuple[int, int],
    *,
    valid: Bool[np.ndarray, " k"] | None = None,
    opacity: float = 0.6,
) -> UInt8[np.ndarray, "S T 3"]:
    """Returns an enlarged gray image with its patches tinted by cluster, and white lines between clusters.

    Args:
        image: a crop.
        labels: cluster of each patch.
        grid: rows and columns of patches.
        valid: clusters that are drawn in color, all by default; the others are hatched in gray.
        opacity: opacity of the tint.
    """
    gray = _DARKEST + (255 - _DARKEST) / 255 * (enlarge(image) @ _LUMA)
    height, width = gray.shape
    down, across = np.arange(height)[:, None], np.arange(width)
    clusters = labels.reshape(grid)[down * grid[0] // height, across * grid[1] // width]
    colors = 255 * np.stack([cluster_color(index) for index in range(int(labels.max()) + 1)])
    tinted = (1 - opacity) * gray[..., None] + opacity * colors[clusters]
    if valid is not None:
        hatched = np.where((down + across) % _HATCH < _HATCH / 2, 0.75, 1.0) * gray
        tinted = np.where(valid[clusters][..., None], tinted, hatched[..., None])
    tinted[1:][clusters[1:] != clusters[:-1]] = 255
    tinted[:, 1:][clusters[:, 1:] != clusters[:, :-1]] = 255
    return tinted.round().astype(np.uint8)


def enlarge(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "S T 3"]:
    """Returns an image at the size of all pictures: the longer side is `SIDE`."""
    height, width = image.shape[:2]
    share = SIDE / max(height, width)
    size = max(1, round(share * width)), max(1, round(share * height))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))

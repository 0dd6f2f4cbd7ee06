"""Figures of patch features: their principal components, and objects followed through a video."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from PIL import Image

from croc_jax.evaluation.components import principal_components
from croc_jax.evaluation.visualize import tint_objects
from croc_jax.report.figures import show_image
from croc_jax.report.style import NEUTRAL, figure_style

# Percent of the values clipped on either end: a few odd patches would leave all others gray.
_TAIL = 2.0


def component_colors(features: Float[np.ndarray, "b n d"]) -> UInt8[np.ndarray, "b n 3"]:
    """Returns the first three principal components of all patches of all images, as red, green and blue.

    The same color in several images means similar features.

    Args:
        features: features of patches, at least three each.

    Raises:
        ValueError: for fewer features, or values that are not finite.
    """
    return scale_to_colors(principal_components(features))


def scale_to_colors(scores: Float[np.ndarray, "*batch 3"]) -> UInt8[np.ndarray, "*batch 3"]:
    """Returns scores on three axes as red, green and blue, from the lowest to the highest, but for a few odd ones."""
    low, high = np.percentile(scores.reshape(-1, scores.shape[-1]), [_TAIL, 100 - _TAIL], axis=0)
    shares = np.clip((scores - low) / np.maximum(high - low, np.finfo(np.float64).tiny), 0, 1)
    return np.round(255 * shares).astype(np.uint8)


def plot_components(
    images: UInt8[np.ndarray, "b H W 3"], features: Float[np.ndarray, "b n d"], grid: tuple[int, int]
) -> Figure:
    """Returns images above the first three principal components of their patches, common to all of them.

    Args:
        images: images of one size.
        features: features of their patches, in row-major order.
        grid: rows and columns of patches.

    Raises:
        ValueError: if the shapes do not match; see also `component_colors`.
    """
    if features.shape[:2] != (len(images), grid[0] * grid[1]):
        raise ValueError(f"features {features.shape}: expected [{len(images)} {grid[0] * grid[1]} d] for grid={grid}")
    height, width = images.shape[1:3]
    maps = component_colors(features).reshape(len(images), *grid, 3)
    with figure_style(ink=NEUTRAL, soft=NEUTRAL):
        tile = 1.9
        figure = Figure(figsize=(tile * len(images), 2 * tile * height / width), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)  # pyright: ignore
        cells = figure.subplots(2, len(images), squeeze=False)
        for column, (image, colors) in enumerate(zip(images, maps, strict=True)):
            show_image(cells[0, column], image, "")
            smooth = Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC)
            show_image(cells[1, column], np.asarray(smooth), "")
        return figure


def plot_video(
    frames: Sequence[UInt8[np.ndarray, "H W 3"]], ids: Sequence[UInt8[np.ndarray, "H W"]], *, num_shown: int = 5
) -> Figure:
    """Returns a strip of frames, evenly spread over a video, with their objects.

    Args:
        frames: frames of the video.
        ids: ids of their objects; those of the first are given, the others predicted.
        num_shown: number of frames to draw.
    """
    places = np.unique(np.linspace(0, len(frames) - 1, num_shown).round().astype(int))
    height, width = frames[0].shape[:2]
    with figure_style(ink=NEUTRAL, soft=NEUTRAL):
        tile = 2.3
        figure = Figure(figsize=(tile * len(places), tile * height / width + 0.19), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.07, wspace=0)  # pyright: ignore
        for cell, place in zip(figure.subplots(1, len(places), squeeze=False)[0], places, strict=True):
            title = f"frame {place + 1}" if place else "frame 1: given"
            show_image(cell, tint_objects(frames[place], ids[place]), title)
        return figure

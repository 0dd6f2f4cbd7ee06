"""Predicted objects of a video as indexed PNGs, as a strip of overlays, and as a GIF."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Ids = UInt8[np.ndarray, "H W"]

_OPACITY = 0.55
_STRIP_WIDTH, _STRIP_FRAMES = 280, 6
_GIF_WIDTH, _GIF_MILLISECONDS = 427, 80


def davis_palette() -> UInt8[np.ndarray, "256 3"]:
    """Returns DAVIS's (and PASCAL VOC's) color of each id: its bits, dealt out to the three channels in turn."""
    ids, palette = np.arange(256), np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> channel) & 1) << (7 - bit)).astype(np.uint8)
        ids >>= 3
    return palette


def save_indexed(ids: Ids, file: Path) -> None:
    """Writes ids as a PNG with DAVIS's palette, as the DAVIS benchmark reads it."""
    image = Image.fromarray(ids)
    image.putpalette(davis_palette().tobytes())
    image.save(file)


def overlay(frame: Image.Image, ids: Ids, width: int) -> Image.Image:
    """Returns a frame with its objects in color, so many pixels wide."""
    size = (width, round(width * frame.height / frame.width))
    pixels = np.asarray(frame.resize(size, Image.Resampling.BICUBIC), np.float32)
    small = np.asarray(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))[..., None]
    colored = (1 - _OPACITY) * pixels + _OPACITY * davis_palette()[small[..., 0]]
    return Image.fromarray(np.where(small > 0, colored, pixels).astype(np.uint8))


def draw_strip(frames: Sequence[Image.Image], ids: Sequence[Ids]) -> Image.Image:
    """Returns a few overlays in a row, evenly spread over the video."""
    places = np.unique(np.linspace(0, len(frames) - 1, _STRIP_FRAMES).round().astype(int))
    cells = [overlay(frames[place], ids[place], _STRIP_WIDTH) for place in places]
    strip = Image.new("RGB", (sum(cell.width for cell in cells), cells[0].height))
    for index, cell in enumerate(cells):
        strip.paste(cell, (index * _STRIP_WIDTH, 0))
    return strip


def save_gif(frames: Sequence[Image.Image], ids: Sequence[Ids], file: Path) -> None:
    """Writes all overlays as an endless animation."""
    first, *rest = [overlay(frame, labels, _GIF_WIDTH) for frame, labels in zip(frames, ids, strict=True)]
    first.save(file, save_all=True, append_images=rest, duration=_GIF_MILLISECONDS, loop=0)

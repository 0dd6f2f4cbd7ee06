"""Procedural colors and textures of the synthetic scenes."""

import colorsys
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

Color = Float[np.ndarray, "3"]
Plane = Float[np.ndarray, "H W"]
TILE = 256


def random_color(
    rng: np.random.Generator,
    *,
    hue: tuple[float, float] = (0.0, 1.0),
    saturation: tuple[float, float] = (0.3, 0.85),
    value: tuple[float, float] = (0.4, 0.95),
) -> Color:
    """Draws an RGB color in [0, 1] from ranges of hue (which wraps around), saturation and value."""
    color = colorsys.hsv_to_rgb(rng.uniform(*hue) % 1, rng.uniform(*saturation), rng.uniform(*value))
    return np.array(color, np.float32)


def mix(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns first + (second - first) * weight, each pixel's weight for all channels."""
    return first + (second - first) * np.asarray(weight, np.float32)[..., None]


def tint(color: Color, brightness: np.ndarray) -> Float[np.ndarray, "H W 3"]:
    """Returns a color as bright as a plane says, in every pixel."""
    return color * np.asarray(brightness, np.float32)[..., None]


def ramp(values: np.ndarray, start: float, stop: float) -> np.ndarray:
    """Rises smoothly from 0 at `start` to 1 at `stop`, which may be the smaller."""
    t = np.clip((values - start) / (stop - start), 0, 1)
    return t * t * (3 - 2 * t)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]) -> Plane:
    """Returns noise of variance about 1 whose blobs are `cell` (height, width) pixels large."""
    coarse = [max(2, round(side / size) + 1) for side, size in zip(shape, cell, strict=True)]
    grid = Image.fromarray(rng.standard_normal(coarse, np.float32))
    return 1.5 * np.asarray(grid.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def fractal_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float, *, octaves: int = 4) -> Plane:
    """Returns noise with details of many sizes: each octave half as large and half as strong."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        size = max(cell / 2**octave, 1.0)
        total += 0.5**octave * smooth_noise(rng, shape, (size, size))
    return total / 1.3


class Ground(NamedTuple):
    """Where the ground lies under each pixel, in pixels of the image's bottom row.

    Attributes:
        down: distance toward the viewer.
        across: to the right of the middle.
        near: 0 at the horizon to 1 at the bottom.
        zoom: size at the bottom row of what is one pixel large here.
    """

    down: Plane
    across: Plane
    near: Plane
    zoom: Plane


def ground_plane(shape: tuple[int, int], horizon: float) -> Ground:
    """Returns a plane in perspective for an image of that height and width."""
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    offset = 0.06 * shape[0]
    below = np.maximum(rows - horizon, 0) + offset
    scale = shape[0] - horizon + offset
    zoom = scale / below
    return Ground(-scale * zoom, (columns - shape[1] / 2) * zoom, (below - offset) / (scale - offset), zoom)


def sample_upright(tile: Plane, zoom: Plane, stretch: float = 1.0) -> Plane:
    """Looks up a periodic tile so that it shrinks with distance but keeps its aspect, as grass does.

    Args:
        tile: periodic texture.
        zoom: see `Ground`.
        stretch: above 1 makes the texture finer.
    """
    level = np.log2(zoom)
    coarse = np.floor(level)
    rows, columns = np.mgrid[: zoom.shape[0], : zoom.shape[1]].astype(np.float32)
    weight = ramp(level - coarse, 0, 1)
    layers = []
    # Between two whole levels of size the texture fades over: a gradual zoom would tilt it.
    for step in (0, 1):
        factor = stretch * np.exp2(coarse + step)
        layers.append(tile[(rows * factor).astype(np.int32) % TILE, (columns * factor).astype(np.int32) % TILE])
    return layers[0] * (1 - weight) + layers[1] * weight


def sky(rng: np.random.Generator, shape: tuple[int, int]) -> Float[np.ndarray, "H W 3"]:
    """A gradient between two colors, with soft clouds."""
    hue = float(rng.choice([0.58, 0.55, 0.62, 0.03, 0.08, 0.9, 0.48]))
    top = random_color(rng, hue=(hue - 0.04, hue + 0.04), saturation=(0.2, 0.65), value=(0.45, 0.9))
    bottom = random_color(rng, hue=(hue - 0.12, hue + 0.12), saturation=(0.05, 0.35), value=(0.75, 1.0))
    height = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None].repeat(shape[1], 1)
    color = mix(top, bottom, height**0.8)
    wide = smooth_noise(rng, shape, (shape[0] / 6, shape[1] / 3))
    clouds = ramp(0.7 * wide + 0.6 * fractal_noise(rng, shape, shape[0] / 7), rng.uniform(0.2, 1.0), 2.2)
    return mix(color, np.clip(bottom * 1.15, 0, 1), rng.uniform(0.3, 0.95) * clouds)


def grass(rng: np.random.Generator, shape: tuple[int, int], horizon: float) -> Float[np.ndarray, "H W 3"]:
    """Upright blades that grow toward the viewer, in patches of two colors."""
    hue = rng.uniform(0.04, 0.48)
    base = random_color(rng, hue=(hue, hue), saturation=(0.3, 0.7), value=(0.35, 0.75))
    other = random_color(rng, hue=(hue - 0.08, hue + 0.08), saturation=(0.25, 0.75), value=(0.3, 0.8))
    ground = ground_plane(shape, horizon)
    blades = smooth_noise(rng, (TILE, TILE), (7, 1.6))
    tufts = smooth_noise(rng, (TILE, TILE), (16, 10))
    detail = 0.75 * sample_upright(blades, ground.zoom) + 0.35 * sample_upright(tufts, ground.zoom, 0.7)
    color = mix(base, other, ramp(smooth_noise(rng, shape, (shape[0] / 5, shape[1] / 3)), -1, 1))
    return color * (1 + 0.24 * (0.35 + 0.65 * ground.near) * np.clip(detail, -2, 2))[..., None]


def water(rng: np.random.Generator, shape: tuple[int, int], horizon: float) -> Float[np.ndarray, "H W 3"]:
    """Flat ripples with glints, darker toward the viewer."""
    hue = float(rng.choice([0.5, 0.55, 0.6, 0.45, 0.08, 0.95, 0.3]))
    deep = random_color(rng, hue=(hue - 0.05, hue + 0.05), saturation=(0.3, 0.75), value=(0.25, 0.6))
    light = random_color(rng, hue=(hue - 0.1, hue + 0.1), saturation=(0.1, 0.4), value=(0.7, 1.0))
    ground = ground_plane(shape, horizon)
    ripples = smooth_noise(rng, (TILE, TILE), (3, 17))
    waves = smooth_noise(rng, (TILE, TILE), (6, 40))
    height = 0.8 * sample_upright(ripples, ground.zoom, 1.2) + 0.6 * sample_upright(waves, ground.zoom)
    color = mix(light, deep, 0.35 + 0.55 * ground.near)
    return mix(color, light, 0.75 * ramp(height, 0.3, 2.2)) * (1 - 0.25 * ramp(-height, 0.2, 2.0))[..., None]


def road(rng: np.random.Generator, shape: tuple[int, int], horizon: float) -> Float[np.ndarray, "H W 3"]:
    """Speckled asphalt, or paving stones in perspective."""
    color = random_color(rng, saturation=(0.0, 0.3), value=(0.3, 0.75))
    down, across, near, _ = ground_plane(shape, horizon)
    speckle = rng.standard_normal(shape, np.float32)
    stains = smooth_noise(rng, shape, (shape[0] / 10, shape[1] / 4))
    brightness = 1 + 0.055 * speckle * (0.4 + 0.6 * near) + 0.06 * stains
    if rng.random() < 0.5:
        return tint(color, brightness)
    size = shape[0] * rng.uniform(0.16, 0.3)
    course = np.floor(0.9 * down / size)
    stagger = float(rng.choice([0.0, 0.5])) * (course % 2)
    stone = np.floor(across / size + stagger)
    shades = rng.uniform(0.85, 1.12, (64, 64)).astype(np.float32)
    joints = np.minimum(_edge(0.9 * down / size), _edge(across / size + stagger))
    brightness *= shades[course.astype(int) % 64, stone.astype(int) % 64]
    return tint(color, brightness * (1 - 0.4 * ramp(joints, 0.07, 0.02) * ramp(near, 0.02, 0.3)))


def bricks(rng: np.random.Generator, shape: tuple[int, int]) -> Float[np.ndarray, "H W 3"]:
    """Staggered bricks, each of its own shade, in light or dark mortar."""
    color = random_color(rng, saturation=(0.1, 0.6), value=(0.35, 0.85))
    mortar = np.clip(color * float(rng.choice([0.55, 1.35])), 0, 1)
    brick_height = rng.uniform(4.5, 8)
    brick_width = brick_height * rng.uniform(1.8, 2.8)
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    course = np.floor(rows / brick_height)
    along = columns / brick_width + 0.5 * (course % 2)
    shades = rng.uniform(0.75, 1.2, (64, 64)).astype(np.float32)
    brightness = shades[course.astype(int) % 64, np.floor(along).astype(int) % 64]
    brightness = brightness + 0.05 * rng.standard_normal(shape, np.float32)
    joints = np.minimum(_edge(rows / brick_height) * brick_height, _edge(along) * brick_width)
    return mix(tint(color, brightness), mortar, ramp(joints, 1.0, 0.4))


def _edge(values: np.ndarray) -> np.ndarray:
    """Returns the distance to the nearest whole number."""
    return np.abs(values - np.round(values))

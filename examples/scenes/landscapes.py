"""The painted world of a scene: sky, hills, ground, water and buildings, with their labels."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from scenes.sprites import Canvas
from scenes.textures import (
    bricks,
    fractal_noise,
    grass,
    mix,
    ramp,
    random_color,
    road,
    sky,
    smooth_noise,
    tint,
    water,
)

BACKGROUNDS = ("sky", "grass", "water", "wall", "road")
SKY, GRASS, WATER, WALL, ROAD = range(5)
FLOORS = ((grass, GRASS), (road, ROAD))


class World:
    """A scene in the making: what is behind is painted first.

    Attributes:
        color: color of each pixel, about 0 to 1.
        labels: class of each pixel.
        horizon: row of the horizon.
        light: side of the light source, -1 (left) to 1 (right).
        haze: color of the distance.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        """Starts with the sky alone."""
        self.rng, self.size = rng, size
        self.color = sky(rng, size)
        self.labels = np.full(size, SKY, np.uint8)
        self.horizon = size[0] * rng.uniform(0.3, 0.55)
        self.light = float(rng.choice([-1, 1]) * rng.uniform(0.3, 1.0))
        self.haze = self.color[int(self.horizon)].mean(0)
        self.rows, self.columns = np.mgrid[: size[0], : size[1]].astype(np.float32)

    def cover(self, color: np.ndarray, where: Float[np.ndarray, "H W"], label: int) -> None:
        """Paints a region given by its opacity, and labels where that is a half or more."""
        rows, columns = (np.flatnonzero(where.any(axis)) for axis in (1, 0))
        if rows.size:
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            self.color[box] = mix(self.color[box], color[box], where[box])
            self.labels[box][where[box] >= 0.5] = label

    def place(self, sprite: Canvas, *, foot: int, center: int, label: int, haze: float) -> None:
        """Pastes an object with its foot on a row and its center on a column."""
        height, width = sprite.shape
        top, left = foot - height, center - width // 2
        inside = (
            slice(max(top, 0), max(min(foot, self.size[0]), 0)),
            slice(max(left, 0), max(min(left + width, self.size[1]), 0)),
        )
        part = (
            slice(inside[0].start - top, inside[0].stop - top),
            slice(inside[1].start - left, inside[1].stop - left),
        )
        opacity = sprite.opacity[part][..., None]
        color = sprite.color[part] * (1 - haze) + self.haze * haze * opacity
        self.color[inside] = self.color[inside] * (1 - opacity) + color
        self.labels[inside][sprite.opacity[part] >= 0.5] = label

    def cast_shadow(self, sprite: Canvas, *, foot: int, center: int, strength: float) -> None:
        """Darkens the ground where the object stands between it and the light."""
        height, width = sprite.shape
        length = max(int(0.3 * height), 2)
        reach = round(0.6 * height)
        rows, columns = np.mgrid[:length, : width + 2 * reach]
        source_rows = np.clip(height - 1 - rows * height // length, 0, height - 1)
        source_columns = columns - reach + np.round(self.light * reach * rows / length).astype(int)
        known = (source_columns >= 0) & (source_columns < width)
        shadow = sprite.opacity[source_rows, np.clip(source_columns, 0, width - 1)] * known
        mask = np.zeros(self.size, np.float32)
        target_rows, target_columns = foot - 1 - rows, columns - reach + center - width // 2
        seen = (
            (target_rows >= 0) & (target_rows < self.size[0]) & (target_columns >= 0) & (target_columns < self.size[1])
        )
        mask[target_rows[seen], target_columns[seen]] = shadow[seen]
        mask = ndimage.gaussian_filter(mask, 0.8 + 0.012 * height)
        self.color *= 1 - strength * (mask * (self.rows > self.horizon))[..., None]


def _below(world: World, row: np.ndarray | float) -> np.ndarray:
    """Returns the opacity of everything below a row, or below a row a column, with a smooth edge."""
    return np.clip(world.rows - row + 0.5, 0, 1)


def _lay_ground(world: World, texture: np.ndarray, where: np.ndarray, label: int) -> None:
    fade = 0.55 * ramp(world.rows, world.horizon + 0.12 * world.size[0], world.horizon)[..., None]
    world.cover(texture * (1 - fade) + world.haze * fade, where, label)


def _add_hills(world: World) -> None:
    for _ in range(world.rng.integers(1, 3)):
        ridge = smooth_noise(world.rng, (1, world.size[1]), (1, world.size[1] / world.rng.uniform(1.5, 4)))
        crest = world.horizon - world.size[0] * (0.05 + 0.05 * ridge)
        color = grass(world.rng, world.size, world.horizon - 0.3 * world.size[0])
        world.cover(0.5 * color + 0.5 * world.haze, _below(world, crest), GRASS)


def paint_meadow(world: World) -> None:
    """Grass, perhaps with hills behind it, and a path or a pond."""
    if world.rng.random() < 0.6:
        _add_hills(world)
    _lay_ground(world, grass(world.rng, world.size, world.horizon), _below(world, world.horizon), GRASS)
    if world.rng.random() < 0.5:
        _add_path(world)
    else:
        _add_pond(world)


def _add_path(world: World) -> None:
    near = np.clip((world.rows - world.horizon) / (world.size[0] - world.horizon), 0, 1)
    start, end = world.rng.uniform(-0.3, 0.3, 2) * world.size[1]
    bend = world.rng.uniform(-0.25, 0.25) * world.size[1] * np.sin(np.pi * near)
    middle = world.size[1] / 2 + start + (end - start) * near + bend
    half = world.size[1] * (0.015 + world.rng.uniform(0.12, 0.25) * near)
    edge = np.clip(half - np.abs(world.columns - middle) + 0.5, 0, 1) * _below(world, world.horizon)
    _lay_ground(world, road(world.rng, world.size, world.horizon), edge, ROAD)


def _add_pond(world: World) -> None:
    height, width = world.size
    row = world.horizon + world.rng.uniform(0.35, 0.7) * (height - world.horizon)
    tall, wide = world.rng.uniform(0.08, 0.16) * height, world.rng.uniform(0.25, 0.45) * width
    center = world.rng.uniform(0.2, 0.8) * width
    ragged = 0.12 * smooth_noise(world.rng, world.size, (height / 12, width / 8))
    distance = np.hypot((world.rows - row) / tall, (world.columns - center) / wide) - 1 + ragged
    bank = np.clip(0.5 - (distance - 0.12) * tall / 2, 0, 1)
    world.color *= 1 - 0.35 * bank[..., None]
    world.cover(water(world.rng, world.size, world.horizon), np.clip(0.5 - distance * tall, 0, 1), WATER)


def paint_street(world: World) -> None:
    """Buildings along a road, perhaps with a verge."""
    height, width = world.size
    base = world.horizon + 0.1 * (height - world.horizon)
    left = -world.rng.uniform(0, 0.2) * width
    while left < width:
        right = left + world.rng.uniform(0.25, 0.6) * width
        if world.rng.random() < 0.85:
            _add_building(world, (left, right), (world.rng.uniform(0.02, 0.6) * world.horizon, base))
        left = right + world.rng.choice([0.0, 0.08]) * width
    _lay_ground(world, road(world.rng, world.size, world.horizon), _below(world, base), ROAD)
    if world.rng.random() < 0.6:
        curb = base + world.rng.uniform(0.1, 0.2) * (height - base)
        verge = _below(world, base) * (1 - _below(world, curb))
        _lay_ground(world, grass(world.rng, world.size, world.horizon), verge, GRASS)


def _add_building(world: World, sides: tuple[float, float], ends: tuple[float, float]) -> None:
    (left, right), (top, base) = sides, ends
    wall = bricks(world.rng, world.size) * (1 + 0.12 * world.light * (world.columns / world.size[1] - 0.5))[..., None]
    where = _inside(world, left, right, top, base)
    world.cover(wall, where, WALL)
    world.cover(wall * 0.6, _inside(world, left, right, top, top + 3) * where, WALL)
    step = world.size[0] * world.rng.uniform(0.14, 0.22)
    pane = random_color(world.rng, saturation=(0.1, 0.4), value=(0.2, 0.9))
    across, down = (world.columns - left) % step, (world.rows - top) % step
    panes = (
        np.minimum(across - 0.35 * step, 0.8 * step - across),
        np.minimum(down - 0.3 * step, 0.9 * step - down),
    )
    whole = (world.columns - across + step < right) & (world.rows - down + step < base)
    for margin, color in ((0.0, wall * 0.55), (1.2, tint(pane, 1.1 - 0.4 * down / step))):
        world.cover(color, np.clip(np.minimum(*panes) + 0.5 - margin, 0, 1) * where * whole, WALL)


def _inside(world: World, left: float, right: float, top: float, bottom: float) -> np.ndarray:
    """Returns the opacity of an upright rectangle with smooth edges."""
    across = np.minimum(world.columns - left, right - world.columns)
    return np.clip(np.minimum(across, np.minimum(world.rows - top, bottom - world.rows)) + 0.5, 0, 1)


def paint_lake(world: World) -> None:
    """Water up to the horizon or to hills, and a beach in front."""
    if world.rng.random() < 0.7:
        _add_hills(world)
    _lay_ground(world, water(world.rng, world.size, world.horizon), _below(world, world.horizon), WATER)
    height, width = world.size
    beach = world.rng.uniform(0.35, 0.75) * (height - world.horizon) + world.horizon
    shore = beach + 0.07 * height * smooth_noise(world.rng, (1, width), (1, width / 2.5))
    foam = np.clip(1 - np.abs(world.rows - shore) / (0.018 * height), 0, 1)
    make, label = FLOORS[world.rng.integers(2)]
    world.cover(make(world.rng, world.size, world.horizon), _below(world, shore), label)
    world.color += 0.25 * foam[..., None]


def paint_yard(world: World) -> None:
    """A wall behind a floor of grass or road."""
    base = world.horizon + world.rng.uniform(0.05, 0.2) * (world.size[0] - world.horizon)
    wall = bricks(world.rng, world.size) * (1 + 0.08 * fractal_noise(world.rng, world.size, 30.0))[..., None]
    top = world.rng.uniform(-0.1, 0.45) * world.horizon
    world.cover(wall, _below(world, top), WALL)
    world.cover(wall * 0.7, _below(world, top) * (1 - _below(world, top + 4)), WALL)
    make, label = FLOORS[world.rng.integers(2)]
    world.cover(make(world.rng, world.size, world.horizon), _below(world, base), label)
    contact = np.clip(1 - np.abs(world.rows - base) / (0.04 * world.size[0]), 0, 1)
    world.color *= 1 - 0.35 * contact[..., None]


def light_up(world: World) -> None:
    """Dapples the ground with shadows of clouds, and tints and tilts the light of the whole scene."""
    height, width = world.size
    shade = ramp(smooth_noise(world.rng, world.size, (height / 3, width / 2)), 0.3, 1.6)
    world.color *= 1 - (0.3 * world.rng.random() * shade * (world.rows > world.horizon))[..., None]
    slope = 0.16 * world.light * (world.columns / width - 0.5) + world.rng.uniform(-0.1, 0.1) * (
        world.rows / height - 0.5
    )
    warmth = world.rng.uniform(-0.08, 0.08)
    world.color *= (world.rng.uniform(0.9, 1.15) * (1 + slope))[..., None] * np.array([1 + warmth, 1, 1 - warmth])


# Each paints the background of one kind of scene.
LANDSCAPES: tuple[Callable[[World], None], ...] = (paint_meadow, paint_street, paint_lake, paint_yard)

"""Composes a scene: a landscape, objects that hide one another, their shadows, and light."""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from scenes.landscapes import (
    BACKGROUNDS,
    LANDSCAPES,
    SKY,
    WATER,
    World,
    light_up,
)
from scenes.sprites import OBJECTS

CLASS_NAMES = (*BACKGROUNDS, *OBJECTS)
SPLITS = ("train", "val")
# Height in pixels under which an object would be a few specks.
SMALLEST = 10
# How often each object stands on land.
ON_LAND = {"tree": 0.25, "ball": 0.2, "crate": 0.2, "animal": 0.23, "tent": 0.12}


class Scene(NamedTuple):
    """An image and the class of each of its pixels."""

    image: UInt8[np.ndarray, "H W 3"]
    labels: UInt8[np.ndarray, "H W"]


def make_scene(seed: int, split: str, index: int, *, size: tuple[int, int] = (144, 192)) -> Scene:
    """Draws one scene; a pure function of its arguments.

    Args:
        seed: seed of the whole set.
        split: "train" or "val"; the same index gives unrelated scenes in them.
        index: index of the scene.
        size: height and width in pixels.
    """
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    world = World(rng, size)
    LANDSCAPES[index % len(LANDSCAPES)](world)
    _add_sky_objects(world)
    _add_objects(world)
    light_up(world)
    pixels = np.clip(world.color + 0.012 * rng.standard_normal((*size, 3), np.float32), 0, 1)
    return Scene(np.round(255 * pixels).astype(np.uint8), world.labels)


def _add_sky_objects(world: World) -> None:
    draw, _ = OBJECTS["balloon"]
    for _ in range(world.rng.choice(3, p=[0.45, 0.4, 0.15])):
        height = int(world.size[0] * world.rng.uniform(0.12, 0.4))
        center = int(world.rng.uniform(0.05, 0.95) * world.size[1])
        foot = int(world.rng.uniform(min(0.7 * height, world.horizon), 1.05 * world.horizon))
        if world.labels[max(foot - height // 2, 0), min(center, world.size[1] - 1)] == SKY:
            sprite = draw(world.rng, height, world.light)
            world.place(sprite, foot=foot, center=center, label=CLASS_NAMES.index("balloon"), haze=0.1)


def _add_objects(world: World) -> None:
    """Stands objects on the ground, the far ones first, so that near ones hide them."""
    for near in np.sort(world.rng.uniform(0.03, 1.0, world.rng.integers(3, 8))).tolist():
        foot = int(world.horizon + (0.12 + 0.9 * near) * (world.size[0] - world.horizon))
        center = int(world.rng.uniform(0.02, 0.98) * world.size[1])
        name = (
            "boat"
            if _is_water(world, foot, center, 0)
            else str(world.rng.choice(list(ON_LAND), p=list(ON_LAND.values())))
        )
        draw, usual = OBJECTS[name]
        height = int(world.size[0] * (0.25 + 0.65 * near) * usual * world.rng.uniform(0.75, 1.25))
        if height < SMALLEST or (name == "boat" and not _is_water(world, foot, center, height // 3)):
            continue
        if world.rng.random() < 0.5:
            sprite = draw(world.rng, height, world.light)
        else:
            sprite = draw(world.rng, height, -world.light).mirrored()
        world.cast_shadow(sprite, foot=foot, center=center, strength=0.2 if name == "boat" else 0.45)
        world.place(sprite, foot=foot, center=center, label=CLASS_NAMES.index(name), haze=0.35 * (1 - near) ** 2)


def _is_water(world: World, row: int, column: int, reach: int) -> bool:
    columns = np.clip([column - reach, column, column + reach], 0, world.size[1] - 1)
    return bool((world.labels[min(row, world.size[0]) - 1, columns] == WATER).all())

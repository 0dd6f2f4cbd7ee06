"""Films a scene whose objects move, with the exact mask of each in every frame: videos without a download."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from scenes.landscapes import World, light_up, paint_meadow, paint_street, paint_yard
from scenes.sprites import OBJECTS, Canvas

LANDSCAPES = (paint_meadow, paint_street, paint_yard)
# Those that move, nearest first; the balloon flies.
MOVING = ("animal", "ball", "balloon")
STANDING = ("tree", "tent", "crate")


class Frame(NamedTuple):
    """An image and the number of the moving object that each pixel belongs to, 0 for none."""

    image: UInt8[np.ndarray, "H W 3"]
    ids: UInt8[np.ndarray, "H W"]


class _Actor(NamedTuple):
    """An object, the path of its foot as shares of the frame, from the first frame to the last, and its number."""

    sprite: Canvas
    start: tuple[float, float]
    end: tuple[float, float]
    number: int


def make_film(seed: int, num_frames: int = 16, *, size: tuple[int, int] = (240, 432)) -> Iterator[Frame]:
    """Yields the frames of a film; a pure function of its arguments.

    Things that stand are unlabeled, as the landscape is; an animal (1), a ball (2) and a balloon (3)
    move before and behind them.

    Args:
        seed: seed of landscape, objects and paths.
        num_frames: 2 or more.
        size: height and width in pixels.

    Raises:
        ValueError: for fewer frames.
    """
    if num_frames < 2:
        raise ValueError(f"num_frames={num_frames}: a film has at least 2 frames")
    rng = np.random.default_rng((seed, num_frames))
    world = World(np.random.default_rng((seed, 1)), size)
    LANDSCAPES[seed % len(LANDSCAPES)](world)
    actors = _cast(np.random.default_rng((seed, 2)), world)
    for moment in np.linspace(0, 1, num_frames):
        frame = copy.copy(world)
        frame.color, frame.labels = world.color.copy(), np.zeros(size, np.uint8)
        for actor in actors:
            _act(frame, actor, float(moment))
        # The same light in all frames.
        frame.rng = np.random.default_rng((seed, 3))
        light_up(frame)
        pixels = np.clip(frame.color + 0.012 * rng.standard_normal((*size, 3), np.float32), 0, 1)
        yield Frame(np.round(255 * pixels).astype(np.uint8), frame.labels)


def write_film(root: str | Path, *, seed: int = 0, num_frames: int = 16, size: tuple[int, int] = (240, 432)) -> Path:
    """Writes ROOT/images/film-SEED and ROOT/masks/film-SEED, as video evaluation reads them; returns ROOT.

    Args:
        root: the folder to write.
        seed: as for `make_film`.
        num_frames: as for `make_film`.
        size: as for `make_film`.
    """
    root = Path(root)
    images, masks = (root / kind / f"film-{seed}" for kind in ("images", "masks"))
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(make_film(seed, num_frames, size=size)):
        Image.fromarray(frame.image).save(images / f"{number:05d}.jpg", quality=95)
        Image.fromarray(frame.ids).save(masks / f"{number:05d}.png")
    return root


def _cast(rng: np.random.Generator, world: World) -> list[_Actor]:
    """Returns all objects, the far ones first."""
    height, horizon = world.size[0], world.horizon / world.size[0]
    actors = []
    for place, name in enumerate(rng.permutation(STANDING).tolist()):
        depth = rng.uniform(0.1, 0.55)
        at = (0.18 + 0.32 * place + rng.uniform(-0.05, 0.05), horizon + (0.05 + 0.9 * depth) * (1 - horizon))
        actors.append(_Actor(_draw(rng, name, height, depth, world.light), at, at, 0))
    for number, name in enumerate(MOVING, start=1):
        depth = (0.62, 0.95, 0.3)[number - 1]
        foot = horizon * 0.95 if name == "balloon" else horizon + (0.05 + 0.9 * depth) * (1 - horizon)
        sprite, way = _draw(rng, name, height, depth, world.light), (1 if name == "animal" else -1)
        reach, rise = (0.2, 0.1) if name == "balloon" else (0.32, 0.0)
        start, end = (0.5 - reach * way, foot), (0.5 + reach * way, foot - rise)
        actors.append(_Actor(sprite, start, end, number))
    return sorted(actors, key=lambda actor: actor.start[1])


def _draw(rng: np.random.Generator, name: str, height: int, depth: float, light: float) -> Canvas:
    draw, usual = OBJECTS[name]
    return draw(rng, round(height * (0.35 + 0.5 * depth) * usual), light)


def _act(frame: World, actor: _Actor, moment: float) -> None:
    """Puts an object where it is at a moment from 0 to 1."""
    across, down = ((1 - moment) * start + moment * end for start, end in zip(actor.start, actor.end, strict=True))
    foot, center = round(down * frame.size[0]), round(across * frame.size[1])
    flies = down * frame.size[0] < frame.horizon
    if not flies:
        frame.cast_shadow(actor.sprite, foot=foot, center=center, strength=0.4)
    frame.place(actor.sprite, foot=foot, center=center, label=actor.number, haze=0.05)

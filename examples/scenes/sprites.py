"""The objects of the synthetic scenes, each drawn upright on a small canvas of its own."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from scenes.textures import (
    fractal_noise,
    mix,
    ramp,
    random_color,
    smooth_noise,
    tint,
)

BLACK, GRAY, WHITE = (np.full(3, value, np.float32) for value in (0.05, 0.22, 1.0))
BROWN = np.array([0.35, 0.25, 0.18], np.float32)


class Canvas:
    """An image with transparency that shapes are painted on, back to front.

    Coordinates are in units of the object's height: x from -aspect / 2 to aspect / 2 rightward,
    y from 0 at the foot to 1 at the top.

    Attributes:
        color: RGB times opacity `[H W 3]`.
        opacity: `[H W]`.
        x: x of each pixel's center.
        y: y of each pixel's center.
    """

    def __init__(self, height: int, aspect: float) -> None:
        """Starts transparent, `height` pixels high and `aspect` times as wide."""
        width = max(round(height * aspect), 2)
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        self.x = (columns + 0.5 - width / 2) / height
        self.y = 1 - (rows + 0.5) / height
        self.pixel = 1 / height
        self.color = np.zeros((height, width, 3), np.float32)
        self.opacity = np.zeros((height, width), np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.opacity.shape[0], self.opacity.shape[1]

    def paint(self, color: np.ndarray, distance: Float[np.ndarray, "H W"]) -> None:
        """Paints where the signed distance to a shape (in heights) is negative, with smooth edges."""
        cover = np.clip(0.5 - distance / self.pixel, 0, 1).astype(np.float32)
        self.color = mix(self.color, color, cover)
        self.opacity = self.opacity * (1 - cover) + cover

    def mirrored(self) -> "Canvas":
        """Flips what is painted so far, left to right."""
        self.color, self.opacity = self.color[:, ::-1], self.opacity[:, ::-1]
        return self

    def ellipse(self, x: float, y: float, width: float, height: float) -> Float[np.ndarray, "H W"]:
        """Returns about the signed distance to an ellipse of these half axes."""
        norm = np.hypot((self.x - x) / width, (self.y - y) / height)
        return (norm - 1) * min(width, height)

    def box(self, left: float, right: float, bottom: float, top: float) -> Float[np.ndarray, "H W"]:
        """Returns the signed distance to an upright box, exact at its edges."""
        return np.maximum.reduce([left - self.x, self.x - right, bottom - self.y, self.y - top])

    def limb(self, start: tuple[float, float], end: tuple[float, float], radius: float) -> Float[np.ndarray, "H W"]:
        """Returns the signed distance to a thick line with round ends."""
        across, up = end[0] - start[0], end[1] - start[1]
        t = ((self.x - start[0]) * across + (self.y - start[1]) * up) / (across**2 + up**2)
        t = np.clip(t, 0, 1)
        return np.hypot(self.x - start[0] - t * across, self.y - start[1] - t * up) - radius

    def polygon(self, *corners: tuple[float, float]) -> Float[np.ndarray, "H W"]:
        """Returns the signed distance to the edges of a convex polygon with clockwise corners."""
        sides = []
        for (x, y), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
            length = np.hypot(x2 - x, y2 - y)
            sides.append(((self.y - y) * (x2 - x) - (self.x - x) * (y2 - y)) / length)
        return np.maximum.reduce(sides)

    def ball_shade(self, x: float, y: float, radius: float, light: float) -> Float[np.ndarray, "H W"]:
        """Returns the brightness of a sphere lit from above and from the side `light` (-1 to 1)."""
        across, up = (self.x - x) / radius, (self.y - y) / radius
        toward = np.sqrt(np.clip(1 - across**2 - up**2, 0, 1))
        return 0.5 + 0.55 * np.clip(0.55 * light * across + 0.6 * up + 0.55 * toward, -0.3, 1)


def tree(rng: np.random.Generator, height: int, light: float) -> Canvas:
    """A trunk under clumps of leaves, or a conifer of stacked cones."""
    canvas = Canvas(height, 0.8)
    bark = random_color(rng, hue=(0.02, 0.12), saturation=(0.2, 0.6), value=(0.2, 0.5))
    streaks = 1 + 0.25 * smooth_noise(rng, canvas.shape, (9, 1.5))
    lean = rng.uniform(-0.04, 0.04)
    canvas.paint(
        tint(bark, streaks),
        canvas.limb((0, 0), (lean, 0.5), rng.uniform(0.025, 0.045)) - 0.02 * ramp(canvas.y, 0.12, 0),
    )
    leaf = random_color(rng, hue=(-0.12, 0.5), saturation=(0.3, 0.8), value=(0.35, 0.8))
    leaves = smooth_noise(rng, canvas.shape, (2.6, 2.6))
    ragged = 0.016 * smooth_noise(rng, canvas.shape, (3.5, 3.5))
    if rng.random() < 0.3:
        for level in range(5):
            base, half = 0.16 + 0.15 * level, 0.34 - 0.055 * level
            shade = 0.55 + 0.1 * level + 0.5 * ramp(canvas.y, base, base + 0.28) * ramp(light * canvas.x, -0.3, 0.3)
            cone = canvas.polygon((-half, base), (0, base + 0.3), (half, base))
            canvas.paint(tint(leaf, shade * (0.85 + 0.2 * leaves)), cone + 0.8 * ragged)
        return canvas
    for _ in range(16):
        angle, reach = rng.uniform(0, 2 * np.pi), 0.19 * np.sqrt(rng.random())
        x, y, radius = (
            lean + 1.1 * reach * np.cos(angle),
            0.65 + reach * np.sin(angle),
            rng.uniform(0.08, 0.13),
        )
        shade = canvas.ball_shade(x, y, 1.15 * radius, light) * (0.8 + 0.35 * (y - 0.45)) * (0.95 + 0.22 * leaves)
        canvas.paint(tint(leaf, shade), canvas.ellipse(x, y, radius, radius) + ragged)
    return canvas


def ball(rng: np.random.Generator, height: int, light: float) -> Canvas:
    """A sphere with panels or dots, and a highlight."""
    canvas = Canvas(height, 1.0)
    first, second = random_color(rng), random_color(rng)
    turn = rng.uniform(0, np.pi)
    across, up = 2 * canvas.x, 2 * canvas.y - 1
    across, up = across * np.cos(turn) + up * np.sin(turn), up * np.cos(turn) - across * np.sin(turn)
    toward = np.sqrt(np.clip(1 - across**2 - up**2, 0, 1))
    longitude, latitude = np.arctan2(across, toward + 1e-3), np.arcsin(np.clip(up, -1, 1))
    if rng.random() < 0.5:
        pattern = np.sin(3 * longitude + rng.uniform(0, 6))
    else:
        pattern = np.sin(5 * longitude + rng.uniform(0, 6)) * np.sin(5 * latitude + rng.uniform(0, 6)) - 0.25
    color = mix(first, second, ramp(pattern, -0.12, 0.12)) * canvas.ball_shade(0, 0.5, 0.5, light)[..., None]
    glint = ramp(np.hypot(canvas.x - 0.17 * light, canvas.y - 0.72), 0.14, 0.02)
    canvas.paint(mix(color, WHITE, 0.7 * glint), canvas.ellipse(0, 0.5, 0.495, 0.495))
    return canvas


def crate(rng: np.random.Generator, height: int, light: float) -> Canvas:
    """A wooden box of planks in a frame, seen from a corner above."""
    canvas = Canvas(height, 1.25)
    wood = random_color(rng, saturation=(0.2, 0.7), value=(0.45, 0.9))
    grain = 1 + 0.07 * smooth_noise(rng, canvas.shape, (1.5, 14))
    planks = int(rng.integers(4, 7))
    along = (canvas.y if rng.random() < 0.5 else canvas.x + 0.6) / 0.76 * planks
    gaps = 1 - 0.5 * ramp(np.abs(along - np.round(along)), 0.12, 0.04)
    shades = rng.uniform(0.85, 1.1, 16).astype(np.float32)[np.floor(along).astype(int) % 16]
    slant, top = 0.24, 0.76
    left, right = -0.6, 0.34
    lid = canvas.polygon((left, top), (left + slant, 0.99), (right + slant, 0.99), (right, top))
    side = canvas.polygon((right, 0), (right, top), (right + slant, 0.99), (right + slant, 0.23))
    canvas.paint(tint(wood, 1.12 * grain), lid)
    canvas.paint(tint(wood, (0.62 + 0.15 * light) * grain * gaps), side)
    canvas.paint(tint(wood, (0.9 - 0.1 * light) * grain * gaps * shades), canvas.box(left, right, 0, top))
    frame = tint(wood, (0.75 - 0.1 * light) * grain)
    inside = canvas.box(left + 0.08, right - 0.08, 0.08, top - 0.08)
    canvas.paint(frame, np.maximum(canvas.box(left, right, 0, top), -inside))
    if rng.random() < 0.6:
        brace = canvas.limb((left + 0.05, 0.05), (right - 0.05, top - 0.05), 0.04)
        canvas.paint(frame * 1.1, np.maximum(brace, canvas.box(left, right, 0, top)))
    return canvas


def animal(rng: np.random.Generator, height: int, light: float) -> Canvas:
    """Four legs, a barrel, neck, head and tail, in a coat of patches or stripes."""
    canvas = Canvas(height, 1.5)
    coat = random_color(rng, saturation=(0.05, 0.65), value=(0.5, 0.95))
    marks = coat * rng.uniform(0.15, 0.5) if rng.random() < 0.6 else random_color(rng, value=(0.15, 0.9))
    if rng.random() < 0.5:
        warp = 0.06 * smooth_noise(rng, canvas.shape, (height / 4, height / 4))
        pattern = np.sin(rng.uniform(38, 55) * (canvas.x + 0.25 * canvas.y + warp))
    else:
        pattern = 0.9 * smooth_noise(rng, canvas.shape, (height / 7, height / 6)) - 0.15
    fur = mix(coat, marks, ramp(pattern, -0.25, 0.25))
    hoof, far = 0.06 * rng.uniform(0.6, 1), fur * 0.6
    neck = rng.uniform(0.8, 0.88)
    for x in (-0.3, 0.2):
        canvas.paint(far, canvas.limb((x + 0.1, 0.04), (x + 0.06, 0.4), 0.038))
    canvas.paint(far, canvas.limb((-0.45, 0.55), (-0.55, 0.25), 0.018))
    for x in (-0.38, 0.14):
        canvas.paint(fur * 0.85, canvas.limb((x, 0.045), (x + 0.04, 0.42), 0.045))
        canvas.paint(marks * 0.4, canvas.box(x - 0.05, x + 0.05, 0, hoof))
    shade = 0.65 + 0.45 * ramp(canvas.y + 0.1 * light * canvas.x, 0.28, 0.68)
    body = fur * shade[..., None]
    canvas.paint(body, canvas.ellipse(-0.1, 0.5, 0.37, 0.2))
    canvas.paint(body, canvas.limb((0.16, 0.56), (0.38, neck - 0.05), 0.085))
    canvas.paint(fur, canvas.limb((0.36, neck + 0.1), (0.37, neck), 0.03))
    canvas.paint(body * 1.05, canvas.limb((0.38, neck), (0.56, neck - 0.12), 0.075))
    canvas.paint(BLACK, canvas.ellipse(0.43, neck + 0.01, 0.018, 0.018))
    return canvas


def tent(rng: np.random.Generator, height: int, light: float) -> Canvas:
    """A striped pavilion with a pointed roof, a door and a flag."""
    canvas = Canvas(height, 1.15)
    first, second = random_color(rng), random_color(rng, saturation=(0.0, 0.5), value=(0.6, 1.0))
    count = int(rng.integers(4, 8))
    eaves, peak = rng.uniform(0.36, 0.46), 0.88
    spread = np.where(canvas.y > eaves, np.clip((peak - canvas.y) / (peak - eaves), 0.02, 1), 1)
    cloth = mix(first, second, ramp(np.sin(np.pi * count * canvas.x / (0.55 * spread)), -0.25, 0.25))
    side = 0.85 + 0.25 * ramp(light * canvas.x, -0.5, 0.5)
    canvas.paint(GRAY, canvas.limb((0, 0.85), (0, 0.985), 0.008))
    canvas.paint(first * 0.9, canvas.polygon((0.0, 0.9), (0.0, 0.99), (0.15, 0.945)))
    walls = canvas.polygon((-0.5, 0), (-0.46, eaves), (0.46, eaves), (0.5, 0))
    canvas.paint(cloth * (0.85 * side)[..., None], walls)
    canvas.paint(first * 0.2, canvas.polygon((-0.12, 0), (0, 0.8 * eaves), (0.12, 0)))
    roof = canvas.polygon((-0.55, eaves - 0.03), (0, peak), (0.55, eaves - 0.03))
    canvas.paint(cloth * (1.1 * side)[..., None], roof)
    canvas.paint(second * 0.7, np.maximum(roof, canvas.y - eaves + 0.005))
    return canvas


def balloon(rng: np.random.Generator, height: int, light: float) -> Canvas:
    """A hot-air balloon: curved gores of two colors, ropes and a basket."""
    canvas = Canvas(height, 0.78)
    first, second = random_color(rng), random_color(rng)
    round_ = canvas.ellipse(0, 0.63, 0.36, 0.36)
    skirt = canvas.polygon((-0.1, 0.2), (-0.335, 0.5), (0.335, 0.5), (0.1, 0.2))
    width = np.where(
        canvas.y > 0.55,
        np.sqrt(np.clip(0.36**2 - (canvas.y - 0.63) ** 2, 1e-4, 1)),
        0.1 + 0.78 * (canvas.y - 0.2),
    )
    gore = np.arcsin(np.clip(canvas.x / np.clip(width, 0.05, 1), -1, 1))
    color = mix(first, second, ramp(np.sin(int(rng.choice([4, 5, 6])) * gore + rng.uniform(0, 3)), -0.15, 0.15))
    if rng.random() < 0.5:
        band = rng.uniform(0.5, 0.7)
        color = mix(color, random_color(rng), ramp(np.abs(canvas.y - band), 0.06, 0.045))
    color = color * canvas.ball_shade(0, 0.6, 0.45, light)[..., None]
    for x in (-0.07, 0.07):
        canvas.paint(GRAY, canvas.limb((x, 0.1), (1.3 * x, 0.22), 0.006))
    weave = 1 + 0.2 * np.sign(np.sin(160 * canvas.x) * np.sin(160 * canvas.y))
    canvas.paint(
        tint(random_color(rng, hue=(0.05, 0.12), value=(0.3, 0.6)), weave),
        canvas.box(-0.075, 0.075, 0.0, 0.11),
    )
    canvas.paint(color, np.minimum(round_, skirt))
    return canvas


def boat(rng: np.random.Generator, height: int, light: float) -> Canvas:
    """A sailing boat: planked hull, mast, two sails with seams."""
    canvas = Canvas(height, 0.95)
    paint, cloth = random_color(rng), random_color(rng, saturation=(0.0, 0.6), value=(0.65, 1.0))
    seams = 1 - 0.25 * ramp(np.abs(12 * canvas.y - np.round(12 * canvas.y)), 0.12, 0.03)
    billow = 0.85 + 0.3 * ramp(light * canvas.x + 0.25 * canvas.y, -0.3, 0.4)
    folds = 1 + 0.05 * fractal_noise(rng, canvas.shape, height / 4, octaves=2)
    sail = tint(cloth, seams * billow * folds)
    mast = rng.uniform(-0.05, 0.08)
    canvas.paint(BROWN, canvas.limb((mast, 0.15), (mast, 0.985), 0.012))
    canvas.paint(sail, canvas.polygon((mast + 0.02, 0.24), (mast + 0.02, 0.96), (0.42, 0.24)))
    canvas.paint(sail * 0.85, canvas.polygon((-0.4, 0.26), (mast - 0.02, 0.9), (mast - 0.02, 0.26)))
    hull = canvas.polygon((-0.32, 0.0), (-0.46, 0.2), (0.46, 0.2), (0.3, 0.0))
    planks = 1 - 0.3 * ramp(np.abs(16 * canvas.y - np.round(16 * canvas.y)), 0.16, 0.05)
    canvas.paint(tint(paint, planks * (0.6 + 0.4 * ramp(canvas.y, 0, 0.2))), hull)
    canvas.paint(np.clip(cloth * 1.05, 0, 1), np.maximum(hull, 0.17 - canvas.y))
    return canvas


Draw = Callable[[np.random.Generator, int, float], Canvas]
# How to draw each class of objects, and its usual height over the height of the foreground's tallest.
OBJECTS: dict[str, tuple[Draw, float]] = {
    "tree": (tree, 1.0),
    "ball": (ball, 0.3),
    "crate": (crate, 0.4),
    "animal": (animal, 0.55),
    "tent": (tent, 0.75),
    "balloon": (balloon, 0.6),
    "boat": (boat, 0.6),
}

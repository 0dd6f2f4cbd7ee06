"""Color jitter, blur, solarization and normalization of whole batches, on the device.

Of 8-bit RGB images, the single operations work on color planes `[3 H W]` that hold whole numbers from 0 to 255 as
float32, and round as Pillow does, which the official code calls; `jax.vmap` them over more.
Between one pass over an image and the next, the numbers are kept as bytes: memory traffic is
what all this costs. Images of other formats go through `photometric_channels`.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real, UInt8

from croc_jax.data import photometric_channels
from croc_jax.data.config import PhotometricConfig
from croc_jax.data.normalization import Colors, normalize, standardize, to_unit
from croc_jax.data.photometric_draws import BRIGHTNESS, CONTRAST, HUE, SATURATION, Draws, draw
from croc_jax.float32 import in_float32
from croc_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from croc_jax.pixel_format import RGB8, PixelFormat

Planes = Float[Array, "3 H W"]
Bytes = UInt8[Array, "3 H W"]
Scalar = Float[Array, ""]

_SOLARIZE_THRESHOLD = 128
_BOX_PASSES = 3


@in_float32
def augment(
    rng: Array,
    views: Real[Array, "b v H W c"],
    config: PhotometricConfig,
    mean: Colors = IMAGENET_MEAN,
    std: Colors = IMAGENET_STD,
    pixels: PixelFormat = RGB8,
) -> Float[Array, "b v H W c"]:
    """Returns randomly recolored, blurred and solarized views, normalized.

    Each image draws from its own key, a function of `rng` and of its place in the batch, so
    that the result does not depend on how the batch is spread over devices.

    Args:
        rng: key of this augmentation in this step, used for nothing else.
        views: views from the host, of values as they are stored.
        config: ranges and probabilities, with as many view-wise ones as there are views.
        mean: see `normalize`.
        std: see `normalize`.
        pixels: see `normalize`.

    Raises:
        ValueError: for another number of views than the configuration has, or settings that images of these
            channels have no use for.
    """
    return _augment(rng, views, config, _probabilities(config, views.shape[1]), mean, std, pixels)


@in_float32
def augment_local(
    rng: Array,
    views: Real[Array, "b l h w c"],
    config: PhotometricConfig,
    mean: Colors = IMAGENET_MEAN,
    std: Colors = IMAGENET_STD,
    pixels: PixelFormat = RGB8,
) -> Float[Array, "b l h w c"]:
    """Returns the local crops augmented as `augment` does, with one blur probability and no solarization (as in DINO).

    Args:
        rng: key of this augmentation in this step; never the key of `augment` or one derived from it.
        views: crops from the host, of values as they are stored.
        config: ranges and probabilities.
        mean: see `normalize`.
        std: see `normalize`.
        pixels: see `normalize`.

    Raises:
        ValueError: for settings that images of these channels have no use for.
    """
    one = (config.jitter_probability, config.grayscale_probability, config.local_blur_probability, 0.0)
    return _augment(rng, views, config, jnp.array([one] * views.shape[1]), mean, std, pixels)


def _augment(
    rng: Array,
    views: Array,
    config: PhotometricConfig,
    probabilities: Float[Array, "v 4"],
    mean: Colors,
    std: Colors,
    pixels: PixelFormat,
) -> Array:
    config.check_channels(pixels.channels)
    (batch, num_views), limit = views.shape[:2], config.blur_radius[1]
    is_disturbed = config.noise > 0 or config.channel_drop_probability > 0

    def one_view(key: Array, image: Array, probability: Array) -> Array:
        draws = draw(key, config, probability)
        if pixels.is_rgb8:
            planes = jnp.moveaxis(image, -1, 0).astype(jnp.float32)
            planes = apply_draws(planes, draws, max_blur_radius=limit)
            return normalize(jnp.moveaxis(planes, 0, -1), mean, std)
        planes = jnp.moveaxis(to_unit(image, pixels), -1, 0)
        planes = photometric_channels.apply_draws(planes, draws, max_blur_radius=limit)
        return standardize(jnp.moveaxis(planes, 0, -1), mean, std)

    def one_image(position: Array, images: Array) -> Array:
        key = jax.random.fold_in(rng, position)
        if not is_disturbed:
            return jax.vmap(one_view)(jax.random.split(key, num_views), images, probabilities)
        # The first keys are those of a split without the others: all other draws stay what they are.
        keys, more = jnp.split(jax.random.split(key, 2 * num_views), 2)
        disturb = partial(photometric_channels.disturb, config=config, std=std)
        return jax.vmap(disturb)(more, jax.vmap(one_view)(keys, images, probabilities))

    return jax.vmap(one_image)(jnp.arange(batch), views)


def _probabilities(config: PhotometricConfig, num_views: int) -> Float[Array, "v 4"]:
    """How often each view is jittered, gray, blurred and solarized."""
    for name in ("blur_probability", "solarize_probability"):
        given = getattr(config, name)
        if len(given) != num_views:
            raise ValueError(f"data.photometric.{name}={given}: give one value for each of {num_views} views")
    return jnp.array(
        [
            (config.jitter_probability, config.grayscale_probability, blur, solarization)
            for blur, solarization in zip(config.blur_probability, config.solarize_probability, strict=True)
        ]
    )


def apply_draws(planes: Planes, draws: Draws, *, max_blur_radius: float = 2.0) -> Planes:
    """Returns one view after jitter, grayscale, blur and solarization, in the official order.

    Args:
        planes: color planes of one image.
        draws: the random choices.
        max_blur_radius: the largest that `draws.blur_radius` can be.
    """
    planes = jnp.where(draws.jitter, jitter(planes, draws.factors, draws.ranks), planes)
    planes = jnp.where(draws.grayscale, to_grayscale(planes), planes)
    planes = gaussian_blur(planes, draws.blur_radius, max_radius=max_blur_radius)
    return jnp.where(draws.solarize, solarize(planes), planes)


def jitter(planes: Planes, factors: Float[Array, " 4"], ranks: Int[Array, " 4"]) -> Planes:
    """Changes brightness, contrast, saturation and hue in a given order.

    Hue costs most. So it runs once, with a turn for each possible blend before and after; the
    turns that the order leaves empty do nothing.

    Args:
        planes: color planes of one image.
        factors: see `Draws`.
        ranks: see `Draws`.
    """
    hue_rank = ranks[HUE]
    planes = _blend_turns(planes, factors, jnp.where(ranks < hue_rank, ranks, -1), turns=(0, 3))
    planes = adjust_hue(planes, factors[HUE])
    return _blend_turns(planes, factors, jnp.where(ranks > hue_rank, ranks, -1), turns=(1, 4))


def _blend_turns(planes: Planes, factors: Array, ranks: Array, *, turns: tuple[int, int]) -> Planes:
    """A loop, so that the compiler does not fold one turn into the next and repeat its work."""

    def blend(turn: Array, stored: Bytes) -> Bytes:
        return _blend_turn(stored.astype(jnp.float32), factors, ranks == turn).astype(jnp.uint8)

    return jax.lax.fori_loop(*turns, blend, planes.astype(jnp.uint8)).astype(jnp.float32)


def _blend_turn(planes: Planes, factors: Array, is_due: Bool[Array, " 4"]) -> Planes:
    """Applies the one due of brightness, contrast and saturation, or none."""
    blends = slice(BRIGHTNESS, HUE)
    factor = 1 + jnp.sum(jnp.where(is_due[blends], factors[blends] - 1, 0))
    gray = _luma(planes)
    toward = jnp.where(is_due[SATURATION], gray, 0) + jnp.where(is_due[CONTRAST], _rounded_mean(gray), 0)
    return _blend(planes, toward, factor)


def adjust_brightness(planes: Planes, factor: Scalar) -> Planes:
    """Scales all values; 0 gives black, 1 changes nothing (PIL.ImageEnhance.Brightness)."""
    return _blend(planes, jnp.zeros(()), factor)


def adjust_contrast(planes: Planes, factor: Scalar) -> Planes:
    """Scales all values about the mean gray value of the image (PIL.ImageEnhance.Contrast)."""
    return _blend(planes, _rounded_mean(_luma(planes)), factor)


def adjust_saturation(planes: Planes, factor: Scalar) -> Planes:
    """Scales all colors about their gray value (PIL.ImageEnhance.Color)."""
    return _blend(planes, _luma(planes), factor)


def adjust_hue(planes: Planes, shift: Scalar) -> Planes:
    """Turns the hue through Pillow's 8-bit HSV, as torchvision does with Pillow images.

    Args:
        planes: color planes of one image.
        shift: in turns, from -0.5 to 0.5.
    """
    hue, saturation, value = _rgb_to_hsv(planes)
    hue = hue + jnp.trunc(shift * 255)
    return _hsv_to_rgb(hue - 256 * jnp.floor(hue / 256), saturation, value)


def to_grayscale(planes: Planes) -> Planes:
    """Gives all three planes the gray value (ITU-R 601, as PIL.Image.convert("L"))."""
    return jnp.broadcast_to(_luma(planes), planes.shape)


def gaussian_blur(planes: Planes, radius: Scalar, *, max_radius: float = 2.0) -> Planes:
    """Blurs by three passes of a box along each axis, as PIL.ImageFilter.GaussianBlur.

    Args:
        planes: color planes of one image.
        radius: standard deviation in pixels; 0 changes nothing.
        max_radius: the largest that `radius` can be; sets the length of the kernel.
    """
    box = _box(radius, reach=math.ceil((math.sqrt(4 * max_radius**2 + 1) - 1) / 2))
    stored = planes.astype(jnp.uint8)
    return _box_passes(_box_passes(stored, box, axis=2), box, axis=1).astype(jnp.float32)


def solarize(planes: Planes) -> Planes:
    """Inverts the values from 128 up (PIL.ImageOps.solarize)."""
    return jnp.where(planes >= _SOLARIZE_THRESHOLD, 255 - planes, planes)


def _blend(planes: Planes, toward: Array, factor: Array) -> Planes:
    # Pillow drops the fraction.
    return jnp.floor(jnp.clip(toward + factor * (planes - toward), 0, 255))


def _luma(planes: Planes) -> Float[Array, "H W"]:
    # Pillow's fixed-point weights: all sums stay below 2**24, where float32 is exact.
    red, green, blue = planes
    return jnp.floor((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536)


def _rounded_mean(gray: Float[Array, "H W"]) -> Scalar:
    return jnp.floor(jnp.mean(gray) + 0.5)


def _rgb_to_hsv(planes: Planes) -> tuple[Array, Array, Array]:
    """Pillow's conversion, each of the three `[H W]` whole numbers from 0 to 255."""
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    least = jnp.minimum(jnp.minimum(red, green), blue)
    chroma = value - least
    # Distance of the middle value from the largest one, on the way from 0 to chroma.
    middle = (2 * value + least - red - green - blue) / jnp.maximum(chroma, 1)
    sixths = jnp.where(
        red == value,
        jnp.where(green >= blue, 1 - middle, middle - 1),
        jnp.where(
            green == value,
            jnp.where(red >= blue, 1 + middle, 3 - middle),
            jnp.where(green >= red, 3 + middle, 5 - middle),
        ),
    )
    # Where the hue is a whole number of 255ths, rounding decides its byte. XLA turns a division
    # by a constant into a product, which rounds otherwise; a divisor that it cannot know stays.
    turns = sixths / jnp.where(chroma > 0, 6, 1)
    hue = jnp.floor(jnp.where(turns < 0, turns + 1, turns) * 255)
    saturation = jnp.floor((255 * chroma + 0.5) / jnp.maximum(value, 1))
    return jnp.where(chroma > 0, hue, 0), saturation, value


def _hsv_to_rgb(hue: Array, saturation: Array, value: Array) -> Planes:
    """The way back; exact in float32, because every product of the bytes is below 2**24."""
    full = 6 * 255

    def plane(offset: int) -> Array:
        angle = 6 * hue + offset * 255
        angle = jnp.where(angle >= full, angle - full, angle)
        weight = jnp.clip(jnp.minimum(angle, 4 * 255 - angle), 0, 255)
        return jnp.floor((value * (65025 - saturation * weight) + 32512) / 65025)

    return jnp.stack([plane(5), plane(3), plane(1)])


def _box(radius: Scalar, *, reach: int) -> Float[Array, " taps"]:
    """Weights of a pixel's neighbors at distances 1 to `reach`, in Pillow's 24-bit fixed point.

    The box counts whole pixels up to some distance and the next one in part, such that the
    passes together have variance radius**2.
    """
    variance = radius**2 / _BOX_PASSES
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    inner = jnp.floor(2**24 / (2 * (whole + part) + 1))
    outer = jnp.floor((2**24 - (2 * whole + 1) * inner) / 2)
    distance = np.arange(1, reach + 1)
    return jnp.where(distance <= whole, inner, jnp.where(distance == whole + 1, outer, 0)) / 2**24


def _box_passes(stored: Bytes, box: Array, *, axis: int) -> Bytes:
    """A loop for the same reason as in _blend_turns."""
    return jax.lax.fori_loop(0, _BOX_PASSES, lambda _, blurred: _box_pass(blurred, box, axis=axis), stored)


def _box_pass(stored: Bytes, box: Array, *, axis: int) -> Bytes:
    """Averages with the neighbors along an axis, edge values continuing beyond the image."""
    size, reach = stored.shape[axis], len(box)
    padding = [(reach, reach) if i == axis else (0, 0) for i in range(stored.ndim)]
    # The barrier keeps XLA for CPUs from padding anew for every shift, five times the work.
    padded = jax.lax.optimization_barrier(jnp.pad(stored, padding, mode="edge"))

    def shifted(by: int) -> Planes:
        return jax.lax.slice_in_dim(padded, reach + by, reach + by + size, axis=axis).astype(jnp.float32)

    planes = stored.astype(jnp.float32)
    change = sum(box[by - 1] * (shifted(-by) + shifted(by) - 2 * planes) for by in range(1, reach + 1))
    # Rounded apart from the whole numbers that it changes, near-ties fall as in fixed point.
    return (planes + jnp.floor(change + 0.5)).astype(jnp.uint8)

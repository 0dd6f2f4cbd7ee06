"""A backbone as a StableHLO program with its weights inside, which runs without this package."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float, Real

from croc_jax.atomic_write import atomic_write
from croc_jax.checkpoints.param_mapping import Params
from croc_jax.data.photometric import normalize
from croc_jax.models import BackboneConfig, Features, VisionTransformer, make_backbone, patch_grid
from croc_jax.models.registry import VARIANTS
from croc_jax.pixel_format import PixelFormat

_SUFFIX = ".stablehlo"
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_program(
    params: Params,
    config: BackboneConfig,
    *,
    image_size: int,
    output: Path,
    pixels: PixelFormat | None = None,
    platforms: tuple[str, ...] = _PLATFORMS,
) -> Path:
    """Writes a function of images to {"cls": `[b d]`, "patches": `[b r c d]`}; returns the file.

    Images are `[b H W c]`, values as they are stored, such as uint8 RGB; batch and size stay open: H and W are any
    multiples of the patch size. It computes in float32. `jax.export.deserialize(file.read_bytes()).call(images)` runs
    it.

    Args:
        params: parameters of the backbone.
        config: settings of the backbone.
        image_size: side of the images that its position embedding was learned for.
        output: a file that ends in .stablehlo.
        pixels: format of the images; by default 8-bit ones.
        platforms: platforms that it runs on.

    Raises:
        ValueError: for another suffix, or where flatbuffers is not installed.
    """
    if output.suffix != _SUFFIX:
        raise ValueError(f"{output}: choose a name that ends in {_SUFFIX}")
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise ValueError(f"{output}: programs need flatbuffers: pip install 'croc_jax[export]'") from None
    pixels = pixels or PixelFormat(channels=config.channels)
    encode = make_encode_fn(params, config, image_size=image_size, pixels=pixels)
    sizes = f"b, {config.patch_size}*r, {config.patch_size}*c, {pixels.channels}"
    shape = export.symbolic_shape(sizes, constraints=("b >= 1", "r >= 1", "c >= 1"))
    program = export.export(jax.jit(encode), platforms=platforms)(jax.ShapeDtypeStruct(shape, jnp.dtype(pixels.dtype)))
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(output, bytes(program.serialize()))
    return output


def make_encode_fn(
    params: Params, config: BackboneConfig, *, image_size: int, pixels: PixelFormat | None = None
) -> Callable[[Real[Array, "b H W c"]], dict[str, Float[Array, "..."]]]:
    """Returns the function that is exported; see `export_program`."""
    config = dataclasses.replace(config, dtype="float32", remat=False)
    if config.variant in VARIANTS:
        config = dataclasses.replace(config, attention="xla")
    module = make_backbone(config, image_size=image_size, pixels=pixels)
    if isinstance(module, VisionTransformer):
        # Whatever device exports: layouts for a TPU cannot be exported at all.
        module = module.clone(attention="xla", unrolled=False)
    weights = jax.tree.map(jnp.asarray, params)

    def encode(images: Real[Array, "b H W c"]) -> dict[str, Float[Array, "..."]]:
        normalized = normalize(images, module.image_mean, module.image_std, module.pixels)
        features: Features = module.apply({"params": weights}, normalized)  # pyright: ignore
        grid = patch_grid((images.shape[1], images.shape[2]), module.patch_size)
        return {"cls": features.cls, "patches": features.patches.reshape(images.shape[0], *grid, -1)}

    return encode


def program_difference(
    params: Params, config: BackboneConfig, *, image_size: int, file: Path, pixels: PixelFormat | None = None
) -> float:
    """Returns the largest difference of any feature between an exported program and the module.

    Args:
        params: parameters of the backbone.
        config: settings of the backbone.
        image_size: see `export_program`; images of this size, and of another one that is not square, are tried.
        file: the exported program.
        pixels: see `export_program`.
    """
    pixels = pixels or PixelFormat(channels=config.channels)
    program = export.deserialize(bytearray(file.read_bytes()))
    encode = jax.jit(make_encode_fn(params, config, image_size=image_size, pixels=pixels))
    (low, *_), (high, *_) = pixels.limits
    rng, differences = np.random.default_rng(0), []
    for height, width in ((image_size, image_size), (image_size + config.patch_size, 2 * config.patch_size)):
        images = rng.uniform(low, high, (2, height, width, pixels.channels)).astype(pixels.dtype)
        ours, theirs = encode(jnp.asarray(images)), program.call(images)
        differences += [float(np.abs(np.asarray(ours[name]) - np.asarray(theirs[name])).max()) for name in ours]
    return float(np.max(differences))

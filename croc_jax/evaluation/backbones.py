"""Loads frozen backbones: weights of a run, of another library's file, or of the start of a run."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from croc_jax.checkpoints.description import format_setting
from croc_jax.checkpoints.infer_architecture import PretrainedBackbone
from croc_jax.checkpoints.pretrained import Colors, is_weights_file, load_pretrained
from croc_jax.checkpoints.restore import find_checkpoints, restore_backbone
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.data.photometric import normalize
from croc_jax.evaluation.image_batch import EncodeInput, as_batch
from croc_jax.float32 import in_float32
from croc_jax.models import Backbone, BackboneConfig, Features, VisionTransformer, make_backbone
from croc_jax.paths import local_path
from croc_jax.training.config import Recipe
from croc_jax.training.state import init_state

RANDOM = "random"


class FrozenBackbone(NamedTuple):
    """A backbone and its origin.

    Attributes:
        module: module without weights.
        params: its weights.
        recipe: settings of the run that they come from.
        step: step of the run; of another library's checkpoint, the epoch.
        which: "teacher", "student" or "random".
        prefix: what the names of its arrays begin with in another library's file.
        note: what was taken of such a file, and what is assumed, in a line; may be empty.
    """

    module: Backbone
    params: Any
    recipe: Recipe
    step: int
    which: str
    prefix: str = ""
    note: str = ""

    def encode(self, images: EncodeInput) -> Features:
        """Returns the features of images of a size that whole patches tile; each size compiles once.

        Args:
            images: an array `[b H W c]`, or a list of arrays `[H W c]` and Pillow images of one size, with the channels
                and the type of `module.pixels`: RGB in uint8, unless the weights are for others.

        Raises:
            ValueError: for other shapes or types, and for no images.
        """
        return _encode_fn(self.module)(self.params, as_batch(images, self.module.pixels))

    def with_patch_size(self, patch_size: int) -> "FrozenBackbone":
        """Returns the same convolutional weights with tokens 32, 16 or 8 pixels apart (by dilation).

        Raises:
            ValueError: for another number, or for a transformer, whose patches are part of its weights.
        """
        if isinstance(self.module, VisionTransformer):
            own = self.module.patch_size
            raise ValueError(f"patch_size={patch_size}: this transformer was trained on patches of {own} pixels")
        config = dataclasses.replace(self.recipe.backbone, patch_size=patch_size)
        module = make_backbone(config, image_size=patch_size, pixels=self.module.pixels)
        return self._replace(module=module, recipe=dataclasses.replace(self.recipe, backbone=config))


@functools.lru_cache(maxsize=8)
def _encode_fn(module: Backbone) -> Callable[..., Features]:
    settings = module.image_mean, module.image_std, module.pixels
    return jax.jit(in_float32(lambda params, images: module.apply({"params": params}, normalize(images, *settings))))


def load_backbone(
    checkpoint: str | Path,
    *,
    which: str = "teacher",
    num_heads: int | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    image_dtype: str | None = None,
    image_range: Sequence[float] | None = None,
) -> FrozenBackbone:
    """Returns the weights of a run or of another library, ready to encode images.

    Args:
        checkpoint: a workdir (its latest checkpoint), a folder WORKDIR/checkpoints/STEP, or a file or folder of
            another library: CrOC, DINO, DINOv2, DINOv3, ResNet, ConvNeXt, timm, Hugging Face.
        which: "teacher" or "student".
        num_heads: heads of another library's transformer whose file does not say.
        image_mean: what another library's weights want their images normalized by, for each channel, from 0 to 1;
            by default, what preprocessor_config.json or timm's config.json beside them says, or else ImageNet's (RGB).
        image_std: likewise.
        image_dtype: type of the stored values of their images: "uint8" (the default), "uint16" or "float32".
        image_range: the values that become 0 and 1, see `PixelFormat`.

    Raises:
        ValueError: if there is no usable checkpoint, `which` is neither, a file's weights do not fit, or the number
            of heads, mean, deviation, type or range is given for a run, whose config has it; if nobody says what images
            that are not RGB are normalized by.
        FileNotFoundError: if there is no such file.
    """
    path = local_path(checkpoint, name="checkpoint")
    if num_heads is not None and num_heads < 1:
        raise ValueError(f"num_heads={num_heads}: must be 1 or more")
    numbers = {"image_mean": image_mean, "image_std": image_std, "image_range": image_range}
    known: dict[str, Any] = {"num_heads": num_heads, "image_dtype": image_dtype}
    known |= {name: _as_numbers(name, values) for name, values in numbers.items()}
    prefix, notes, guessed = "", [], {}
    if is_weights_file(path):
        found = load_pretrained(path, which=which, **known)
        if unknown := [name for name in ("image_mean", "image_std") if found.guessed.get(name, ()) is None]:
            raise ValueError(
                f"{path} is for images of {found.config.channels} channels, and no file beside it states as many "
                f"numbers for {' and '.join(unknown)}: give them, one for each channel"
            )
        recipe = recipe_of(found)
        params, step, prefix, guessed = found.params, found.epoch, found.prefix, found.guessed
        notes = [found.note] if found.note else []
    else:
        find_checkpoints(path)
        for name, value in known.items():
            if value is not None:
                raise ValueError(f"{name}={value}: the config of the run {path} has it; leave it out")
        recipe, params, step = restore_backbone(path, which=which)
    module = make_backbone(recipe.backbone, image_size=recipe.data.views.crop_size, pixels=recipe.data.pixels)
    settings = {name: getattr(module, name, module.pixels.dtype if name == "image_dtype" else None) for name in guessed}
    assumed = [f"{name}={format_setting(value)}" for name, value in settings.items() if value is not None]
    notes += [f"not stated, and assumed: {', '.join(assumed)}"] if assumed else []
    return FrozenBackbone(module, params, recipe, step, which, prefix, "; ".join(notes))


def recipe_of(found: PretrainedBackbone) -> Recipe:
    """Returns a recipe with the settings of another library's backbone, and the format of its images."""
    pixels, views = found.pixels, ViewsConfig(crop_size=found.image_size)
    data = DataConfig(channels=pixels.channels, dtype=pixels.dtype, range=pixels.range, views=views)
    return Recipe(backbone=found.config, data=data)


def _as_numbers(name: str, values: Sequence[float] | None) -> Colors | None:
    """Returns a list or array as the tuple that a config holds, which checks its values."""
    if values is not None and np.ndim(values) != 1:
        raise ValueError(f"{name}={values}: give a list of numbers")
    return None if values is None else tuple(map(float, values))


def vit_recipe(**images: Any) -> Recipe:
    """Returns the recipe of a ViT-S/16; arguments are those of `load_backbone` that say what images are like."""
    pixels = {
        name.removeprefix("image_"): images.pop(name) for name in ("image_dtype", "image_range") if name in images
    }
    backbone = BackboneConfig(**images)
    return Recipe(backbone=backbone, data=DataConfig(channels=backbone.channels, **pixels))


def random_backbone(recipe: Recipe) -> FrozenBackbone:
    """Returns the weights that a run of this recipe starts from."""
    # Under jit, nothing but the backbone is computed.
    params = jax.jit(lambda: init_state(recipe, steps_per_epoch=1).teacher["backbone"])()
    module = make_backbone(recipe.backbone, image_size=recipe.data.views.crop_size, pixels=recipe.data.pixels)
    return FrozenBackbone(module, params, recipe, 0, RANDOM)

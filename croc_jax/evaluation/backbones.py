"""Loads frozen backbones: weights of a run, of another library's file, or of the start of a run."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, UInt8

from croc_jax.checkpoints.pretrained import is_weights_file, load_pretrained
from croc_jax.checkpoints.restore import restore_backbone
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.data.photometric import normalize
from croc_jax.float32 import in_float32
from croc_jax.models import Backbone, Features, VisionTransformer, make_backbone
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
    """

    module: Backbone
    params: Any
    recipe: Recipe
    step: int
    which: str

    def encode(self, images: UInt8[np.ndarray | Array, "b H W 3"]) -> Features:
        """Returns the features of RGB images of a size that whole patches tile; each size compiles once.

        Raises:
            ValueError: for other shapes or types.
        """
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise ValueError(f"images {images.shape} {images.dtype}: expected [b H W 3] uint8")
        return _encode_fn(self.module)(self.params, images)

    def with_patch_size(self, patch_size: int) -> "FrozenBackbone":
        """Returns the same convolutional weights with tokens 32, 16 or 8 pixels apart (by dilation).

        Raises:
            ValueError: for another number, or for a transformer, whose patches are part of its weights.
        """
        if isinstance(self.module, VisionTransformer):
            own = self.module.patch_size
            raise ValueError(f"patch_size={patch_size}: this transformer was trained on patches of {own} pixels")
        config = dataclasses.replace(self.recipe.backbone, patch_size=patch_size)
        module = make_backbone(config, image_size=patch_size)
        return self._replace(module=module, recipe=dataclasses.replace(self.recipe, backbone=config))


@functools.lru_cache(maxsize=8)
def _encode_fn(module: Backbone) -> Callable[..., Features]:
    return jax.jit(in_float32(lambda params, images: module.apply({"params": params}, normalize(images))))


def load_backbone(checkpoint: str | Path, *, which: str = "teacher", num_heads: int | None = None) -> FrozenBackbone:
    """Returns the weights of a run or of another library, ready to encode images.

    Args:
        checkpoint: a workdir (its latest checkpoint), a folder WORKDIR/checkpoints/STEP, or a file or folder of
            another library: CrOC, DINO, DINOv2, DINOv3, ResNet, ConvNeXt, timm, Hugging Face.
        which: "teacher" or "student".
        num_heads: heads of another library's transformer whose file does not say.

    Raises:
        ValueError: if there is no usable checkpoint, `which` is neither, a file's weights do not fit, or the number
            of heads is given for a run, whose config has it.
        FileNotFoundError: if there is no such file.
    """
    checkpoint = Path(checkpoint).expanduser()
    if is_weights_file(checkpoint):
        found = load_pretrained(checkpoint, which=which, num_heads=num_heads)
        recipe = Recipe(backbone=found.config, data=DataConfig(views=ViewsConfig(crop_size=found.image_size)))
        params, step = found.params, found.epoch
    else:
        if num_heads is not None:
            raise ValueError(f"num_heads={num_heads}: the config of the run {checkpoint} has it; leave it out")
        recipe, params, step = restore_backbone(checkpoint, which=which)
    module = make_backbone(recipe.backbone, image_size=recipe.data.views.crop_size)
    return FrozenBackbone(module, params, recipe, step, which)


def random_backbone(recipe: Recipe) -> FrozenBackbone:
    """Returns the weights that a run of this recipe starts from."""
    # Under jit, nothing but the backbone is computed.
    params = jax.jit(lambda: init_state(recipe, steps_per_epoch=1).teacher["backbone"])()
    module = make_backbone(recipe.backbone, image_size=recipe.data.views.crop_size)
    return FrozenBackbone(module, params, recipe, 0, RANDOM)

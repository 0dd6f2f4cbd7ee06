"""Frozen backbones: where the weights that are evaluated come from."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from croc_jax.checkpoints.pretrained import is_weights_file, load_pretrained
from croc_jax.checkpoints.restore import restore_backbone
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.data.photometric import normalize
from croc_jax.models import Backbone, Features, VisionTransformer, make_backbone
from croc_jax.training.config import Recipe
from croc_jax.training.forward import init_params, make_networks

RANDOM = "random"


class FrozenBackbone(NamedTuple):
    """A backbone and its origin.

    Attributes:
        module: without weights.
        params: its weights.
        recipe: of the run that they come from.
        step: of the run; 0 at its start. Of another program's checkpoint, the epoch.
        which: "teacher", "student" or "random".
    """

    module: Backbone
    params: Any
    recipe: Recipe
    step: int
    which: str

    def encode(self, images: UInt8[np.ndarray | Array, "b H W 3"]) -> Features:
        """Returns the features of images of one size; compiled once for each.

        Args:
            images: in RGB, 0 to 255, of a size that whole patches tile.

        Raises:
            ValueError: for other shapes or types.
        """
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise ValueError(f"images {images.shape} {images.dtype}: expected [b H W 3] uint8")
        return _encode_fn(self.module)(self.params, images)  # pyright: ignore[reportArgumentType]

    def with_patch_size(self, patch_size: int) -> "FrozenBackbone":
        """Returns the same convolutional weights with tokens as many pixels apart (by dilation).

        Args:
            patch_size: 32, 16 or 8.

        Raises:
            ValueError: for another number, or for a transformer, whose patches are part of its weights.
        """
        if isinstance(self.module, VisionTransformer):
            ours = self.module.patch_size
            raise ValueError(f"patch_size={patch_size}: this transformer was trained on patches of {ours} pixels")
        config = dataclasses.replace(self.recipe.backbone, patch_size=patch_size)
        module = make_backbone(config, image_size=patch_size)
        return self._replace(module=module, recipe=dataclasses.replace(self.recipe, backbone=config))


@functools.lru_cache(maxsize=8)
def _encode_fn(module: Backbone) -> Callable[..., Features]:
    def encode(params: Any, images: Array) -> Features:
        return module.apply({"params": params}, normalize(jnp.asarray(images)))  # pyright: ignore[reportReturnType]

    return jax.jit(encode)


def load_backbone(checkpoint: str | Path, *, which: str = "teacher", num_heads: int | None = None) -> FrozenBackbone:
    """Returns the weights of a run or of another library, ready to encode images.

    Args:
        checkpoint: a workdir, a checkpoint of one, or what `trained_backbone` takes from others:
            CrOC, DINO, DINOv2, DINOv3, ResNet, ConvNeXt, timm, Hugging Face.
        which: "teacher" or "student" of a run; see `croc_jax.checkpoints.pretrained` for other files.
        num_heads: of another library's transformer whose file does not tell.

    Raises:
        ValueError: see `trained_backbone`.
        FileNotFoundError: if there is no such file.
    """
    return trained_backbone(Path(checkpoint).expanduser(), which=which, num_heads=num_heads)


def random_backbone(recipe: Recipe) -> FrozenBackbone:
    """Returns the weights that a run of this recipe starts from."""
    networks = make_networks(recipe)

    # Jitted, so that the head's weights are never made.
    @jax.jit
    def init(rng: jax.Array) -> Any:
        return init_params(networks, rng, crop_size=recipe.data.views.crop_size)["backbone"]

    return FrozenBackbone(networks.backbone, init(jax.random.key(recipe.seed)), recipe, 0, RANDOM)


def trained_backbone(checkpoint: Path, *, which: str = "teacher", num_heads: int | None = None) -> FrozenBackbone:
    """Returns the weights of a run, or of another program's file.

    Args:
        checkpoint: a workdir (its latest checkpoint), a folder WORKDIR/checkpoints/STEP, or a file
            or folder of another library (`croc_jax.checkpoints.pretrained`).
        which: "teacher" or "student".
        num_heads: of another program's transformer whose file does not tell.

    Raises:
        CheckpointError: if there is no checkpoint that can be used.
        ValueError: if `which` is neither, a file's weights do not fit, or the number of heads is
            given for a run, which knows it.
    """
    if is_weights_file(checkpoint):
        return _foreign(checkpoint, which, num_heads)
    if num_heads is not None:
        raise ValueError(f"num_heads={num_heads}: {checkpoint} is a run, whose settings are known; leave it out")
    recipe, params, step = restore_backbone(checkpoint, which=which)
    module = make_backbone(recipe.backbone, image_size=recipe.data.views.crop_size)
    return FrozenBackbone(module, params, recipe, step, which)


def _foreign(file: Path, which: str, num_heads: int | None) -> FrozenBackbone:
    found = load_pretrained(file, which=which, num_heads=num_heads)
    recipe = Recipe(backbone=found.config, data=DataConfig(views=ViewsConfig(crop_size=found.image_size)))
    module = make_backbone(found.config, image_size=found.image_size)
    return FrozenBackbone(module, found.params, recipe, found.epoch, which)

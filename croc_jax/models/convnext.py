"""ConvNeXt, whose last feature map is the patch tokens."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from croc_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from croc_jax.models.drop_path import DropPath
from croc_jax.models.features import Features
from croc_jax.models.initializers import truncated_normal
from croc_jax.models.patches import patch_grid, plan_strides
from croc_jax.models.vit import dense, gelu, layer_norm
from croc_jax.pixel_format import RGB8, PixelFormat

LAYER_SCALE_START = 1e-6
KERNEL = 7
# Hidden features of a block over its width.
EXPANSION = 4


class ConvNeXt(nn.Module):
    """ConvNeXt, as in timm and DINOv3.

    Attributes:
        patch_size: pixels between two tokens: 32, or 16 or 8 with dilated last stages.
        width: features of a token; each stage has twice those of the one before.
        stages: blocks of each of the four stages.
        drop_path_rate: stochastic depth of the last block; earlier ones grow linearly from 0.
        dtype: type of the computation; parameters are float32.
        remat: recompute each block in the backward pass instead of storing it.
        norm_epsilon: epsilon of the layer normalizations.
        image_mean: what its images are normalized by, before they come here; see `BackboneConfig`.
        image_std: likewise.
        pixels: format of its images before that.
    """

    patch_size: int
    width: int
    stages: tuple[int, ...]
    drop_path_rate: float = 0.0
    dtype: Any = jnp.float32
    remat: bool = False
    norm_epsilon: float = 1e-6
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD
    pixels: PixelFormat = RGB8
    # No positions are learned.
    grid_size = None
    has_batch_statistics = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "b H W c"], train: bool = False, rows: Int[Array, " b"] | None = None
    ) -> Features:
        """Returns the normalized feature map as tokens, and its normalized mean as [CLS].

        Args:
            images: normalized images; H and W multiples of the patch size.
            train: drop residual branches if the rng stream "drop_path" is given.
            rows: places of the images in the whole batch, if they are a microbatch.

        Raises:
            ValueError: if whole patches do not tile the images.
        """
        patch_grid((images.shape[1], images.shape[2]), self.patch_size)
        widths = [self.width // 2 ** (len(self.stages) - 1 - stage) for stage in range(len(self.stages))]
        x = conv(widths[0], 4, 4, self.dtype, "stem")(images.astype(self.dtype))
        x = self._norm("stem_norm")(x)
        rates = np.linspace(0, self.drop_path_rate, sum(self.stages), dtype=np.float32)
        drops = train and self.drop_path_rate > 0 and self.has_rng("drop_path")
        keys = jax.random.split(self.make_rng("drop_path"), len(rates)) if drops else None
        block = nn.remat(Block) if self.remat else Block
        number = 0
        for stage, plan in enumerate(plan_strides(self.patch_size, stem=4, strides=(1, 2, 2, 2))):
            if stage:
                x = self._norm(f"downsample_{stage}_norm")(x)
                down = conv(widths[stage], 2, plan.stride, self.dtype, f"downsample_{stage}", dilation=plan.before)
                x = down(x)
            for index in range(self.stages[stage]):
                drop_path = None if keys is None else DropPath(rates[number], keys[number], rows)
                name = f"stage_{stage}_block_{index}"
                x = block(plan.dilation, self.dtype, self.norm_epsilon, name=name)(x, drop_path)
                number += 1
        norm, places = self._norm("norm"), x.reshape(x.shape[0], -1, self.width)
        pooled = jnp.mean(places.astype(jnp.float32), axis=1).astype(self.dtype)
        return Features(norm(pooled).astype(jnp.float32), norm(places).astype(jnp.float32))

    def _norm(self, name: str) -> nn.LayerNorm:
        return layer_norm(self.dtype, name, self.norm_epsilon)


class Block(nn.Module):
    """A depthwise convolution and an MLP, scaled and added to what came in."""

    dilation: int
    dtype: Any
    norm_epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "b r c d"], drop_path: DropPath | None = None) -> Float[Array, "b r c d"]:
        """Returns the next feature map."""
        width, pad = x.shape[-1], self.dilation * (KERNEL - 1) // 2
        update = nn.Conv(
            width,
            (KERNEL, KERNEL),
            padding=((pad, pad), (pad, pad)),
            kernel_dilation=self.dilation,
            feature_group_count=width,
            dtype=self.dtype,
            kernel_init=truncated_normal,
            name="depthwise",
        )(x)
        update = layer_norm(self.dtype, "norm", self.norm_epsilon)(update)
        update = gelu(dense(EXPANSION * width, self.dtype, name="mlp_1")(update))
        update = dense(width, self.dtype, name="mlp_2")(update)
        scale = self.param("scale", nn.initializers.constant(LAYER_SCALE_START), (width,))
        update *= scale.astype(self.dtype)[None, None, None]
        return x + (drop_path(update, 0) if drop_path else update)


def conv(features: int, size: int, stride: int, dtype: Any, name: str, *, dilation: int = 1) -> nn.Conv:
    """Returns a convolution that halves the grid, or pads at its end to keep it."""
    padding = "VALID" if stride == size else "SAME"
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=padding,
        kernel_dilation=dilation,
        dtype=dtype,
        kernel_init=truncated_normal,
        name=name,
    )

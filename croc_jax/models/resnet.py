"""ResNet with bottlenecks, whose last feature map is the patch tokens."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from croc_jax.models.batch_norm import BatchNorm
from croc_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from croc_jax.models.features import Features
from croc_jax.models.patches import patch_grid, plan_strides
from croc_jax.pixel_format import RGB8, PixelFormat

# Features of a bottleneck's result over those inside.
EXPANSION = 4
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet(nn.Module):
    """ResNet v1.5 (torchvision's and DINO's).

    Attributes:
        patch_size: pixels between two tokens: 32, or 16 or 8 with dilated last stages.
        width: features of a token; those of the stem are 1/32 of them.
        stages: bottlenecks of each of the four stages.
        dtype: type of the computation; parameters are float32.
        remat: recompute each bottleneck in the backward pass instead of storing it.
        image_mean: what its images are normalized by, before they come here; see `BackboneConfig`.
        image_std: likewise.
        pixels: format of its images before that.
    """

    patch_size: int
    width: int
    stages: tuple[int, ...]
    dtype: Any = jnp.float32
    remat: bool = False
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD
    pixels: PixelFormat = RGB8
    # No positions are learned.
    grid_size = None
    has_batch_statistics = True

    @nn.compact
    def __call__(
        self, images: Float[Array, "b H W c"], train: bool = False, rows: Int[Array, " b"] | None = None
    ) -> Features:
        """Returns the feature map as tokens, and its mean as [CLS].

        Args:
            images: normalized images; H and W multiples of the patch size.
            train: normalize by the statistics of these images.
            rows: not used, as no paths are dropped.

        Raises:
            ValueError: if whole patches do not tile the images.
        """
        patch_grid((images.shape[1], images.shape[2]), self.patch_size)
        base = self.width // 32
        x = conv(base, 7, self.dtype, "stem", stride=2)(images.astype(self.dtype))
        x = nn.relu(BatchNorm(self.dtype, name="norm")(x, train))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore
        # Argument 2 is `train`; the module itself is number 0.
        block = nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck
        plan = plan_strides(self.patch_size, stem=4, strides=(1, 2, 2, 2))
        for stage, (depth, (stride, before, after)) in enumerate(zip(self.stages, plan, strict=True)):
            for index in range(depth):
                first = index == 0
                x = block(
                    base * 2**stage,
                    stride=stride if first else 1,
                    dilation=before if first else after,
                    project=first,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{index}",
                )(x, train)
        patches = x.reshape(x.shape[0], -1, self.width).astype(jnp.float32)
        return Features(jnp.mean(patches, axis=1), patches)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, added to what came in."""

    features: int
    stride: int
    dilation: int
    project: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b r c d"], train: bool) -> Float[Array, "b R C D"]:
        """Returns the next feature map."""
        wide = EXPANSION * self.features
        update = conv(self.features, 1, self.dtype, "conv_1")(x)
        update = nn.relu(BatchNorm(self.dtype, name="norm_1")(update, train))
        update = conv(self.features, 3, self.dtype, "conv_2", stride=self.stride, dilation=self.dilation)(update)
        update = nn.relu(BatchNorm(self.dtype, name="norm_2")(update, train))
        update = conv(wide, 1, self.dtype, "conv_3")(update)
        update = BatchNorm(self.dtype, name="norm_3")(update, train)
        if self.project:
            x = conv(wide, 1, self.dtype, "shortcut", stride=self.stride)(x)
            x = BatchNorm(self.dtype, name="norm_shortcut")(x, train)
        return nn.relu(x + update)


def conv(features: int, size: int, dtype: Any, name: str, *, stride: int = 1, dilation: int = 1) -> nn.Conv:
    """Returns a convolution without bias that pads as PyTorch's networks do: the same on both sides."""
    pad = dilation * (size - 1) // 2
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        kernel_dilation=dilation,
        use_bias=False,
        dtype=dtype,
        kernel_init=he_normal,
        name=name,
    )

"""Settings of the backbone and of the projection head."""

import dataclasses

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """A backbone, by variant; the optional fields override the variant's own.

    Convolutional networks have no attention; fields for transformers alone say so below.

    Attributes:
        variant: "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_giant"; "resnet_50";
            "convnext_tiny", "convnext_small", "convnext_base" or "convnext_large".
        patch_size: side of a square patch in pixels; of a convolutional network, the pixels between
            two tokens: 32, or 16 or 8 with dilated last stages.
        width: features of a token.
        depth: number of blocks (transformers).
        num_heads: attention heads (transformers; the following fields that name no other network, too).
        mlp_ratio: hidden features of a block's MLP over its width.
        drop_path_rate: stochastic depth of the last block; earlier ones grow linearly from 0 (any but ResNet).
        remat: recompute each block (of any network) in the backward pass instead of storing its activations. Without
            it, transformers store results of matrix products, and nothing on TPU, where that is faster.
        dtype: "float32", "bfloat16", or "auto": bfloat16 on accelerators, float32 on CPU (any network); or "mixed":
            float32 with products by parameters in bfloat16, forward and backward (transformers). It is for CPUs with
            AVX512-BF16 or AMX: others round and are no faster, and accelerators compute attention in float32.
        attention: "xla", "cudnn" (flash attention, on NVIDIA GPUs alone, in bfloat16 and with heads of a multiple of 8
            features up to 128), or "auto": cuDNN's where it exists, else XLA's.
        num_registers: number of register tokens (Darcet et al., 2024; DINOv2 and DINOv3 have 4).
        layer_scale: whether a learned factor scales each feature of an update (DINOv2, DINOv3).
        mlp: "gelu", or "swiglu" (giants of DINOv2 and DINOv3).
        positions: "learned", or "rope" (DINOv3).
        position_resizing: how a learned embedding fits other grids: "offset" (CrOC, DINO, DINOv2),
            "plain" (Hugging Face) or "antialias" (DINOv2 with registers, timm).
        position_size: side in pixels of the square images that a learned embedding has a place for each patch of, by
            default that of a run's crops. Weights that learned more places keep them with that of their own images.
        norm_epsilon: epsilon of the layer normalizations (ConvNeXt too).
        stages: blocks of each of the four stages (convolutional networks).
        image_mean: what is subtracted from each channel, from 0 to 1, before the network (any); ImageNet's by default.
        image_std: what each channel is divided by then.
    """

    variant: str = "vit_small"
    patch_size: int = 16
    width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.1
    remat: bool = False
    dtype: str = "auto"
    attention: str = "auto"
    num_registers: int = 0
    layer_scale: bool = False
    mlp: str = "gelu"
    positions: str = "learned"
    position_resizing: str = "offset"
    position_size: int | None = None
    norm_epsilon: float = 1e-6
    stages: tuple[int, ...] | None = None
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for channels that cannot be normalized."""
        if not self.image_mean or not all(0 <= value <= 1 for value in self.image_mean):
            raise ValueError(f"image_mean={self.image_mean}: numbers from 0 to 1, one a channel")
        if not all(0 < value <= 1 for value in self.image_std):
            raise ValueError(f"image_std={self.image_std}: numbers above 0, up to 1, one a channel")
        if len(self.image_std) != self.channels:
            raise ValueError(f"image_mean={self.image_mean}, image_std={self.image_std}: each needs one a channel")

    @property
    def channels(self) -> int:
        """The number of channels of an image."""
        return len(self.image_mean)

    def embedded_size(self, crop_size: int) -> int:
        """Returns the side of the images that a position embedding is learned for, in a run of such crops."""
        return self.position_size or crop_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The MLP that [CLS] and centroids share, and their weight-normalized last layers.

    Attributes:
        hidden_dim: features of the two hidden layers.
        bottleneck_dim: features that are L2-normalized before the last layers.
        num_prototypes: outputs for [CLS] (official `out_dim`).
        num_prototypes_dense: outputs for centroids (official `out_dim_c`).
        norm_last_layer: keep the weight norm's g at 1 in the student.
    """

    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    num_prototypes: int = 65536
    num_prototypes_dense: int = 8192
    norm_last_layer: bool = True

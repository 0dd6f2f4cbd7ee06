"""The vision transformer, which returns all tokens, and the last block's queries, keys and values."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from croc_jax.models.attention import Attention, is_cudnn_attention
from croc_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from croc_jax.models.drop_path import DropPath
from croc_jax.models.features import Features, Hidden
from croc_jax.models.initializers import truncated_normal, uniform_initializer
from croc_jax.models.patches import patch_grid
from croc_jax.models.position_embedding import resize_position_embedding, rotate, rotation_tables
from croc_jax.models.products import Dense
from croc_jax.pixel_format import RGB8, PixelFormat

LAYER_NORM_EPSILON = 1e-6
LAYER_SCALE_START = 1e-5


class VisionTransformer(nn.Module):
    """Pre-norm ViT, by default that of CrOC and DINO; the last settings make it DINOv2's or DINOv3's.

    Attributes:
        patch_size: side of a patch in pixels.
        grid_size: rows (and columns) of patches that the position embedding is learned for.
        width: features of a token.
        depth: number of blocks.
        num_heads: attention heads a block.
        mlp_ratio: hidden features of a block's MLP over the width.
        drop_path_rate: stochastic depth of the last block; earlier ones grow linearly from 0.
        kept: names of what blocks keep for their backward pass; all else is recomputed, which is mostly faster
            than to write it out and read it back, and saves memory.
        unrolled: compile the blocks one by one in training, not as a loop.
        dtype: type of the computation; parameters are float32.
        multiply: type of the products with parameters, by default that of the computation.
        attention: "xla", "xla_tpu" or "cudnn".
        num_registers: number of register tokens (Darcet et al., 2024), which take part in attention alone.
        layer_scale: whether a learned factor scales each feature of an update.
        mlp: "gelu", or "swiglu": the first matrix gives twice as many features, of which one half gates the other.
        positions: "learned", or "rope": rotations of queries and keys in every block.
        position_resizing: how a learned embedding fits other grids, see `RESIZINGS`.
        norm_epsilon: epsilon of the layer normalizations.
        image_mean: what its images are normalized by, before they come here; see `BackboneConfig`.
        image_std: likewise.
        pixels: format of its images before that.
        all_gather: applied to the parameters of one block just before it runs, where devices split them.
        frozen_blocks: first blocks that are given no gradients; in training they have a loop of their own, as a loop
            is differentiated as a whole.
    """

    patch_size: int
    grid_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.0
    kept: tuple[str, ...] = ()
    unrolled: bool = False
    dtype: Any = jnp.float32
    multiply: Any = None
    attention: str = "xla"
    num_registers: int = 0
    layer_scale: bool = False
    mlp: str = "gelu"
    positions: str = "learned"
    position_resizing: str = "offset"
    norm_epsilon: float = LAYER_NORM_EPSILON
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD
    pixels: PixelFormat = RGB8
    all_gather: Callable[[Any], Any] | None = None
    frozen_blocks: int = 0
    has_batch_statistics = False

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b H W c"],
        train: bool = False,
        rows: Int[Array, " b"] | None = None,
        hidden: Hidden | None = None,
    ) -> Features:
        """Returns the features of normalized images of any size that whole patches tile.

        Args:
            images: normalized images; H and W multiples of the patch size.
            train: drop residual branches if the rng stream "drop_path" is given.
            rows: places of the images in the whole batch, if they are a microbatch.
            hidden: patches that are replaced by a token.

        Raises:
            ValueError: if whole patches do not tile the images.
        """
        grid = patch_grid((images.shape[1], images.shape[2]), self.patch_size)
        tokens = PatchEmbedding(self.patch_size, self.width, self.dtype, self.multiply, name="patch_embedding")(images)
        cls_token = self.param("cls_token", truncated_normal, (1, 1, self.width))
        cls_token = jnp.broadcast_to(cls_token, (tokens.shape[0], 1, self.width))
        # What is learned is added in float32, so that its gradient is summed over images in float32.
        tokens = tokens.astype(jnp.float32)
        if hidden is not None:
            tokens = jnp.where(hidden.masked[..., None], hidden.token, tokens)
        tokens = jnp.concatenate([cls_token, tokens], axis=1)
        if self.positions == "learned":
            positions = self.param("position_embedding", truncated_normal, (1, self.grid_size**2 + 1, self.width))
            learned_grid = (self.grid_size, self.grid_size)
            positions = resize_position_embedding(positions, learned_grid, grid, resizing=self.position_resizing)
            tokens += positions
        tokens, first = self._insert_registers(tokens)
        tokens = tokens.astype(self.dtype)
        rotation = (
            rotation_tables(grid, self.width // self.num_heads, prefix=first) if self.positions == "rope" else None
        )
        tokens, qkv = self.run_blocks(tokens, train, rotation, rows)
        tokens = layer_norm(self.dtype, "norm", self.norm_epsilon)(tokens).astype(jnp.float32)
        attention = _cls_attention(qkv[0], qkv[1], rotation)[..., first:]
        queries, keys, values = (_without_registers(part, first).astype(jnp.float32) for part in qkv)
        return Features(tokens[:, 0], tokens[:, first:], queries, keys, values, attention)

    def _insert_registers(self, tokens: Float[Array, "b n d"]) -> tuple[Float[Array, "b m d"], int]:
        """Returns the tokens with registers after [CLS], and the place of the first patch."""
        if not self.num_registers:
            return tokens, 1
        registers = self.param("register_tokens", truncated_normal, (1, self.num_registers, self.width))
        registers = jnp.broadcast_to(registers, (tokens.shape[0], *registers.shape[1:]))
        return jnp.concatenate([tokens[:, :1], registers, tokens[:, 1:]], axis=1), 1 + self.num_registers

    def run_blocks(
        self,
        tokens: Float[Array, "b n d"],
        train: bool,
        rotation: np.ndarray | Array | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        """Returns the last block's tokens, and its queries, keys and values `[b h n dh]`.

        Unless `unrolled`, all blocks but the last run in one `lax.scan`: compiled once whatever the depth, with the
        residual stream as its carry. Unrolled, XLA on CPU would add up all earlier updates again wherever it reads
        the stream, which costs the square of the depth; GPUs save the copies of what is kept to a loop's stacks.
        """
        settings = {
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "dtype": self.dtype,
            "multiply": self.multiply,
            "attention": self.attention,
            "layer_scale": self.layer_scale,
            "mlp": self.mlp,
            "norm_epsilon": self.norm_epsilon,
        }
        if self.is_initializing():
            qkv = ()
            for index in range(self.depth):
                tokens, qkv = Block(**settings, name=f"block_{index}")(tokens, rotation=rotation)
            return tokens, qkv  # pyright: ignore[reportReturnType]
        block = Block(**settings, parent=None)
        drop_path = train and self.drop_path_rate > 0 and self.has_rng("drop_path")
        rates = np.linspace(0, self.drop_path_rate, self.depth, dtype=np.float32)
        keys: Any = jax.random.split(self.make_rng("drop_path"), self.depth) if drop_path else None
        params = [self.variables["params"][f"block_{index}"] for index in range(self.depth)]

        def run(tokens: Array, layer: tuple) -> tuple[Array, tuple[Array, Array, Array]]:
            layer_params, rate, key = layer
            layer_params = layer_params if self.all_gather is None else self.all_gather(layer_params)
            drop = DropPath(rate, key, rows) if drop_path else None
            return block.apply({"params": layer_params}, tokens, drop, rotation)  # pyright: ignore

        # Evaluation compiles a program for each size of images, and keeps nothing.
        unrolled = self.unrolled and train
        # A loop already keeps both passes apart.
        run = jax.checkpoint(run, policy=self._policy(), prevent_cse=unrolled)
        layers = list(zip(params, rates, keys if drop_path else [None] * self.depth, strict=True))
        first = min(self.frozen_blocks, self.depth - 1) if train else 0
        for part in filter(None, (layers[:first], layers[first:-1])):
            if unrolled:
                for layer in part:
                    tokens, _ = run(tokens, layer)
            else:
                stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *part)
                tokens, _ = jax.lax.scan(lambda carry, layer: (run(carry, layer)[0], None), tokens, stacked)
        return run(tokens, layers[-1])

    def _policy(self) -> Callable[..., bool]:
        """Says what blocks keep: values by name, and all results of cuDNN's attention, whose log-sum-exp has none."""
        policies = jax.checkpoint_policies
        names = policies.save_only_these_names(*self.kept)
        if self.attention != "cudnn" or "mixed" not in self.kept:
            return names
        names = policies.save_only_these_names(*(name for name in self.kept if name != "mixed"))
        return policies.save_from_both_policies(names, is_cudnn_attention)


class PatchEmbedding(nn.Module):
    """A linear map of each patch's pixels, as one matrix product."""

    patch_size: int
    width: int
    dtype: Any
    multiply: Any = None

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"]) -> Float[Array, "b n d"]:
        """Returns one token a patch, in row-major order."""
        batch, height, width, channels = images.shape
        size = self.patch_size
        patches = images.reshape(batch, height // size, size, width // size, size, channels)
        patches = jnp.swapaxes(patches, 2, 3).reshape(batch, -1, size * size * channels)
        # The official code leaves PyTorch's own start of a convolution in place here.
        uniform = uniform_initializer(1 / math.sqrt(size * size * channels))
        settings = {"kernel_init": uniform, "bias_init": uniform, "multiply": self.multiply}
        return Dense(self.width, self.dtype, **settings, name="projection")(patches)


class Block(nn.Module):
    """Attention, then an MLP, each on normalized tokens and added to what came in."""

    num_heads: int
    mlp_ratio: float
    dtype: Any
    multiply: Any
    attention: str
    layer_scale: bool
    mlp: str
    norm_epsilon: float

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b n d"],
        drop_path: DropPath | None = None,
        rotation: np.ndarray | Array | None = None,
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        """Returns the tokens, and the queries, keys and values `[b h n dh]`, not rotated."""
        update, qkv = Attention(self.num_heads, self.dtype, self.attention, self.multiply, name="attention")(
            layer_norm(self.dtype, "norm_1", self.norm_epsilon)(tokens), rotation
        )
        update = self._scale(update, "scale_1")
        tokens = checkpoint_name(tokens + (drop_path(update, 0) if drop_path else update), "middle")
        # Flat rows keep XLA on CPU from computing the activation anew inside each matrix product.
        rows = layer_norm(self.dtype, "norm_2", self.norm_epsilon)(tokens).reshape(-1, tokens.shape[-1])
        width = round(tokens.shape[-1] * self.mlp_ratio)
        gated = self.mlp == "swiglu"
        hidden = dense((1 + gated) * width, self.dtype, self.multiply, name="mlp_1", kept_as="hidden")(rows)
        hidden = jax.nn.silu(hidden[:, :width]) * hidden[:, width:] if gated else gelu(hidden)
        update = dense(tokens.shape[-1], self.dtype, self.multiply, name="mlp_2")(hidden).reshape(tokens.shape)
        update = self._scale(update, "scale_2")
        return tokens + (drop_path(update, 1) if drop_path else update), qkv

    def _scale(self, update: Float[Array, "b n d"], name: str) -> Float[Array, "b n d"]:
        if not self.layer_scale:
            return update
        start = nn.initializers.constant(LAYER_SCALE_START)
        scale = self.param(name, start, (update.shape[-1],))
        return (update.astype(jnp.float32) * scale).astype(self.dtype)


def _cls_attention(
    queries: Float[Array, "b h n dh"], keys: Float[Array, "b h n dh"], rotation: np.ndarray | Array | None
) -> Float[Array, "b h n"]:
    """Returns the attention that [CLS], which no rotation moves, pays to each token."""
    keys = (keys if rotation is None else rotate(keys, rotation)).astype(jnp.float32)
    scores = jnp.einsum("bhd,bhnd->bhn", queries[:, :, 0].astype(jnp.float32), keys) / math.sqrt(keys.shape[-1])
    return jax.nn.softmax(scores, axis=-1)


def _without_registers(tokens: Float[Array, "b h n dh"], first: int) -> Float[Array, "b h m dh"]:
    return tokens if first == 1 else jnp.concatenate([tokens[:, :, :1], tokens[:, :, first:]], axis=2)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """X times the normal distribution function of x, by erf (as PyTorch has it; erfc takes twice the time)."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def dense(features: int, dtype: Any, multiply: Any = None, *, name: str, kept_as: str = "") -> Dense:
    """Returns a linear layer that starts from a truncated normal."""
    return Dense(features, dtype, kernel_init=truncated_normal, kept_as=kept_as, multiply=multiply, name=name)


def layer_norm(dtype: Any, name: str, epsilon: float = LAYER_NORM_EPSILON) -> nn.LayerNorm:
    """Returns a layer normalization; the variance is computed as such, not as a difference."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)

"""The vision transformer, returning every token that a caller may want."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from croc_jax.models.attention import attend

LAYER_NORM_EPSILON = 1e-6
# What a block keeps for its backward pass: results of matrix products. All else is computed anew, which is faster than
# to write it out and read it back, and halves the memory.
KEPT = ("qkv", "scores", "mixed", "middle", "hidden")
truncated_normal = nn.initializers.truncated_normal(stddev=0.02, lower=-100.0, upper=100.0)


class Features(NamedTuple):
    """What a backbone sees in a batch of images; float32.

    Attributes:
        cls: the final normalized [CLS] token `[b d]`.
        patches: the final normalized patch tokens, in row-major order `[b n d]`.
        queries: of the last block, [CLS] first `[b h n+1 dh]`.
        keys: alike.
        values: alike.
        cls_attention: attention that [CLS] pays to each patch in the last block `[b h n]`.
    """

    cls: Float[Array, "b d"]
    patches: Float[Array, "b n d"]
    queries: Float[Array, "b h n+1 dh"]
    keys: Float[Array, "b h n+1 dh"]
    values: Float[Array, "b h n+1 dh"]
    cls_attention: Float[Array, "b h n"]


class VisionTransformer(nn.Module):
    """Pre-norm ViT with a learned position embedding.

    Attributes:
        patch_size: side of a patch in pixels.
        grid_size: rows (and columns) of patches that the position embedding is learned for.
        width: features of a token.
        depth: number of blocks.
        num_heads: attention heads a block.
        mlp_ratio: hidden features of a block's MLP over the width.
        drop_path_rate: stochastic depth of the last block; earlier ones grow linearly from 0.
        remat: recompute blocks in the backward pass.
        dtype: of the computation; parameters are float32.
        attention: "xla" or "cudnn".
    """

    patch_size: int
    grid_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32
    attention: str = "xla"

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"], train: bool = False) -> Features:
        """Returns the features of normalized images of any size that whole patches tile.

        Args:
            images: normalized; H and W multiples of the patch size.
            train: drop residual branches (needs the rng stream "drop_path").

        Raises:
            ValueError: if whole patches do not tile the images.
        """
        grid = patch_grid((images.shape[1], images.shape[2]), self.patch_size)
        tokens = PatchEmbedding(self.patch_size, self.width, self.dtype, name="patch_embedding")(images)
        cls_token = self.param("cls_token", truncated_normal, (1, 1, self.width))
        positions = self.param("position_embedding", truncated_normal, (1, self.grid_size**2 + 1, self.width))
        cls_token = jnp.broadcast_to(cls_token, (tokens.shape[0], 1, self.width)).astype(self.dtype)
        tokens = jnp.concatenate([cls_token, tokens], axis=1)
        tokens += resize_position_embedding(positions, (self.grid_size, self.grid_size), grid).astype(self.dtype)
        tokens, qkv = self.run_blocks(tokens, train)
        tokens = layer_norm(self.dtype, "norm")(tokens).astype(jnp.float32)
        queries, keys, values = (jnp.swapaxes(part, 1, 2).astype(jnp.float32) for part in qkv)
        scores = jnp.einsum("bhd,bhnd->bhn", queries[:, :, 0], keys) / math.sqrt(keys.shape[-1])
        attention = jax.nn.softmax(scores, axis=-1)[..., 1:]
        return Features(tokens[:, 0], tokens[:, 1:], queries, keys, values, attention)

    def run_blocks(self, tokens: Float[Array, "b n d"], train: bool) -> tuple[Array, tuple[Array, Array, Array]]:
        """Returns the last block's tokens, and its queries, keys and values `[b n h dh]`.

        All blocks but the last run in one `lax.scan`: compiled once whatever the depth, with the
        residual stream as its carry. Unrolled, XLA on CPU adds up all earlier updates anew
        wherever it reads the stream, which costs the square of the depth.
        """
        settings = (self.num_heads, self.mlp_ratio, self.dtype, self.attention)
        if self.is_initializing():
            qkv = ()
            for index in range(self.depth):
                tokens, qkv = Block(*settings, name=f"block_{index}")(tokens)
            return tokens, qkv  # pyright: ignore[reportReturnType]
        block = Block(*settings, parent=None)
        drop_path = train and self.drop_path_rate > 0
        rates = np.linspace(0, self.drop_path_rate, self.depth, dtype=np.float32)
        keys: Any = jax.random.split(self.make_rng("drop_path"), self.depth) if drop_path else None
        params = [self.variables["params"][f"block_{index}"] for index in range(self.depth)]

        def run(tokens: Array, layer: tuple) -> tuple[Array, tuple[Array, Array, Array]]:
            layer_params, rate, key = layer
            return block.apply({"params": layer_params}, tokens, DropPath(rate, key) if drop_path else None)  # pyright: ignore

        policy = None if self.remat else jax.checkpoint_policies.save_only_these_names(*KEPT)
        # The scan already keeps both passes apart.
        run = jax.checkpoint(run, policy=policy, prevent_cse=False)
        if self.depth > 1:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params[:-1])
            layers = (stacked, rates[:-1], keys[:-1] if drop_path else None)
            tokens, _ = jax.lax.scan(lambda carry, layer: (run(carry, layer)[0], None), tokens, layers)
        return run(tokens, (params[-1], rates[-1], keys[-1] if drop_path else None))


class DropPath(NamedTuple):
    """Stochastic depth of one block.

    Attributes:
        rate: chance of a residual branch to be left out for an image.
        rng: of this block and step.
    """

    rate: ArrayLike
    rng: Array

    def __call__(self, update: Float[Array, "b n d"], branch: int) -> Float[Array, "b n d"]:
        """Drops the whole update of some images, and scales up the others'."""
        keep = 1 - self.rate
        kept = jax.random.bernoulli(jax.random.fold_in(self.rng, branch), keep, (update.shape[0], 1, 1))
        return update * (kept / keep).astype(update.dtype)


class PatchEmbedding(nn.Module):
    """A linear map of each patch's pixels, as one matrix product."""

    patch_size: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"]) -> Float[Array, "b n d"]:
        """Returns one token a patch, in row-major order."""
        batch, height, width, channels = images.shape
        size = self.patch_size
        patches = images.reshape(batch, height // size, size, width // size, size, channels)
        patches = jnp.swapaxes(patches, 2, 3).reshape(batch, -1, size * size * channels)
        # The official code leaves PyTorch's own start of a convolution in place here.
        uniform = uniform_initializer(1 / math.sqrt(size * size * channels))
        dense = nn.Dense(self.width, dtype=self.dtype, kernel_init=uniform, bias_init=uniform, name="projection")
        return dense(patches)


class Block(nn.Module):
    """Attention, then an MLP, each on normalized tokens and added to what came in."""

    num_heads: int
    mlp_ratio: float
    dtype: Any
    attention: str

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n d"], drop_path: DropPath | None = None
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        """Returns the tokens, and the queries, keys and values `[b n h dh]`."""
        update, qkv = Attention(self.num_heads, self.dtype, self.attention, name="attention")(
            layer_norm(self.dtype, "norm_1")(tokens)
        )
        tokens = checkpoint_name(tokens + (drop_path(update, 0) if drop_path else update), "middle")
        # Flat rows keep XLA on CPU from computing the activation anew inside each matrix product.
        rows = layer_norm(self.dtype, "norm_2")(tokens).reshape(-1, tokens.shape[-1])
        hidden = checkpoint_name(dense(int(tokens.shape[-1] * self.mlp_ratio), self.dtype, "mlp_1")(rows), "hidden")
        update = dense(tokens.shape[-1], self.dtype, "mlp_2")(gelu(hidden)).reshape(tokens.shape)
        return tokens + (drop_path(update, 1) if drop_path else update), qkv


class Attention(nn.Module):
    """Multi-head self-attention with queries, keys and values from one matrix."""

    num_heads: int
    dtype: Any
    implementation: str

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"]) -> tuple[Array, tuple[Array, Array, Array]]:
        """Returns the update, and the queries, keys and values `[b n h dh]`."""
        batch, count, width = tokens.shape
        qkv = checkpoint_name(dense(3 * width, self.dtype, "qkv")(tokens), "qkv")
        qkv = qkv.reshape(batch, count, 3, self.num_heads, width // self.num_heads)
        queries, keys, values = (qkv[:, :, i] for i in range(3))
        update = checkpoint_name(attend(queries, keys, values, implementation=self.implementation), "mixed")
        update = dense(width, self.dtype, "projection")(update.reshape(batch, count, width))
        return update, (queries, keys, values)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """X times the normal distribution function of x, by erf (as PyTorch has it; erfc takes twice the time)."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def dense(features: int, dtype: Any, name: str) -> nn.Dense:
    """Returns a linear layer that starts from a truncated normal."""
    return nn.Dense(features, dtype=dtype, kernel_init=truncated_normal, name=name)


def layer_norm(dtype: Any, name: str) -> nn.LayerNorm:
    """Returns a layer normalization with the ViT's epsilon."""
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=dtype, use_fast_variance=False, name=name)


def uniform_initializer(bound: float) -> nn.initializers.Initializer:
    """Returns an initializer of uniform values in (-bound, bound)."""

    def init(rng: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(rng, shape, dtype, -bound, bound)

    return init


def patch_grid(size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Returns rows and columns of patches of an image of that height and width.

    Raises:
        ValueError: if whole patches do not tile it.
    """
    height, width = size
    if height % patch_size or width % patch_size or not height or not width:
        raise ValueError(f"images of {height} x {width} pixels: whole patches of {patch_size} pixels must tile them")
    return height // patch_size, width // patch_size


def resize_position_embedding(
    embedding: Float[Array, "1 n+1 d"], grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Array, "1 m+1 d"]:
    """Resizes the patches' part bicubically, as PyTorch does (a = -0.75, border repeated).

    Args:
        embedding: [CLS] first.
        grid: rows and columns that it was learned for.
        new_grid: rows and columns to return.
    """
    if grid == new_grid:
        return embedding
    width = embedding.shape[-1]
    patches = embedding[0, 1:].reshape(*grid, width)
    rows, columns = (_cubic_matrix(old, new) for old, new in zip(grid, new_grid, strict=True))
    precision = jax.lax.Precision.HIGHEST
    patches = jnp.einsum("rR,cC,RCd->rcd", rows, columns, patches, precision=precision)
    return jnp.concatenate([embedding[:, :1], patches.reshape(1, -1, width)], axis=1)


def _cubic_matrix(old: int, new: int) -> np.ndarray:
    """Returns the weights `[new old]` of a cubic interpolation."""
    # The official code asks for a size larger by 0.1, against rounding; that shifts the samples.
    centers = (np.arange(new) + 0.5) * old / (new + 0.1) - 0.5
    left = np.floor(centers).astype(int)
    weights = np.zeros((new, old))
    for offset in range(-1, 3):
        weight = _cubic_kernel(np.abs(centers - (left + offset)))
        np.add.at(weights, (np.arange(new), np.clip(left + offset, 0, old - 1)), weight)
    return weights.astype(np.float32)


def _cubic_kernel(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))

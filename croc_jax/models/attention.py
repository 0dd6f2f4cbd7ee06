"""Multi-head self-attention on each backend."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from croc_jax.models.initializers import truncated_normal
from croc_jax.models.position_embedding import rotate
from croc_jax.models.products import add_bias, product

# Orders of axes in memory. Left alone, XLA on TPU lays the scores out with heads and images innermost for the softmax,
# and copies them to another order before each product: a third of the time of a block.
ROW_MAJOR, FEATURES_IN_ROWS = (0, 1, 2, 3), (0, 1, 3, 2)
# cuDNN's backward pass refuses odd numbers of tokens, and its tiles want a multiple of 8.
CUDNN_TOKEN_MULTIPLE = 8


class Attention(nn.Module):
    """Multi-head self-attention with queries, keys and values from one matrix.

    Attributes:
        num_heads: heads that share the width.
        dtype: type of the computation; parameters are float32.
        implementation: see `attend`.
        multiply: type of the products with parameters, by default that of the computation.
    """

    num_heads: int
    dtype: Any
    implementation: str
    multiply: Any = None

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n d"], rotation: np.ndarray | Array | None = None
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        """Returns the update, and the queries, keys and values `[b h n dh]`, not rotated."""
        settings = {"dtype": self.dtype, "implementation": self.implementation, "multiply": self.multiply}
        queries, keys, values = HeadsIn(self.num_heads, **settings, name="qkv")(tokens)
        turned = (queries, keys) if rotation is None else (rotate(queries, rotation), rotate(keys, rotation))
        mixed = attend(*turned, values, implementation=self.implementation)
        update = HeadsOut(**settings, name="projection")(checkpoint_name(mixed, "mixed"))
        return update, (queries, keys, values)


class HeadsIn(nn.Module):
    """Queries, keys and values of all heads.

    Attributes:
        num_heads: heads that share the width.
        dtype: type of the computation.
        implementation: see `attend`. On a TPU, three products give each head's tokens side by side, so that no
            transpose follows; elsewhere, one gives all that belongs to a token.
        multiply: see `Attention`.
    """

    num_heads: int
    dtype: Any
    implementation: str
    multiply: Any = None

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"]) -> tuple[Array, Array, Array]:
        """Returns three arrays `[b h n dh]`."""
        width = tokens.shape[-1]
        kernel = self.param("kernel", truncated_normal, (width, 3 * width))
        bias = self.param("bias", nn.initializers.zeros, (3 * width,))
        if self.implementation != "xla_tpu":
            qkv = product("bnd,df->bnf", tokens, kernel, self.dtype, self.multiply)
            # For cudnn, what is kept is padded, too.
            qkv = checkpoint_name(qkv, "qkv") if self.implementation == "xla" else qkv
            qkv = add_bias(qkv, bias).reshape(*tokens.shape[:2], 3, self.num_heads, -1)
            queries, keys, values = (jnp.swapaxes(qkv[:, :, i], 1, 2) for i in range(3))
            return queries, keys, values
        kernels = jnp.moveaxis(kernel.reshape(width, 3, self.num_heads, -1), 1, 0)
        biases = bias.reshape(3, self.num_heads, 1, -1)
        products = (product("bnd,dhe->bhne", tokens, part, self.dtype, self.multiply) for part in kernels)
        queries, keys, values = (checkpoint_name(add_bias(part, biases[i]), "qkv") for i, part in enumerate(products))
        return queries, keys, values


class HeadsOut(nn.Module):
    """A linear layer from the joined features of all heads; attributes as in `HeadsIn`."""

    dtype: Any
    implementation: str
    multiply: Any = None

    @nn.compact
    def __call__(self, mixed: Float[Array, "b h n dh"]) -> Float[Array, "b n d"]:
        """Returns one update a token."""
        batch, heads, count, head_width = mixed.shape
        width = heads * head_width
        kernel = self.param("kernel", truncated_normal, (width, width))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        if self.implementation != "xla_tpu":
            joined = jnp.swapaxes(mixed, 1, 2).reshape(batch, count, width)
            return add_bias(product("bnd,df->bnf", joined, kernel, self.dtype, self.multiply), bias)
        kernel = kernel.reshape(heads, head_width, width)
        return add_bias(product("bhne,hed->bnd", mixed, kernel, self.dtype, self.multiply), bias)


def attend(
    queries: Float[Array, "b h n d"],
    keys: Float[Array, "b h n d"],
    values: Float[Array, "b h n d"],
    *,
    implementation: str,
) -> Float[Array, "b h n d"]:
    """Returns the values weighted by softmax(queries . keys / sqrt(d)).

    Args:
        queries: queries, in the type of the computation.
        keys: keys, in the same type.
        values: values, in the same type.
        implementation: "xla" anywhere; "xla_tpu", the same with layouts for the tiles of a TPU; or "cudnn".
    """
    if implementation == "cudnn":
        return _attend_cudnn(queries, keys, values)
    if implementation == "xla_tpu":
        queries, keys, values = (_lay_out(part, FEATURES_IN_ROWS) for part in (queries, keys, values))
        return _lay_out(_attend_xla(queries, keys, values, lay_out=_lay_out), ROW_MAJOR)
    shape = queries.shape
    # On CPU, products with one batch axis take 0.6 of the time of those with two.
    queries, keys, values = (part.reshape(-1, 1, *shape[2:]) for part in (queries, keys, values))
    return _attend_xla(queries, keys, values).reshape(shape)


def _attend_xla(queries: Array, keys: Array, values: Array, lay_out: Callable = lambda array, _: array) -> Array:
    scaled = queries * (1 / math.sqrt(queries.shape[-1]))
    scores = product("bhnd,bhmd->bhnm", scaled, keys, jnp.float32)
    scores = lay_out(checkpoint_name(scores, "scores"), ROW_MAJOR)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = lay_out(weights.astype(values.dtype), ROW_MAJOR)
    # Weights are divided by their sum only at the end, where there are fewer numbers.
    mixed = product("bhnm,bhmd->bhnd", weights, values, jnp.float32)
    return (mixed / total).astype(values.dtype)


def _lay_out(array: Array, major_to_minor: tuple[int, ...]) -> Array:
    return with_layout_constraint(array, Layout(major_to_minor=major_to_minor))


def _attend_cudnn(queries: Array, keys: Array, values: Array) -> Array:
    count = queries.shape[2]
    missing = -count % CUDNN_TOKEN_MULTIPLE

    def pad(tokens: Array) -> Array:
        padded = jnp.pad(jnp.swapaxes(tokens, 1, 2), ((0, 0), (0, missing), (0, 0), (0, 0)))
        return checkpoint_name(padded, "qkv")

    queries, keys, values = map(pad, (queries, keys, values))
    lengths: Any = {}
    if missing:
        # The same for every image, but computed from the queries: devices that split the batch then split the
        # lengths, too, unlike a constant.
        length = jnp.where(jnp.isnan(queries[:, 0, 0, 0]), count + missing, count).astype(jnp.int32)
        lengths = {"query_seq_lengths": length, "key_value_seq_lengths": length}
    mixed = jax.nn.dot_product_attention(queries, keys, values, **lengths, implementation="cudnn")
    return jnp.swapaxes(mixed[:, :count], 1, 2)


def is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Says whether a primitive is cuDNN's forward pass, for a policy of `jax.checkpoint`."""
    return primitive.name.startswith("dot_product_attention_fwd")

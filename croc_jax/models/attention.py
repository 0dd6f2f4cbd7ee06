"""Scaled dot-product attention on each backend."""

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float


def attend(
    queries: Float[Array, "b n h d"],
    keys: Float[Array, "b n h d"],
    values: Float[Array, "b n h d"],
    *,
    implementation: str,
) -> Float[Array, "b n h d"]:
    """Returns the values weighted by softmax(queries . keys / sqrt(d)).

    Args:
        queries: in the type of the computation, as keys and values.
        keys: alike.
        values: alike.
        implementation: "xla" anywhere, or "cudnn": flash attention on CUDA in half precision.
    """
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(queries, keys, values, implementation="cudnn")
    batch, count, heads, width = queries.shape

    def by_head(tokens: Array) -> Array:
        # One batch axis and weights divided by their sum only at the end: on CPU this takes
        # 0.6 of the time of the general-purpose function.
        return jnp.swapaxes(tokens, 1, 2).reshape(batch * heads, count, width)

    scaled = queries * (1 / math.sqrt(width))
    scores = jnp.einsum("bnd,bmd->bnm", by_head(scaled), by_head(keys), preferred_element_type=jnp.float32)
    scores = checkpoint_name(scores, "scores")
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "bnm,bmd->bnd", weights.astype(values.dtype), by_head(values), preferred_element_type=jnp.float32
    )
    mixed = (mixed / total).astype(values.dtype)
    return jnp.swapaxes(mixed.reshape(batch, heads, count, width), 1, 2)


def choose_attention(name: str, dtype: jnp.dtype) -> str:
    """Resolves "auto": flash attention on CUDA in half precision, XLA's own elsewhere.

    Raises:
        ValueError: for another name, or for "cudnn" where it does not exist.
    """
    half = dtype in (jnp.bfloat16, jnp.float16)
    cuda = jax.default_backend() == "gpu" and "rocm" not in jax.devices()[0].client.platform_version.lower()
    if name == "auto":
        return "cudnn" if half and cuda else "xla"
    if name not in ("xla", "cudnn"):
        raise ValueError(f"attention={name!r}: choose 'auto', 'xla' or 'cudnn'")
    if name == "cudnn" and not (half and cuda):
        raise ValueError(f"attention='cudnn' needs CUDA and bfloat16, not {jax.default_backend()} and {dtype}")
    return name

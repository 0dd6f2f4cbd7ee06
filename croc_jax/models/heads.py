"""The projection head that [CLS] and the centroids share up to its last layers."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from croc_jax.models.config import HeadConfig
from croc_jax.models.initializers import uniform_initializer
from croc_jax.models.products import product
from croc_jax.models.vit import dense, gelu
from croc_jax.unit import unit


class ProjectionHead(nn.Module):
    """A three-layer MLP, L2 normalization, and weight-normalized layers without bias, one for each kind of rows.

    Attributes:
        hidden_dim: features of the two hidden layers.
        bottleneck_dim: features that are L2-normalized.
        num_prototypes: outputs for [CLS].
        num_prototypes_dense: outputs for centroids.
        num_prototypes_masked: outputs for masked patches; 0 for a head without a layer for them.
        dtype: type of the computation; parameters and results are float32.
        multiply: type of the products, by default that of the computation.
    """

    hidden_dim: int
    bottleneck_dim: int
    num_prototypes: int
    num_prototypes_dense: int
    num_prototypes_masked: int = 0
    dtype: Any = jnp.float32
    multiply: Any = None

    def setup(self) -> None:
        """Declares the layers, so that either output initializes both."""
        types = self.dtype, self.multiply
        self.mlp_1 = dense(self.hidden_dim, *types, name="mlp_1")
        self.mlp_2 = dense(self.hidden_dim, *types, name="mlp_2")
        self.mlp_3 = dense(self.bottleneck_dim, *types, name="mlp_3")
        self.last_layer = WeightNormalized(self.num_prototypes, *types, name="last_layer")
        self.last_layer_dense = WeightNormalized(self.num_prototypes_dense, *types, name="last_layer_dense")
        if self.num_prototypes_masked:
            self.last_layer_masked = WeightNormalized(self.num_prototypes_masked, *types, name="last_layer_masked")

    def project_global(self, cls_tokens: Float[Array, "*batch d"]) -> Float[Array, "*batch p"]:
        """Returns the logits of [CLS] tokens."""
        return self.last_layer(self.bottleneck(cls_tokens))

    def project_dense(self, centroids: Float[Array, "*batch d"]) -> Float[Array, "*batch p"]:
        """Returns the logits of centroids."""
        return self.last_layer_dense(self.bottleneck(centroids))

    def project_masked(self, patches: Float[Array, "*batch d"]) -> Float[Array, "*batch p"]:
        """Returns the logits of patches."""
        return self.last_layer_masked(self.bottleneck(patches))

    def __call__(self, tokens: Float[Array, "*batch d"]) -> tuple[Array, ...]:
        """Returns all kinds of logits; to initialize."""
        logits = self.project_global(tokens), self.project_dense(tokens)
        return (*logits, self.project_masked(tokens)) if self.num_prototypes_masked else logits

    def bottleneck(self, tokens: Float[Array, "*batch d"]) -> Float[Array, "*batch e"]:
        """Returns unit vectors."""
        rows = tokens.reshape(-1, tokens.shape[-1])
        hidden = gelu(self.mlp_2(gelu(self.mlp_1(rows))))
        return unit(self.mlp_3(hidden).astype(jnp.float32)).reshape(*tokens.shape[:-1], -1)


class WeightNormalized(nn.Module):
    """y = g * (v / |v|) x for each output, without bias."""

    features: int
    dtype: Any
    multiply: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch e"]) -> Float[Array, "*batch p"]:
        """Returns float32 logits."""
        # The official code leaves PyTorch's own start of a linear layer in place here.
        uniform = uniform_initializer(1 / math.sqrt(x.shape[-1]))
        direction = self.param("direction", uniform, (self.features, x.shape[-1]))
        scale = self.param("scale", nn.initializers.ones, (self.features, 1))
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        logits = product("ae,pe->ap", rows, scale * unit(direction), jnp.float32, self.multiply)
        return logits.reshape(*x.shape[:-1], -1)


def make_head(
    config: HeadConfig, *, dtype: Any, multiply: Any = None, num_prototypes_masked: int = 0
) -> ProjectionHead:
    """Returns the module that a config describes, with a layer for masked patches if it has outputs for them."""
    return ProjectionHead(
        hidden_dim=config.hidden_dim,
        bottleneck_dim=config.bottleneck_dim,
        num_prototypes=config.num_prototypes,
        num_prototypes_dense=config.num_prototypes_dense,
        num_prototypes_masked=num_prototypes_masked,
        dtype=dtype,
        multiply=multiply,
    )

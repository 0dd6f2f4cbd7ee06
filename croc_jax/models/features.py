"""The one interface of backbones: images in, tokens out."""

from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from croc_jax.pixel_format import PixelFormat

# What may be clustered: parts of the last block's attention, or the final tokens.
ATTENTION_TOKENS = ("keys", "queries", "values")
TOKENS = (*ATTENTION_TOKENS, "last")


class Features(NamedTuple):
    """The features of a batch of images; float32, without register tokens.

    The last four are None for backbones without attention.

    Attributes:
        cls: the final normalized [CLS] token, or the pooled feature map `[b d]`.
        patches: the final normalized patch tokens, in row-major order `[b n d]`.
        queries: queries of the last block, [CLS] first `[b h n+1 dh]`, before rotations by place.
        keys: keys of the last block, likewise.
        values: values of the last block, likewise.
        cls_attention: attention of [CLS] to each patch in the last block `[b h n]`.
    """

    cls: Float[Array, "b d"]
    patches: Float[Array, "b n d"]
    queries: Float[Array, "b h n+1 dh"] | None = None
    keys: Float[Array, "b h n+1 dh"] | None = None
    values: Float[Array, "b h n+1 dh"] | None = None
    cls_attention: Float[Array, "b h n"] | None = None


class Hidden(NamedTuple):
    """Patches that a transformer does not see.

    Attributes:
        masked: which patches of each image.
        token: what it sees in their place, before their position is added.
    """

    masked: Bool[Array, "b n"]
    token: Float[Array, "1 d"]


class Backbone(Protocol):
    """A Flax module from normalized images `[b H W 3]`, of any size that whole patches tile, to `Features`."""

    @property
    def patch_size(self) -> int:
        """Pixels between two tokens, along each side."""
        ...

    @property
    def grid_size(self) -> int | None:
        """Rows (and columns) of patches that learned positions are for; None if there are no such positions."""
        ...

    @property
    def width(self) -> int:
        """Features of a token."""
        ...

    @property
    def dtype(self) -> Any:
        """Type of the computation; parameters are float32."""
        ...

    @property
    def image_mean(self) -> tuple[float, ...]:
        """What is subtracted from each channel, from 0 to 1, before the module is called."""
        ...

    @property
    def image_std(self) -> tuple[float, ...]:
        """What each channel is divided by then."""
        ...

    @property
    def pixels(self) -> PixelFormat:
        """The format of images before they are normalized."""
        ...

    @property
    def has_batch_statistics(self) -> bool:
        """Whether a training pass normalizes by statistics over the batch, which all devices share."""
        ...

    def init(self, rngs: Any, images: Array) -> Any:
        """Returns {"params": ...}."""
        ...

    def apply(self, variables: Any, images: Array, **options: Any) -> Any:
        """Returns the features; with `mutable=["statistics"]`, also the batch statistics of a training pass.

        Args:
            variables: {"params": ...}.
            images: normalized images.
            **options: options of Flax, and `train`: use the batch's own statistics, where there are any, and
                drop paths if the rng stream "drop_path" is given; then also `rows`, the places of the
                images in the whole batch, if they are a microbatch; and `hidden` patches (transformers alone).
        """
        ...


def clustering_tokens(
    features: Features, kind: str, *, groups: int = 1
) -> tuple[Float[Array, "*batch h n dh"], Float[Array, "*batch h dh"]]:
    """Returns the patch tokens that are clustered, and the [CLS] tokens that score them.

    Args:
        features: features with any leading axes.
        kind: "keys", "queries" or "values" (one set a head), or "last" (one set a group).
        groups: number of groups of consecutive features that "last" tokens are divided into.

    Raises:
        ValueError: for tokens that this backbone does not have, or groups that do not divide its width.
    """
    if kind != "last":
        tokens = getattr(features, kind)
        if tokens is None:
            raise ValueError(f"tokens={kind!r}: this backbone has no attention; choose 'last'")
        return tokens[..., 1:, :], tokens[..., 0, :]
    width = features.patches.shape[-1]
    if width % groups:
        raise ValueError(f"token_groups={groups}: must divide the {width} features of a token")
    patches, cls = (array.reshape(*array.shape[:-1], groups, -1) for array in (features.patches, features.cls))
    return jnp.moveaxis(patches, -2, -3), cls

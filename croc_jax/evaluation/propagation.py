"""Propagates the labels of a first frame through a video by the similarity of patch tokens."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from croc_jax.evaluation.interpolation import bilinear_matrix, resize_with
from croc_jax.evaluation.search import l2_normalize
from croc_jax.evaluation.settings import check_positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class PropagationConfig:
    """Settings of label propagation; the defaults are those of DINO's video segmentation.

    Attributes:
        num_last_frames: frames before the present one that labels come from, besides the first (official
            `n_last_frames`).
        neighborhood: farthest source in patches along either axis (official `size_mask_neighborhood`); 0 for no limit.
        topk: sources of each token, over all frames.
        temperature: temperature of their similarity.
    """

    num_last_frames: int = 7
    neighborhood: int = 12
    topk: int = 5
    temperature: float = 0.1

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        check_positive(self, "topk", "temperature")
        for name in ("num_last_frames", "neighborhood"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")


class LabelQueue:
    """Labels one frame after another, from the tokens of the first and the last few frames."""

    def __init__(self, tokens: Float[Array, "r c d"], labels: Float[Array, "r c k"], config: PropagationConfig) -> None:
        """Starts from the tokens of the first frame, of any length, and the share of each label in each patch."""
        slots = config.num_last_frames + 1
        self._config, self._seen = config, 0
        self._tokens = jnp.zeros((slots, *tokens.shape)).at[0].set(l2_normalize(tokens))
        self._labels = jnp.zeros((slots, *labels.shape)).at[0].set(labels)
        self._filled = jnp.zeros(slots, bool).at[0].set(True)

    def label(self, tokens: Float[Array, "r c d"]) -> Float[Array, "r c k"]:
        """Returns the soft labels of the next frame, from its tokens of any length."""
        tokens = l2_normalize(tokens)
        labels = propagate(tokens, self._tokens, self._labels, self._filled, config=self._config)
        if self._config.num_last_frames:
            # Slot 0 keeps the first frame; the others are a ring buffer.
            slot = 1 + self._seen % self._config.num_last_frames
            self._tokens = self._tokens.at[slot].set(tokens)
            self._labels = self._labels.at[slot].set(labels)
            self._filled = self._filled.at[slot].set(True)
        self._seen += 1
        return labels


@functools.partial(jax.jit, static_argnames="config")
def propagate(
    tokens: Float[Array, "r c d"],
    sources: Float[Array, "m r c d"],
    labels: Float[Array, "m r c k"],
    filled: Bool[Array, " m"],
    *,
    config: PropagationConfig,
) -> Float[Array, "r c k"]:
    """Returns the soft labels of a frame: the mean of each token's most similar sources (DINO's `label_propagation`).

    Tokens have unit length; `sources` and their soft `labels` are those of m frames, of which the `filled` ones count.
    """
    rows, columns, _ = tokens.shape
    reach = config.neighborhood or max(rows, columns)
    height = min(2 * reach + 1, rows)
    column = np.arange(columns)
    near_columns = np.abs(column[:, None] - column) <= reach

    def one_row(row: Array) -> Array:
        # Only sources in these rows can be near.
        start = jnp.clip(row - reach, 0, rows - height)
        slab, slab_labels = (jax.lax.dynamic_slice_in_dim(x, start, height, axis=1) for x in (sources, labels))
        near_rows = jnp.abs(start + jnp.arange(height) - row) <= reach
        is_source = filled[:, None, None] & near_rows[:, None] & near_columns[:, None, None, :]
        similarity = jnp.einsum("xd,mhcd->xmhc", tokens[row], slab, precision="highest")
        weights = jnp.exp(similarity / config.temperature) * is_source
        weights = weights.reshape(columns, -1, columns)
        # All that equal the least of the best count, as in the official code.
        least = _kth_largest(_best_lines(weights, config.topk), config.topk)
        weights = weights.reshape(columns, -1)
        weights = jnp.where(weights < least[:, None], 0, weights)
        propagated = jnp.matmul(weights, slab_labels.reshape(-1, labels.shape[-1]), precision="highest")
        return propagated / jnp.sum(weights, axis=1, keepdims=True)

    return jax.lax.map(one_row, jnp.arange(rows))


def _best_lines(values: Float[Array, "x l c"], k: int) -> Float[Array, "x s"]:
    """Returns the values of the k lines with the largest maxima, which hold the k largest values."""
    _, best = jax.lax.top_k(jnp.max(values, axis=2), min(k, values.shape[1]))
    return jnp.take_along_axis(values, best[:, :, None], axis=1).reshape(len(values), -1)


def _kth_largest(values: Float[Array, "x s"], k: int) -> Float[Array, " x"]:
    """Returns the k-th largest of non-negative values, equal ones counted separately; sorting takes far longer."""
    last = jnp.full(len(values), jnp.inf)
    result, missing = jnp.zeros(len(values)), jnp.full(len(values), k)
    for _ in range(k):
        last = jnp.max(jnp.where(values < last[:, None], values, 0), axis=1)
        result = jnp.where(missing > 0, last, result)
        missing = missing - jnp.sum(values == last[:, None], axis=1)
    return result


@functools.partial(jax.jit, static_argnames="patch_size")
def segment(labels: Float[Array, "r c k"], *, patch_size: int) -> UInt8[Array, "H W"]:
    """Returns the label of each pixel: the largest of bilinearly upsampled soft labels, each stretched to [0, 1]."""
    rows, columns, _ = labels.shape
    up_rows, up_columns = (bilinear_matrix(side, side * patch_size) for side in (rows, columns))
    full = resize_with(up_rows, up_columns, labels)
    shifted = full - jnp.min(full, axis=(0, 1))
    largest = jnp.max(shifted, axis=(0, 1))
    # A label that occurs nowhere stays as it is (official `norm_mask`).
    stretched = jnp.where(jnp.max(full, axis=(0, 1)) > 0, shifted / jnp.where(largest > 0, largest, 1), full)
    return jnp.argmax(stretched, axis=-1).astype(jnp.uint8)

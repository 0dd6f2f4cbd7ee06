"""Clusters of the features of any model: one image or two views of it, a batch of them, with or without heads."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from croc_jax.clustering.config import ClusteringConfig
from croc_jax.clustering.cross_view import cluster_arrays
from croc_jax.clustering.validation import (
    Numbers,
    check_config,
    check_magnitudes,
    is_concrete,
    read_grid,
    read_indices,
    read_key,
    read_numbers,
)
from croc_jax.float32 import in_float32

# A token without a score keeps this share of the mean, as all tokens need some mass.
_LEAST_SCORE = 1e-6


class FeatureClusters(NamedTuple):
    """Clusters of features `[*v *b *h n d]`; each axis is there only if the features have it.

    Attributes:
        labels: the cluster of each token `[*v *b *h n]`.
        num_clusters: K of the chosen round `[*b *h]`.
        costs: transport cost of every round, from K_start down to 2 `[*b *h rounds]`.
        valid: clusters that keep a token in every view `[*b *h k]`.
        merging: each token's cluster at every round `[rounds *v *b *h n]`, or None.
    """

    labels: Int[Array, "*v_b_h n"]
    num_clusters: Int[Array, "*b_h"]
    costs: Float[Array, "*b_h rounds"]
    valid: Bool[Array, "*b_h k"]
    merging: Int[Array, "rounds *v_b_h n"] | None

    def of_image(self, index: int) -> "FeatureClusters":
        """Returns the clusters of one image of a batch, as the figures take them.

        Args:
            index: the image's place in the batch.

        Raises:
            ValueError: if these are not clusters of a batch.
        """
        if self.num_clusters.ndim == 0:
            raise ValueError(f"clusters.labels {self.labels.shape}: these are of one image already")
        place = (slice(None),) * (self.labels.ndim - self.num_clusters.ndim - 1) + (index,)
        merging = None if self.merging is None else self.merging[:, *place]
        return FeatureClusters(
            self.labels[place], self.num_clusters[index], self.costs[index], self.valid[index], merging
        )


@in_float32
def cluster_features(
    features: Float[ArrayLike, "*v_b_h n d"],
    *,
    num_views: int = 1,
    positions: Float[ArrayLike, "*v_b n 2"] | None = None,
    grid: tuple[int, int] | None = None,
    scores: Float[ArrayLike, "*v_b_h n"] | None = None,
    cls_tokens: Float[ArrayLike, "*v_b_h d"] | None = None,
    config: ClusteringConfig | None = None,
    rng: Array | int | None = None,
    init_indices: Int[ArrayLike, "*b_h k"] | None = None,
    keep_merging: bool = False,
    check: bool = True,
) -> FeatureClusters:
    """Clusters tokens of any origin, and finds how many clusters there are (Section 3.3 of the paper).

    Compiled once for each set of shapes and each config. Arrays may be JAX's, NumPy's or PyTorch's, or nested lists.

    Examples:
        >>> features = 4.0 * jnp.eye(3)[jnp.arange(12) % 3] + 0.1
        >>> found = cluster_features(features, config=ClusteringConfig(k_start=4, k_max=4, cost_scale="image"))
        >>> int(found.num_clusters), found.labels.shape
        (3, (12,))

    Args:
        features: `[n d]`, `[b n d]` or `[b h n d]`; with two views, the same below a first axis of 2.
        num_views: 1, or 2 for views of the same images that are clustered together.
        positions: (x, y) of the tokens `[n 2]`, `[b n 2]`, or of two views `[2 n 2]`, `[2 b n 2]`, in
            any unit common to the views.
        grid: rows and columns of the patches of single images, instead of their positions. With neither,
            tokens have no place: `lambda_pos` counts as 0.
        scores: how much each token counts, 0 or more, shaped as the features without d.
        cls_tokens: a token whose similarity is the score, as in the paper, shaped as the features
            without n. With neither, all tokens count the same.
        config: the hyper-parameters; by default those of the paper, with costs scaled for each image by
            itself, so that no result depends on others.
        rng: key or seed of the draw of the first centroids; by default seed 0.
        init_indices: the first centroids themselves, different indices into the tokens of all views `[k]`,
            `[b k]`, `[b h k]`.
        keep_merging: whether to return the clusters of every round, too.
        check: whether to read the values of arrays, which waits for those of JAX. Inside compiled functions, only
            shapes and types are checked.

    Raises:
        ValueError: for shapes that don't fit, values that are not finite, negative scores, or indices
            out of range or repeated; the message names the argument and what was expected.
    """
    config = ClusteringConfig(cost_scale="image") if config is None else config
    check_config(config)
    exclusive = {"scores and cls_tokens": (scores, cls_tokens), "rng and init_indices": (rng, init_indices)}
    for names, pair in (exclusive | {"positions and grid": (positions, grid)}).items():
        if all(value is not None for value in pair):
            raise ValueError(f"{names}: give one of them")
    tokens = read_numbers("features", features)
    views, lead = _given_axes(tokens.shape, num_views, config)
    batch, heads = (*lead, 1, 1)[:2]
    *_, count, dim = tokens.shape

    def read(name: str, value: ArrayLike | None, size: int) -> Numbers | None:
        if value is None:
            return None
        array, shape = read_numbers(name, value), (*views, *lead, size)
        if array.shape != shape:
            raise ValueError(f"{name} {array.shape}: expected {shape} beside these features")
        return array.reshape(num_views, batch, heads, size)

    weights, cls = read("scores", scores, count), read("cls_tokens", cls_tokens, dim)
    places = _read_positions(positions, grid, views, batch, count)
    if places is None:
        places, config = np.zeros((num_views, 1, count, 2)), dataclasses.replace(config, lambda_pos=0.0)
    indices = None
    if init_indices is not None:
        indices = read_indices(init_indices, (*lead, config.k_start), num_views * count, check=check)
        indices = indices.reshape(batch, heads, config.k_start)
    key = read_key(0 if rng is None else rng) if indices is None else None
    if check:
        named = {"features": tokens, "positions": places, "scores": weights, "cls_tokens": cls}
        check_magnitudes({name: array for name, array in named.items() if array is not None})
        _check_scores(weights)
    if weights is not None:
        config = dataclasses.replace(config, temp_r=1.0, temp_c=1.0)
    found, rounds = cluster_arrays(
        jnp.asarray(tokens.reshape(num_views, batch, heads, count, dim)),
        None if cls is None else jnp.asarray(cls),
        None if weights is None else _log_scores(jnp.asarray(weights, jnp.float32)),
        jnp.broadcast_to(jnp.asarray(places, jnp.float32), (num_views, batch, count, 2)),
        key,
        indices,
        config=config,
        keep_rounds=keep_merging,
    )
    return FeatureClusters(
        found.labels.reshape(*views, *lead, count),
        found.num_clusters.reshape(lead),
        found.costs.reshape(*lead, -1),
        found.valid.reshape(*lead, -1),
        None if rounds is None else rounds.reshape(len(rounds), *views, *lead, count),
    )


def _given_axes(
    shape: tuple[int, ...], num_views: int, config: ClusteringConfig
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the view axis, and the axes of images and heads, as far as features of that shape have them."""
    if num_views not in (1, 2):
        raise ValueError(f"num_views={num_views}: choose 1 or 2")
    has_views = num_views == 2
    views, lead = shape[:has_views], shape[has_views:-2]
    if not 2 + has_views <= len(shape) <= 4 + has_views or views not in ((), (2,)):
        form = "[2 n d], [2 b n d] or [2 b h n d]" if has_views else "[n d], [b n d] or [b h n d]"
        raise ValueError(f"features {shape}: expected {form} for num_views={num_views}")
    if 0 in shape:
        raise ValueError(f"features {shape}: expected one image or more, and one head, token and feature or more")
    if config.k_start > num_views * shape[-2]:
        raise ValueError(f"k_start={config.k_start}: expected at most the {num_views * shape[-2]} tokens of an image")
    return views, lead


def _read_positions(
    positions: ArrayLike | None, grid: tuple[int, int] | None, views: tuple[int, ...], batch: int, count: int
) -> Numbers | None:
    """Returns positions `[v b n 2]`, where b may be 1, or None if there are none."""
    if grid is not None:
        rows, columns = read_grid(grid)
        if views or rows * columns != count:
            raise ValueError(f"grid={grid}: expected rows x columns of the {count} tokens of single images")
        y, x = np.divmod(np.arange(count), columns)
        return np.stack([x, y], axis=-1).reshape(1, 1, count, 2)
    if positions is None:
        return None
    array, one, many = read_numbers("positions", positions), (*views, count, 2), (*views, batch, count, 2)
    if array.shape not in (one, many):
        raise ValueError(f"positions {array.shape}: expected {one} or {many} beside these features")
    return array.reshape(*(views or (1,)), -1, count, 2)


def _check_scores(scores: Numbers | None) -> None:
    if scores is None or not is_concrete(scores):
        return
    weights = jax.device_get(scores)
    if weights.min() < 0:
        raise ValueError(f"scores: expected numbers of 0 or more, found negative ones such as {weights.min():.3g}")
    if not weights.any(axis=(0, 3)).all():
        raise ValueError("scores: expected a number above 0 for each image and head, found zeros alone")


@jax.jit
def _log_scores(scores: Float[Array, "v b h n"]) -> Float[Array, "v b h n"]:
    """Returns logits whose softmax over the tokens of all views is the share of each."""
    least = _LEAST_SCORE * jnp.mean(scores, axis=(0, 3), keepdims=True)
    return jnp.log(jnp.maximum(scores, least + jnp.finfo(jnp.float32).tiny))

"""Clusters of the features of any model: one image or two views of it, a batch of them, with or without heads."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from croc_jax.clustering.config import ClusteringConfig
from croc_jax.clustering.cross_view import choose_clusters, cls_scores, start_clusters, unit
from croc_jax.clustering.validation import (
    LARGEST,
    check_magnitudes,
    is_concrete,
    read_config,
    read_grid,
    read_indices,
    read_key,
    read_numbers,
)

# A token without a score keeps this share of the mean, as all tokens need some mass.
_LEAST_SCORE = 1e-6
# The sum of the scores of any number of tokens fits float32.
_LARGEST_SCORE = 1e30


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
            index: into the batch.

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


def cluster_features(
    features: Any,
    *,
    num_views: int = 1,
    positions: Any = None,
    grid: tuple[int, int] | None = None,
    scores: Any = None,
    cls_tokens: Any = None,
    config: ClusteringConfig | None = None,
    rng: Any = None,
    init_indices: Any = None,
    keep_merging: bool = False,
) -> FeatureClusters:
    """Clusters tokens of any origin, and finds how many clusters there are (Section 3.3 of the paper).

    Compiled once for each set of shapes and each config. Arrays may be NumPy's, JAX's or, through
    DLPack, those of other libraries such as PyTorch, or nested lists. Inside other compiled functions
    values are not known yet: shapes and types alone are checked.

    Args:
        features: `[n d]`, `[b n d]` or `[b h n d]`; with two views, the same below a first axis of 2.
        num_views: 1, or 2 for views of the same images that are clustered together.
        positions: (x, y) of the tokens `[n 2]`, `[b n 2]`, or of two views `[2 n 2]`, `[2 b n 2]`, in
            any unit common to the views.
        grid: rows and columns of the patches of single images, instead of their positions. With neither
            of them, tokens have no place: `lambda_pos` counts as 0.
        scores: how much each token counts, 0 or more, shaped as the features without d.
        cls_tokens: or a token whose similarity tells that, as in the paper, shaped as the features
            without n. With neither of them, all tokens count alike.
        config: the hyper-parameters; by default those of the paper, with costs scaled for each image by
            itself, so that no result depends on others.
        rng: key or seed of the first centroids; by default seed 0.
        init_indices: or these themselves, different indices into the tokens of all views `[k]`, `[b k]`,
            `[b h k]`.
        keep_merging: also return the clusters of every round.

    Raises:
        ValueError: for shapes that don't fit, values that are not finite, negative scores, or indices
            out of range or repeated; the message names the argument and what was expected.
    """
    config = ClusteringConfig(cost_scale="image") if config is None else read_config(config)
    tokens = _Tokens.of(features, num_views, config)
    if scores is not None and cls_tokens is not None:
        raise ValueError("scores and cls_tokens: give one of them")
    if rng is not None and init_indices is not None:
        raise ValueError("rng and init_indices: give one of them")
    if positions is None:
        places, config = _grid_positions(tokens, grid, config)
    else:
        places = tokens.read_positions(positions, grid)
    weights = None if scores is None else tokens.read("scores", scores, without="d")
    cls = None if cls_tokens is None else tokens.read("cls_tokens", cls_tokens, without="n")
    drawn = None if init_indices is None else tokens.read_indices(init_indices, config)
    key = None if drawn is not None else read_key(0 if rng is None else rng)
    _check_values(tokens.array, None if positions is None else places, weights, cls)
    found = _cluster(tokens.array, places, weights, cls, config, key, drawn, keep_merging)
    return tokens.shrink(*found)


@functools.partial(jax.jit, static_argnames=("config", "keep_merging"))
def _cluster(
    tokens: Array,
    positions: Array,
    scores: Array | None,
    cls_tokens: Array | None,
    config: ClusteringConfig,
    rng: Array | None,
    init_indices: Array | None,
    keep_merging: bool,
) -> tuple[Array, Array, Array, Array, Array | None]:
    num_views, batch, heads, count, _ = tokens.shape
    tokens = unit(_scale(tokens))
    if scores is not None:
        joined_scores = jnp.concatenate(list(scores), axis=-1)
        least = _LEAST_SCORE * jnp.mean(joined_scores, axis=-1, keepdims=True)
        token_logits = cluster_logits = jnp.log(jnp.maximum(joined_scores, least + jnp.finfo(jnp.float32).tiny))
    elif cls_tokens is not None and not config.uniform_marginals:
        similarity = cls_scores(tokens, _scale(cls_tokens))
        token_logits, cluster_logits = similarity / config.temp_r, similarity / config.temp_c
    else:
        token_logits = cluster_logits = jnp.zeros((batch, heads, num_views * count))
    joined, clusters = start_clusters(
        tokens, positions, token_logits, cluster_logits, config, rng=rng, init_indices=init_indices
    )
    found, merging = choose_clusters(joined, clusters, config, num_views=num_views, keep_labels=keep_merging)
    rounds = None if merging is None else jnp.moveaxis(merging, 3, 1)
    return found.labels, found.num_clusters, found.costs, found.valid, rounds


def _scale(vectors: Float[Array, "v b h *n d"]) -> Float[Array, "v b h *n d"]:
    """Returns those of each image and head times a power of 2, which changes no digit, for squares to fit float32."""
    axes = tuple(range(3, vectors.ndim))
    _, exponents = jnp.frexp(jnp.max(jnp.abs(vectors), axis=axes, keepdims=True))
    # Smaller powers than these are no normal numbers.
    return vectors * jnp.ldexp(1.0, -jnp.clip(exponents, -126, 126))


def _check_values(tokens: Array, positions: Array | None, scores: Array | None, cls_tokens: Array | None) -> None:
    named = (
        ("features", tokens, jnp.inf),
        ("positions", positions, LARGEST),
        ("scores", scores, _LARGEST_SCORE),
        ("cls_tokens", cls_tokens, jnp.inf),
    )
    check_magnitudes({name: (array, largest) for name, array, largest in named if array is not None})
    if scores is None or not is_concrete(scores):
        return
    weights = jax.device_get(scores)
    if weights.min() < 0:
        raise ValueError(f"scores: expected numbers of 0 or more, found negative ones such as {weights.min():.3g}")
    if not weights.any(axis=(0, 3)).all():
        raise ValueError("scores: expected a number above 0 for each image and head, found zeros alone")


class _Tokens(NamedTuple):
    """Features with all axes, and which of them were given.

    Attributes:
        array: `[v b h n d]`.
        given: number of axes between the views and the tokens: 0, 1 (b) or 2 (b h).
        has_views: whether the first axis was given.
    """

    array: Array
    given: int
    has_views: bool

    @classmethod
    def of(cls, features: Any, num_views: int, config: ClusteringConfig) -> "_Tokens":
        if num_views not in (1, 2):
            raise ValueError(f"num_views={num_views}: choose 1 or 2")
        array, has_views = _read("features", features), num_views == 2
        num_views = 1 + has_views
        given = array.ndim - 2 - has_views
        if not 0 <= given <= 2 or (has_views and array.shape[0] != 2):
            form = "[2 n d], [2 b n d] or [2 b h n d]" if has_views else "[n d], [b n d] or [b h n d]"
            raise ValueError(f"features {array.shape}: expected {form} for num_views={num_views}")
        *lead, count, dim = array.shape
        if not count or not dim:
            raise ValueError(f"features {array.shape}: expected one token or more, of one feature or more")
        if 0 in lead:
            raise ValueError(f"features {array.shape}: expected one image or more, and one head or more")
        if config.k_start > num_views * count:
            raise ValueError(f"k_start={config.k_start}: expected at most the {num_views * count} tokens of an image")
        lead = lead[has_views:]
        full = (num_views, *lead, *(1,) * (2 - given), count, dim)
        return cls(array.reshape(full), given, has_views)

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes before the tokens, as they were given."""
        return self.array.shape[: self.has_views] + self.array.shape[1 : 1 + self.given]

    def read(self, name: str, value: Any, *, without: str) -> Array:
        """Returns what belongs to the tokens (`without` d) or to the views (`without` n), with all axes."""
        array, size = _read(name, value), self.array.shape[3 if without == "d" else 4]
        if array.shape != (*self.lead, size):
            raise ValueError(f"{name} {array.shape}: expected {(*self.lead, size)} beside these features")
        return array.reshape(*self.array.shape[:3], size)

    def read_positions(self, value: Any, grid: tuple[int, int] | None) -> Array:
        if grid is not None:
            raise ValueError("positions and grid: give one of them")
        array, (views, batch, _, count, _) = _read("positions", value), self.array.shape
        one, many = (views,) * self.has_views + (count, 2), (views,) * self.has_views + (batch, count, 2)
        if array.shape not in (one, many):
            forms = f"{one}" if not self.given else f"{one} or {many}"
            raise ValueError(f"positions {array.shape}: expected {forms} beside these features")
        return jnp.broadcast_to(array.reshape(views, -1, count, 2), (views, batch, count, 2))

    def read_indices(self, value: Any, config: ClusteringConfig) -> Array:
        views, batch, heads, count, _ = self.array.shape
        shape = (*self.array.shape[1 : 1 + self.given], config.k_start)
        return read_indices(value, shape, views * count).reshape(batch, heads, config.k_start)

    def shrink(
        self, labels: Array, num_clusters: Array, costs: Array, valid: Array, merging: Array | None
    ) -> FeatureClusters:
        """Returns results with the axes that were given."""
        inner, count = self.array.shape[1 : 1 + self.given], self.array.shape[3]
        rounds = None if merging is None else merging.reshape(len(merging), *self.lead, count)
        return FeatureClusters(
            labels.reshape(*self.lead, count),
            num_clusters.reshape(inner),
            costs.reshape(*inner, -1),
            valid.reshape(*inner, -1),
            rounds,
        )


def _grid_positions(
    tokens: _Tokens, grid: tuple[int, int] | None, config: ClusteringConfig
) -> tuple[Array, ClusteringConfig]:
    views, batch, _, count, _ = tokens.array.shape
    if grid is None:
        return jnp.zeros((views, batch, count, 2)), dataclasses.replace(config, lambda_pos=0.0)
    rows, columns = read_grid(grid)
    if views != 1 or rows * columns != count:
        raise ValueError(f"grid={grid}: expected rows x columns of the {count} tokens of single images")
    y, x = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij")
    places = jnp.stack([x, y], axis=-1).reshape(1, 1, count, 2)
    return jnp.broadcast_to(places, (1, batch, count, 2)).astype(jnp.float32), config


def _read(name: str, value: Any) -> Array:
    return read_numbers(name, value).astype(jnp.float32)

"""Join the views, locate the clusters, split them again (Section 3.1 of the paper)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from croc_jax.clustering.config import ClusteringConfig
from croc_jax.clustering.merging import HIGHEST, Clusters, JoinedTokens, init_clusters, join_tokens, merge_all
from croc_jax.clustering.validation import LARGEST, check_magnitudes, read_config, read_indices, read_key, read_numbers


class Clustering(NamedTuple):
    """Clusters of the two views of each image, for each head.

    Attributes:
        assignments: each token's weight in the cluster that it keeps, 0 elsewhere, `[v b h n k]`;
            columns of clusters that were merged away are 0.
        valid: whether the cluster keeps a token in both views `[b h k]`.
        num_clusters: K of the chosen round `[b h]`.
        costs: transport cost d_c of every round, from K_start down to 2 `[b h k-1]`.
        labels: the column that each token keeps `[v b h n]`.
    """

    assignments: Float[Array, "v b h n k"]
    valid: Bool[Array, "b h k"]
    num_clusters: Int[Array, "b h"]
    costs: Float[Array, "b h rounds"]
    labels: Int[Array, "v b h n"]


def cluster_views(
    tokens: Any,
    cls_tokens: Any,
    positions: Any,
    config: ClusteringConfig,
    *,
    rng: Any = None,
    init_indices: Any = None,
) -> Clustering:
    """Clusters the tokens of two views of each image jointly (Section 3.3 of the paper).

    Compiled once for each set of shapes and each config; float32 inside whatever comes in, and
    no gradient flows through it. Arrays may be NumPy's, JAX's or, through DLPack, those of other
    libraries such as PyTorch, or nested lists. Inside other compiled functions values are not known
    yet: shapes and types alone are checked.

    Args:
        tokens: keys, queries, values (one set a head) or last tokens (one head) of both views,
            as they come `[2 b h n d]`.
        cls_tokens: the [CLS] tokens beside them `[2 b h d]`.
        positions: patch centers (x, y) in the original image, in any unit common to both views
            `[2 b n 2]`.
        config: the hyper-parameters.
        rng: key or seed for drawing the first centroids; needed unless `init_indices` is given.
        init_indices: the first centroids, as different indices into the 2n tokens (view 1's, then
            view 2's) `[b h k]`.

    Raises:
        ValueError: for shapes that don't fit together, values that are not finite, indices out of
            range or repeated, or if neither `rng` nor `init_indices`, or both, are given; the
            message names the argument and what was expected.
    """
    return _cluster_views(*_read_views(tokens, cls_tokens, positions, config, rng, init_indices))


def trace_merging(
    tokens: Any,
    cls_tokens: Any,
    positions: Any,
    config: ClusteringConfig,
    *,
    rng: Any = None,
    init_indices: Any = None,
) -> tuple[Int[Array, "rounds v b h n"], Float[Array, "b h rounds"]]:
    """Returns each token's cluster at every round from K_start to 2, and the rounds' costs.

    For figures such as the paper's Figure 3; takes what `cluster_views` takes. A merged cluster
    keeps the smaller of its parents' numbers.
    """
    return _trace_merging(*_read_views(tokens, cls_tokens, positions, config, rng, init_indices))


def _read_views(
    tokens: Any, cls_tokens: Any, positions: Any, config: ClusteringConfig, rng: Any, init_indices: Any
) -> tuple[Array, Array, Array, ClusteringConfig, Array | None, Array | None]:
    """Returns the arguments as arrays of JAX, if they fit together."""
    config, tokens = read_config(config), read_numbers("tokens", tokens)
    if tokens.ndim != 5 or tokens.shape[0] != 2:
        raise ValueError(f"tokens {tokens.shape}: expected [2 b h n d], the tokens of two views")
    if 0 in tokens.shape:
        raise ValueError(f"tokens {tokens.shape}: expected [2 b h n d] with no axis of length 0")
    _, batch, heads, num_tokens, features = tokens.shape
    cls_tokens, positions = read_numbers("cls_tokens", cls_tokens), read_numbers("positions", positions)
    for name, array, shape in (
        ("cls_tokens", cls_tokens, (2, batch, heads, features)),
        ("positions", positions, (2, batch, num_tokens, 2)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} {array.shape}: expected {shape} beside tokens {tokens.shape}")
    if config.k_start > 2 * num_tokens:
        raise ValueError(f"k_start={config.k_start}: more than the {2 * num_tokens} tokens of both views")
    if (rng is None) == (init_indices is None):
        raise ValueError("give either rng, to draw the first centroids, or init_indices")
    rng = None if rng is None else read_key(rng)
    if init_indices is not None:
        init_indices = read_indices(init_indices, (batch, heads, config.k_start), 2 * num_tokens)
    named = {"tokens": tokens, "cls_tokens": cls_tokens, "positions": positions}
    check_magnitudes({name: (array, LARGEST) for name, array in named.items()})
    return tokens, cls_tokens, positions, config, rng, init_indices


@functools.partial(jax.jit, static_argnames="config")
def _cluster_views(
    tokens: Array,
    cls_tokens: Array,
    positions: Array,
    config: ClusteringConfig,
    rng: Array | None,
    init_indices: Array | None,
) -> Clustering:
    joined, clusters = _join(tokens, cls_tokens, positions, config, rng, init_indices)
    return choose_clusters(joined, clusters, config, num_views=2)[0]


def choose_clusters(
    joined: JoinedTokens, clusters: Clusters, config: ClusteringConfig, *, num_views: int, keep_labels: bool = False
) -> tuple[Clustering, Int[Array, "rounds b h v n"] | None]:
    """Runs the merging, and splits what it chooses into the views again.

    Args:
        joined: tokens of all views.
        clusters: that the merging starts from.
        config: the hyper-parameters.
        num_views: v.
        keep_labels: also return each token's cluster at every round.
    """
    choice, costs, merging = merge_all(joined, clusters, config, num_views=num_views, keep_labels=keep_labels)
    labels = jnp.argmax(choice.assignments, axis=2)
    kept = jax.nn.one_hot(labels, config.k_start, axis=2, dtype=jnp.float32)
    assignments = choice.assignments * kept
    valid = jnp.all(jnp.any(assignments > 0, axis=-1), axis=-1)
    result = Clustering(
        jnp.moveaxis(assignments, (3, 4), (0, 3)), valid, choice.num_clusters, costs, jnp.moveaxis(labels, 2, 0)
    )
    return jax.lax.stop_gradient(result), merging


@functools.partial(jax.jit, static_argnames="config")
def _trace_merging(
    tokens: Array,
    cls_tokens: Array,
    positions: Array,
    config: ClusteringConfig,
    rng: Array | None,
    init_indices: Array | None,
) -> tuple[Array, Array]:
    joined, clusters = _join(tokens, cls_tokens, positions, config, rng, init_indices)
    _, costs, labels = merge_all(joined, clusters, config, keep_labels=True)
    assert labels is not None
    return jnp.moveaxis(labels, 3, 1), costs


def _join(
    tokens: Array,
    cls_tokens: Array,
    positions: Array,
    config: ClusteringConfig,
    rng: Array | None,
    init_indices: Array | None,
) -> tuple[JoinedTokens, Clusters]:
    """Concatenates the views along the tokens, weighs the tokens and starts the clusters."""
    tokens, cls_tokens, positions = jax.lax.stop_gradient((tokens, cls_tokens, positions))
    tokens = unit(tokens)
    scores = cls_scores(tokens, cls_tokens)
    if config.uniform_marginals:
        scores = jnp.zeros_like(scores)
    logits = scores / config.temp_r, scores / config.temp_c
    return start_clusters(tokens, positions, *logits, config, rng=rng, init_indices=init_indices)


def cls_scores(tokens: Float[Array, "v b h n d"], cls_tokens: Float[Array, "v b h d"]) -> Float[Array, "b h v*n"]:
    """Returns the similarity of each token to the [CLS] token of its view, view 1's first.

    Args:
        tokens: of unit length.
        cls_tokens: of any length.
    """
    products = jnp.einsum("vbhnd,vbhd->vbhn", tokens, unit(cls_tokens), precision=HIGHEST)
    return jnp.concatenate(list(products), axis=-1)


def start_clusters(
    tokens: Float[Array, "v b h n d"],
    positions: Float[Array, "v b n 2"],
    token_logits: Float[Array, "b h v*n"],
    cluster_logits: Float[Array, "b h v*n"],
    config: ClusteringConfig,
    *,
    rng: Array | None,
    init_indices: Int[Array, "b h k"] | None,
) -> tuple[JoinedTokens, Clusters]:
    """Joins the views and starts a cluster at each of some tokens.

    Args:
        tokens: of unit length.
        positions: in any unit.
        token_logits: their softmax is the token marginal, and the law of the draw.
        cluster_logits: their softmax over the drawn tokens is the first cluster marginal.
        config: for the number of clusters.
        rng: for the draw.
        init_indices: instead of a draw.
    """
    if init_indices is None:
        assert rng is not None
        init_indices = draw_tokens(rng, token_logits, config.k_start)
    joined = join_tokens(
        jnp.concatenate(list(tokens), axis=-2),
        jnp.concatenate(list(positions.astype(jnp.float32)), axis=-2),
        jax.nn.softmax(token_logits, axis=-1),
    )
    drawn = jnp.take_along_axis(cluster_logits, init_indices, axis=-1)
    return joined, init_clusters(joined, drawn, init_indices)


def draw_tokens(rng: Array, logits: Float[Array, "b h n"], count: int) -> Int[Array, "b h k"]:
    """Draws tokens without replacement, one after the other by the softmax of their logits.

    The largest of the logits with Gumbel noise follow exactly that law.
    """
    noisy = logits + jax.random.gumbel(rng, logits.shape, logits.dtype)
    places = jnp.arange(logits.shape[-1])[None, None]

    # One maximum after the other takes a fraction of the time of a sort; `top_k` would gather the batch of all devices.
    def take_largest(rest: Array, _: None) -> tuple[Array, Array]:
        largest = jnp.argmax(rest, axis=-1)
        return jnp.where(places == largest[..., None], -jnp.inf, rest), largest

    return jnp.moveaxis(jax.lax.scan(take_largest, noisy, length=count)[1], 0, -1)


def view_centroids(tokens: Any, cls_tokens: Any, assignments: Any) -> Float[Array, "v b h k d"]:
    """Returns the centroids of each view, Eq. 2, with the mean norm of the [CLS] tokens.

    Args:
        tokens: normalized last tokens of one network (teacher or student) `[v b n d]`.
        cls_tokens: its [CLS] tokens `[v b d]`; the mean of their norms is over the batch and both views.
        assignments: hard-masked, from `cluster_views` `[v b h n k]`.

    Raises:
        ValueError: for shapes that don't fit together.
    """
    tokens = read_numbers("tokens", tokens).astype(jnp.float32)
    if tokens.ndim != 4:
        raise ValueError(f"tokens {tokens.shape}: expected [v b n d], the last tokens of all views")
    cls_tokens = read_numbers("cls_tokens", cls_tokens).astype(jnp.float32)
    views, batch, num_tokens, features = tokens.shape
    if cls_tokens.shape != (views, batch, features):
        raise ValueError(f"cls_tokens {cls_tokens.shape}: expected {(views, batch, features)} beside these tokens")
    assignments, form = read_numbers("assignments", assignments), f"[{views} {batch} h {num_tokens} k]"
    if assignments.ndim != 5 or (*assignments.shape[:2], assignments.shape[3]) != (views, batch, num_tokens):
        raise ValueError(f"assignments {assignments.shape}: expected {form} beside tokens {tokens.shape}")
    centroids = jnp.einsum("vbhnk,vbnd->vbhkd", assignments, tokens, precision=HIGHEST)
    return unit(centroids) * jnp.mean(jnp.linalg.norm(cls_tokens, axis=-1))


def unit(vectors: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Scales vectors to length 1; the gradient at 0 is finite."""
    vectors = vectors.astype(jnp.float32)
    squared = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))

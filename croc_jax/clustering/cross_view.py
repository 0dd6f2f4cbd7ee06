"""Join the views, locate the clusters, split them again (Section 3.1 of the paper)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from croc_jax.clustering.config import ClusteringConfig
from croc_jax.clustering.merging import HIGHEST, init_clusters, join_tokens, merge_all
from croc_jax.clustering.validation import check_config, check_magnitudes, read_indices, read_key, read_numbers
from croc_jax.float32 import in_float32
from croc_jax.unit import unit


class Clustering(NamedTuple):
    """Clusters of the views of each image, for each head.

    `cluster_views` gives `assignments` and `labels` with the view axis first, as below; inside a
    training step it comes second, `[b v ...]`, as in `locate_clusters`.

    Attributes:
        assignments: each token's weight in the cluster that it keeps, 0 elsewhere, `[v b h n k]`;
            columns of clusters that were merged away are 0.
        valid: whether the cluster keeps a token in both views `[b h k]`.
        num_clusters: K of the chosen round `[b h]`.
        costs: transport cost d_c of every round, from K_start down to 2 `[b h rounds]`.
        labels: the column that each token keeps `[v b h n]`.
    """

    assignments: Float[Array, "v b h n k"]
    valid: Bool[Array, "b h k"]
    num_clusters: Int[Array, "b h"]
    costs: Float[Array, "b h rounds"]
    labels: Int[Array, "v b h n"]


@in_float32
def cluster_views(
    tokens: Float[ArrayLike, "2 b h n d"],
    cls_tokens: Float[ArrayLike, "2 b h d"],
    positions: Float[ArrayLike, "2 b n 2"],
    config: ClusteringConfig,
    *,
    rng: Array | int | None = None,
    init_indices: Int[ArrayLike, "b h k"] | None = None,
    check: bool = True,
) -> Clustering:
    """Clusters the tokens of two views of each image jointly (Section 3.3 of the paper).

    Compiled once for each set of shapes and each config; float32 inside whatever comes in, and
    no gradient flows through it. Arrays may be JAX's, NumPy's or PyTorch's, or nested lists.

    Examples:
        >>> tokens, cls_tokens = jax.random.normal(jax.random.key(0), (2, 1, 1, 9, 4)), jnp.ones((2, 1, 1, 4))
        >>> positions = jnp.zeros((2, 1, 9, 2))
        >>> found = cluster_views(tokens, cls_tokens, positions, ClusteringConfig(k_start=3, k_max=3), rng=0)
        >>> found.labels.shape, found.costs.shape
        ((2, 1, 1, 9), (1, 1, 2))

    Args:
        tokens: keys, queries, values (one set a head) or last tokens (one head) of both views, of any norm.
        cls_tokens: the [CLS] tokens beside them, of any norm.
        positions: patch centers (x, y) in the original image, in any unit common to both views.
        config: the hyper-parameters.
        rng: key or seed for drawing the first centroids; required unless `init_indices` is given.
        init_indices: the first centroids, as different indices into the 2n tokens (view 1's, then view 2's).
        check: whether to read the values of arrays, which waits for those of JAX. Inside compiled functions, only
            shapes and types are checked.

    Raises:
        ValueError: for shapes that don't fit together, values that are not finite, indices out of
            range or repeated, or if neither `rng` nor `init_indices`, or both, are given; the
            message names the argument and what was expected.
    """
    arrays = _read_views(tokens, cls_tokens, positions, config, rng, init_indices, check)
    return cluster_arrays(*arrays, config=config)[0]


@in_float32
def trace_merging(
    tokens: Float[ArrayLike, "2 b h n d"],
    cls_tokens: Float[ArrayLike, "2 b h d"],
    positions: Float[ArrayLike, "2 b n 2"],
    config: ClusteringConfig,
    *,
    rng: Array | int | None = None,
    init_indices: Int[ArrayLike, "b h k"] | None = None,
    check: bool = True,
) -> tuple[Int[Array, "rounds v b h n"], Float[Array, "b h rounds"]]:
    """Returns each token's cluster at every round from K_start to 2, and the rounds' costs.

    For figures such as the paper's Figure 3. A merged cluster keeps the smaller of its parents' numbers.
    Arguments and errors are those of `cluster_views`.
    """
    arrays = _read_views(tokens, cls_tokens, positions, config, rng, init_indices, check)
    clustering, labels = cluster_arrays(*arrays, config=config, keep_rounds=True)
    assert labels is not None
    return labels, clustering.costs


def _read_views(
    tokens: ArrayLike,
    cls_tokens: ArrayLike,
    positions: ArrayLike,
    config: ClusteringConfig,
    rng: Array | int | None,
    init_indices: ArrayLike | None,
    check: bool,
) -> tuple[Array, Array, None, Array, Array | None, Array | None]:
    """Returns the arguments of `cluster_arrays`; raises ValueError if they do not fit together."""
    check_config(config)
    arrays = {"tokens": tokens, "cls_tokens": cls_tokens, "positions": positions}
    given = {name: read_numbers(name, value) for name, value in arrays.items()}
    shape = given["tokens"].shape
    if len(shape) != 5 or shape[0] != 2 or 0 in shape:
        raise ValueError(f"tokens {shape}: expected [2 b h n d], the tokens of two views, no axis of length 0")
    _, batch, heads, count, features = shape
    for name, expected in (("cls_tokens", (2, batch, heads, features)), ("positions", (2, batch, count, 2))):
        if given[name].shape != expected:
            raise ValueError(f"{name} {given[name].shape}: expected {expected} beside tokens {shape}")
    if config.k_start > 2 * count:
        raise ValueError(f"k_start={config.k_start}: more than the {2 * count} tokens of both views")
    if (rng is None) == (init_indices is None):
        raise ValueError("give either rng, to draw the first centroids, or init_indices")
    key = None if rng is None else read_key(rng)
    indices = None
    if init_indices is not None:
        indices = read_indices(init_indices, (batch, heads, config.k_start), 2 * count, check=check)
    if check:
        check_magnitudes(given)
    tokens, cls_tokens, positions = (jnp.asarray(array) for array in given.values())
    return tokens, cls_tokens, None, positions, key, indices


@functools.partial(jax.jit, static_argnames=("config", "keep_rounds"))
def cluster_arrays(
    tokens: Float[Array, "v b h n d"],
    cls_tokens: Float[Array, "v b h d"] | None,
    scores: Float[Array, "v b h n"] | None,
    positions: Float[Array, "v b n 2"],
    rng: Array | None,
    init_indices: Int[Array, "b h k"] | None,
    *,
    config: ClusteringConfig,
    keep_rounds: bool = False,
) -> tuple[Clustering, Int[Array, "rounds v b h n"] | None]:
    """The one compiled program behind the public functions: arrays that fit, views first.

    Args:
        tokens: tokens of one view or more, of any norm.
        cls_tokens: score the tokens by their similarity, unless `scores` do.
        scores: scores of the tokens, if given; without both, all tokens weigh the same.
        positions: patch centers in the original image.
        rng: key for the draw of the first centroids, unless `init_indices` are given.
        init_indices: indices into the tokens of all views.
        config: the hyper-parameters.
        keep_rounds: whether to return the labels of every round, too.
    """
    tokens, positions = jnp.swapaxes(tokens, 0, 1), jnp.swapaxes(positions, 0, 1)
    if scores is not None:
        joined_scores = jnp.concatenate(list(scores), axis=-1)
    else:
        joined_scores = token_scores(tokens, None if cls_tokens is None else jnp.swapaxes(cls_tokens, 0, 1), config)
    if init_indices is None:
        assert rng is not None
        init_indices = draw_tokens(rng, joined_scores / config.temp_r, config.k_start)
    clustering, labels = locate_clusters(tokens, joined_scores, positions, init_indices, config, keep_rounds)
    views_first = {name: jnp.swapaxes(getattr(clustering, name), 0, 1) for name in ("assignments", "labels")}
    return clustering._replace(**views_first), None if labels is None else jnp.swapaxes(labels, 1, 2)


def token_scores(
    tokens: Float[Array, "b v h n d"], cls_tokens: Float[Array, "b v h d"] | None, config: ClusteringConfig
) -> Float[Array, "b h v*n"]:
    """Returns the similarity of each token to the [CLS] token of its view, view 1's first; zeros if all weigh the same.

    Args:
        tokens: tokens of any norm.
        cls_tokens: [CLS] tokens of any norm; None counts as `uniform_marginals`.
        config: the hyper-parameters.
    """
    if cls_tokens is None or config.uniform_marginals:
        batch, views, heads, count, _ = tokens.shape
        return jnp.zeros((batch, heads, views * count))
    # Joined after the product: on CPU, a product that also transposes slows the whole clustering by a quarter.
    products = jnp.einsum("bvhnd,bvhd->bvhn", unit(tokens), unit(cls_tokens), precision=HIGHEST)
    return jnp.concatenate(list(jnp.moveaxis(products, 1, 0)), axis=-1)


def draw_tokens(rng: Array, logits: Float[Array, "b h n"], count: int) -> Int[Array, "b h k"]:
    """Draws tokens without replacement, one after the other by the softmax of their logits.

    The largest of the logits with Gumbel noise follow exactly that law.

    Args:
        rng: key of the draw.
        logits: logits of the tokens.
        count: number of tokens to draw (k).
    """
    noisy = logits + jax.random.gumbel(rng, logits.shape, logits.dtype)
    places = jnp.arange(logits.shape[-1])[None, None]

    # One maximum after the other takes a fraction of the time of a sort; `top_k` would gather the batch of all devices.
    def take_largest(remaining: Array, _: None) -> tuple[Array, Array]:
        largest = jnp.argmax(remaining, axis=-1)
        return jnp.where(places == largest[..., None], -jnp.inf, remaining), largest

    return jnp.moveaxis(jax.lax.scan(take_largest, noisy, length=count)[1], 0, -1)


def locate_clusters(
    tokens: Float[Array, "b v h n d"],
    scores: Float[Array, "b h v*n"],
    positions: Float[Array, "b v n 2"],
    init_indices: Int[Array, "b h k"],
    config: ClusteringConfig,
    keep_rounds: bool = False,
) -> tuple[Clustering, Int[Array, "rounds b v h n"] | None]:
    """Joins the views, merges clusters down to two, and splits the chosen round into the views again.

    Args:
        tokens: tokens of any norm.
        scores: over `temp_r`, logits of the token marginal; over `temp_c`, of the first cluster marginal.
        positions: patch centers, in any unit.
        init_indices: the first centroids, as indices into the joined tokens.
        config: the hyper-parameters.
        keep_rounds: whether to return each token's cluster at every round.

    Returns:
        The clustering, whose `assignments` and `labels` are `[b v ...]` here, and the labels or None.
    """
    tokens, scores, positions = jax.lax.stop_gradient((tokens, scores, positions))
    joined = join_tokens(unit(tokens), positions.astype(jnp.float32), jax.nn.softmax(scores / config.temp_r, axis=-1))
    drawn = jnp.take_along_axis(scores, init_indices, axis=-1) / config.temp_c
    clusters = init_clusters(joined, drawn, init_indices)
    choice, costs, rounds = merge_all(joined, clusters, config, num_views=tokens.shape[1], keep_labels=keep_rounds)
    labels = jnp.argmax(choice.assignments, axis=2)
    assignments = choice.assignments * jax.nn.one_hot(labels, config.k_start, axis=2, dtype=jnp.float32)
    valid = jnp.all(jnp.any(assignments > 0, axis=-1), axis=-1)
    assignments, labels = jnp.moveaxis(assignments, (3, 4), (1, 3)), jnp.swapaxes(labels, 1, 2)
    found = jax.lax.stop_gradient(Clustering(assignments, valid, choice.num_clusters, costs, labels))
    return found, None if rounds is None else jnp.swapaxes(rounds, 2, 3)


def view_centroids(
    tokens: Float[Array, "*v_b n d"], cls_tokens: Float[Array, "*v_b d"], assignments: Float[Array, "*v_b h n k"]
) -> Float[Array, "*v_b h k d"]:
    """Returns the centroids of each view, Eq. 2, with the mean norm of the [CLS] tokens.

    Examples:
        >>> tokens, cls_tokens = jnp.eye(2)[None, None], jnp.array([[[3.0, 4.0]]])
        >>> view_centroids(tokens, cls_tokens, assignments=0.1 * jnp.eye(2)[None, None, None]).round(5).tolist()
        [[[[[5.0, 0.0], [0.0, 5.0]]]]]

    Args:
        tokens: normalized last tokens of one network (teacher or student), views and images in either order.
        cls_tokens: its [CLS] tokens; the mean of their norms is over the batch and both views.
        assignments: hard-masked, from the clustering.

    Raises:
        ValueError: for shapes that don't fit together.
    """
    if tokens.ndim != 4:
        raise ValueError(f"tokens {tokens.shape}: expected [v b n d], the last tokens of all views")
    *lead, count, features = tokens.shape
    if cls_tokens.shape != (*lead, features):
        raise ValueError(f"cls_tokens {cls_tokens.shape}: expected {(*lead, features)} beside these tokens")
    if assignments.ndim != 5 or (*assignments.shape[:2], assignments.shape[3]) != (*lead, count):
        form = f"[{lead[0]} {lead[1]} h {count} k]"
        raise ValueError(f"assignments {assignments.shape}: expected {form} beside tokens {tokens.shape}")
    centroids = jnp.einsum("...hnk,...nd->...hkd", assignments, tokens, precision=HIGHEST)
    return unit(centroids) * jnp.mean(jnp.linalg.norm(cls_tokens, axis=-1))

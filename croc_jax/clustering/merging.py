"""The merging loop: from K_start clusters to 2, with arrays of one fixed size."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from croc_jax.clustering.config import ClusteringConfig
from croc_jax.clustering.sinkhorn import transport_plan

HIGHEST = jax.lax.Precision.HIGHEST


class JoinedTokens(NamedTuple):
    """The tokens of all views, which the clustering treats as one set of n.

    Attributes:
        features: unit tokens, features first, as the similarities read them `[b h d n]`.
        positions: patch centers in the original image `[b n 2]`.
        marginal: how much each token weighs, summing to 1 `[b h n]`.
        stacked_stats: all that a cluster sums over its tokens: features, positions, marginal and 1, `[b h n d+4]`.
    """

    features: Float[Array, "b h d n"]
    positions: Float[Array, "b n 2"]
    marginal: Float[Array, "b h n"]
    stacked_stats: Float[Array, "b h n d+4"]


def join_tokens(
    features: Float[Array, "b v h n d"], positions: Float[Array, "b v n 2"], marginal: Float[Array, "b h v*n"]
) -> JoinedTokens:
    """Joins the tokens of all views, view 1's first, and lays them out for the rounds, once."""
    features = jnp.concatenate(list(jnp.moveaxis(features, 1, 0)), axis=-2)
    positions = positions.reshape(positions.shape[0], -1, 2)
    places = jnp.broadcast_to(positions[:, None], (*marginal.shape, 2))
    stacked_stats = jnp.concatenate(
        [features, places, marginal[..., None], jnp.ones_like(marginal)[..., None]], axis=-1
    )
    return JoinedTokens(jnp.swapaxes(features, -1, -2), positions, marginal, stacked_stats)


class Clusters(NamedTuple):
    """The clusters that a round starts from; inactive ones have no mass.

    Attributes:
        centroids: weighted means of tokens, of any norm `[b h k d]`.
        positions: weighted means of positions `[b h k 2]`.
        marginal: sums to 1 `[b h k]`.
    """

    centroids: Float[Array, "b h k d"]
    positions: Float[Array, "b h k 2"]
    marginal: Float[Array, "b h k"]

    @property
    def active(self) -> Bool[Array, "b h k"]:
        """Whether the cluster is still there."""
        return self.marginal > 0


class Round(NamedTuple):
    """The result of one round.

    Attributes:
        cost: transport cost d_c, Eq. 13 `[b h]`.
        assignments: the plan, each cluster's row summing to 1 within each view `[b h k v n]`.
    """

    cost: Float[Array, "b h"]
    assignments: Float[Array, "b h k v n"]


def init_clusters(tokens: JoinedTokens, scores: Float[Array, "b h k"], indices: Int[Array, "b h k"]) -> Clusters:
    """Starts one cluster at each of the given tokens, Eq. 8, weighted by the softmax of its score, Eq. 10."""
    drawn = jnp.take_along_axis(tokens.stacked_stats, indices[..., None], axis=2)
    return Clusters(drawn[..., :-4], drawn[..., -4:-2], jax.nn.softmax(scores, axis=-1))


def transport_cost(tokens: JoinedTokens, clusters: Clusters, config: ClusteringConfig) -> Float[Array, "b h k n"]:
    """Returns the cost of moving tokens to clusters, Eq. 18, scaled to [0, 1] over the active clusters."""
    active = clusters.active[..., None]
    if math.isinf(config.lambda_pos):
        # The limit of the scaled cost: features no longer count.
        cost = _relative_distance(tokens.positions, clusters.positions, active)
    else:
        norms = jnp.linalg.norm(clusters.centroids, axis=-1, keepdims=True)
        centroids = clusters.centroids / jnp.maximum(norms, 1e-12)
        cost = -jnp.einsum("bhkd,bhdn->bhkn", centroids, tokens.features, precision=HIGHEST)
        if config.lambda_pos:
            cost += config.lambda_pos * _relative_distance(tokens.positions, clusters.positions, active)
    axes = (2, 3) if config.cost_scale == "image" else (0, 1, 2, 3)
    low = jnp.min(cost, axis=axes, keepdims=True, where=active, initial=jnp.inf)
    high = jnp.max(cost, axis=axes, keepdims=True, where=active, initial=-jnp.inf)
    span = jnp.where(high > low, high - low, 1.0)
    return jnp.where(active, (cost - low) / span, 1.0)


def _relative_distance(
    tokens: Float[Array, "b n 2"], clusters: Float[Array, "b h k 2"], active: Bool[Array, "b h k 1"]
) -> Float[Array, "b h k n"]:
    """Euclidean distances over the largest of the same image and head, Eq. 17."""
    offset_x = clusters[..., 0, None] - tokens[:, None, None, :, 0]
    offset_y = clusters[..., 1, None] - tokens[:, None, None, :, 1]
    distance = jnp.sqrt(offset_x**2 + offset_y**2)
    farthest = jnp.max(distance, axis=(2, 3), keepdims=True, where=active, initial=0.0)
    return distance / jnp.where(farthest > 0, farthest, 1.0)


def assign_tokens(
    tokens: JoinedTokens, clusters: Clusters, config: ClusteringConfig, *, num_views: int
) -> tuple[Round, Float[Array, "b h k n"]]:
    """Assigns the tokens to the clusters; returns the round's record and its transport plan."""
    cost = transport_cost(tokens, clusters, config)

    def solve(cost: Array, cluster_marginal: Array, token_marginal: Array) -> Array:
        return transport_plan(
            cost,
            cluster_marginal,
            token_marginal,
            sinkhorn_lambda=config.sinkhorn_lambda,
            iterations=config.sinkhorn_iterations,
        )

    plan = jax.vmap(jax.vmap(solve))(cost, clusters.marginal, tokens.marginal)
    by_view = plan.reshape(*plan.shape[:3], num_views, -1)
    mass = jnp.sum(by_view, axis=-1, keepdims=True)
    assignments = by_view / jnp.where(mass > 0, mass, 1.0)
    return Round(jnp.sum(plan * cost, axis=(2, 3)), assignments), plan


def merge_closest(tokens: JoinedTokens, clusters: Clusters, plan: Float[Array, "b h k n"]) -> Clusters:
    """Merges the two clusters whose centroids have the largest dot product, Eq. 14.

    The merged cluster takes the first one's place and the other loses its mass. Sums over
    tokens are linear in the plan, so those of the merged cluster are sums of sums.
    """
    active = clusters.active
    sums = jnp.einsum("bhkn,bhnd->bhkd", plan, tokens.stacked_stats, precision=HIGHEST)
    centroids = sums[..., :-4] / jnp.where(active, sums[..., -1], 1.0)[..., None]
    first, second = _closest_pair(centroids, active)
    moved = jnp.sum(sums * second[..., None], axis=2, keepdims=True)
    sums = jnp.where(second[..., None], 0.0, sums + first[..., None] * moved)
    active = active & ~second
    means = sums / jnp.where(active, sums[..., -1], 1.0)[..., None]
    marginal = jnp.where(active, means[..., -2], 0.0)
    marginal /= jnp.sum(marginal, axis=-1, keepdims=True)
    return Clusters(means[..., :-4], means[..., -4:-2], marginal)


def _closest_pair(
    centroids: Float[Array, "b h k d"], active: Bool[Array, "b h k"]
) -> tuple[Bool[Array, "b h k"], Bool[Array, "b h k"]]:
    """Returns masks of the two clusters to merge."""
    num_clusters = centroids.shape[2]
    products = jnp.einsum("bhid,bhjd->bhij", centroids, centroids, precision=HIGHEST)
    upper = jnp.triu(jnp.ones((num_clusters, num_clusters), bool), 1)
    candidates = active[..., :, None] & active[..., None, :] & upper[None, None]
    flat = jnp.where(candidates, products, -jnp.inf).reshape(*products.shape[:2], -1)
    winner = jnp.argmax(flat, axis=-1)[..., None]
    columns = jnp.arange(num_clusters)[None, None]
    return columns == winner // num_clusters, columns == winner % num_clusters


class Choice(NamedTuple):
    """The best round so far.

    Attributes:
        cost: its transport cost `[b h]`.
        num_clusters: its K `[b h]`.
        assignments: its recorded assignments `[b h k v n]`.
    """

    cost: Float[Array, "b h"]
    num_clusters: Int[Array, "b h"]
    assignments: Float[Array, "b h k v n"]


def merge_all(
    tokens: JoinedTokens,
    clusters: Clusters,
    config: ClusteringConfig,
    *,
    num_views: int,
    keep_labels: bool = False,
) -> tuple[Choice, Float[Array, "b h rounds"], Int[Array, "rounds b h v n"] | None]:
    """Runs all rounds and chooses, for each image and head, the one with the least cost.

    Args:
        tokens: the tokens of all views.
        clusters: the K_start clusters of the first round.
        config: the hyper-parameters; `k_max` bounds the choice.
        num_views: number of views that the tokens belong to, in equal parts.
        keep_labels: whether to return each token's cluster at every round, too.

    Returns:
        The choice, the cost of every round from K_start down to 2, and the labels or None.
    """
    shape = (*clusters.marginal.shape, num_views, tokens.marginal.shape[-1] // num_views)

    def one_round(carry: tuple[Clusters, Choice], num_clusters: Array) -> tuple[tuple[Clusters, Choice], tuple]:
        clusters, best = carry
        found, plan = assign_tokens(tokens, clusters, config, num_views=num_views)
        better = (found.cost < best.cost) & (num_clusters <= config.k_max)
        best = Choice(
            jnp.where(better, found.cost, best.cost),
            jnp.where(better, num_clusters, best.num_clusters),
            jnp.where(better[..., None, None, None], found.assignments, best.assignments),
        )
        labels = jnp.argmax(found.assignments, axis=2).astype(jnp.int32) if keep_labels else None
        return (merge_closest(tokens, clusters, plan), best), (found.cost, labels)

    nothing = Choice(jnp.full(shape[:2], jnp.inf), jnp.zeros(shape[:2], jnp.int32), jnp.zeros(shape))
    rounds = jnp.arange(config.k_start, 1, -1, dtype=jnp.int32)
    (_, best), (costs, labels) = jax.lax.scan(one_round, (clusters, nothing), rounds)
    return best, jnp.moveaxis(costs, 0, -1), labels

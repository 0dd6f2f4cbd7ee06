"""What a step finds out on its way, and the numbers that it reports of it."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from croc_jax.clustering import Clustering
from croc_jax.losses import DistillationSums
from croc_jax.training.forward import Params
from croc_jax.training.masks import Masks

Metrics = dict[str, Array]


class TeacherClusters(NamedTuple):
    """The teacher's part of the dense objective: clusters `[b v ...]`, and its centroids."""

    clustering: Clustering
    centroids: Float[Array, "b v h k d"]


class Losses(NamedTuple):
    """What the loss function leaves besides its value; the last one if a recipe asks for it."""

    global_loss: DistillationSums
    dense_loss: DistillationSums
    statistics: Params
    masked_loss: DistillationSums | None = None


def loss_metrics(losses: Losses) -> Metrics:
    """Returns both losses of the method, the teacher's entropies, and the student's divergences from it."""
    global_loss, dense_loss = losses.global_loss, losses.dense_loss
    return {
        "loss_dense": dense_loss.loss,
        "loss_global": global_loss.loss,
        "teacher_entropy": global_loss.entropy,
        "teacher_entropy_c": dense_loss.entropy,
        # A cross-entropy is the teacher's entropy and the divergence of the student from it.
        "kl": global_loss.loss - global_loss.entropy,
        "kl_c": dense_loss.loss - dense_loss.entropy,
    }


def cluster_metrics(clusters: TeacherClusters | None) -> Metrics:
    """Returns the mean K, and the share of clusters that both views show."""
    if clusters is None:
        return {"num_clusters": jnp.zeros(()), "valid_fraction": jnp.zeros(())}
    num_clusters, valid = clusters.clustering.num_clusters, clusters.clustering.valid
    return {
        "num_clusters": jnp.mean(num_clusters.astype(jnp.float32)),
        "valid_fraction": jnp.sum(valid) / jnp.sum(num_clusters),
    }


def masked_metrics(masked: DistillationSums | None, masks: Masks | None) -> Metrics:
    """Returns the loss of masked patches, the teacher's entropy, and the share of all patches that is masked."""
    if masked is None or masks is None:
        return {}
    share = jnp.mean(masks.masked.astype(jnp.float32))
    return {"loss_masked": masked.loss, "teacher_entropy_m": masked.entropy, "masked_share": share}

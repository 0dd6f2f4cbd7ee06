"""Accuracy of classifications: where the true class ranks among all."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def class_ranks(scores: Float[Array, "n k"], labels: Int[Array, " n"]) -> Int[Array, " n"]:
    """Returns how many classes come before the true one; of equal scores the lower class comes first.

    Args:
        scores: of each class, the larger the better.
        labels: the true classes.
    """
    true = jnp.take_along_axis(scores, labels[:, None], axis=1)
    earlier = jnp.arange(scores.shape[1]) < labels[:, None]
    return jnp.sum((scores > true) | ((scores == true) & earlier), axis=1)


def top_accuracy(ranks: Int[np.ndarray, " n"], top: int) -> float:
    """Returns the share of images whose true class is among the first `top`, in percent."""
    return 100 * float(np.mean(ranks < top))


def class_accuracy(
    ranks: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], *, num_classes: int
) -> Float[np.ndarray, " k"]:
    """Returns the top-1 accuracy of each class in percent; NaN for a class without images."""
    counts = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels, weights=ranks == 0, minlength=num_classes)
    return 100 * np.divide(hits, counts, out=np.full(num_classes, np.nan), where=counts > 0)

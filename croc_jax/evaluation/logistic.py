"""Logistic regression on any number of features: scikit-learn's objective, on the device, by SciPy's L-BFGS."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from scipy.optimize import minimize

from croc_jax.evaluation.mmap import release_pages
from croc_jax.evaluation.probe import LinearHead, apply_head

# What is not learned from.
UNLABELED = -1
_ROWS_AT_ONCE = 8192
# Relative decrease of the objective that ends L-BFGS, and steps of a line search, as in scikit-learn.
_LEAST_DECREASE = 64 * np.finfo(float).eps
_LINE_SEARCH_STEPS = 50


class Scale(NamedTuple):
    """Normalized features are (features - mean) * factor."""

    mean: Float[Array, " d"]
    factor: Float[Array, " d"]


class Limits(NamedTuple):
    """When L-BFGS ends, and the number of pairs of vectors that it keeps."""

    iterations: int
    tolerance: float
    memory: int


# Features of some rows and their classes, of all rows in turn, each time that it is called.
Chunks = Callable[[], Iterator[tuple[Array, Array]]]


def make_chunks(features: Float[np.ndarray, "m d"], classes: Int[np.ndarray, " m"], *, device_bytes: int) -> Chunks:
    """Returns a function that yields all rows, part by part.

    Args:
        features: features, in memory or memory-mapped.
        classes: class of each row, or `UNLABELED`.
        device_bytes: larger features go to the device again for each pass.
    """

    def cut() -> Iterator[tuple[Array, Array]]:
        for first in range(0, len(features), _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            yield jnp.asarray(features[part]), jnp.asarray(classes[part])
            release_pages(features)

    if features.nbytes > device_bytes:
        return cut
    resident = list(cut())
    return lambda: iter(resident)


def fit_logistic(
    chunks: Chunks,
    scale: Scale,
    limits: Limits,
    *,
    c: float,
    num_classes: int,
    num_labeled: int,
    start: LinearHead | None = None,
    tell: Callable[[], object] | None = None,
) -> LinearHead:
    """Returns the layer on normalized features that minimizes C * summed cross-entropy + half the squared weights.

    The objective is divided by C and the number of rows, as in scikit-learn; the bias has no penalty. For two classes
    scikit-learn has one vector of weights, whose half each class has here with opposite signs: the penalty is doubled.

    Args:
        chunks: rows to learn from.
        scale: normalization of the features.
        limits: limits of L-BFGS.
        c: inverse strength of the penalty.
        num_classes: number of classes.
        num_labeled: number of rows with a class.
        start: layer to start from; zeros by default. The optimum does not depend on it.
        tell: called after each iteration.

    Raises:
        ValueError: if the layer is not finite at the end.
    """
    width = len(scale.mean)
    penalty = (2 if num_classes == 2 else 1) / (c * num_labeled)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        head = _unravel(flat, width)
        total, gradient, weights = 0.0, np.zeros(len(flat)), flat[: width * num_classes]
        for features, classes in chunks():
            loss, slope = _loss_and_gradient(head, features, classes, scale)
            total += float(loss)
            gradient += _ravel(slope)
        gradient /= num_labeled
        gradient[: len(weights)] += penalty * weights
        return total / num_labeled + penalty / 2 * float(weights @ weights), gradient

    options = {"maxiter": limits.iterations, "gtol": limits.tolerance, "ftol": _LEAST_DECREASE, "maxcor": limits.memory}
    options |= {"maxls": _LINE_SEARCH_STEPS, "maxfun": _LINE_SEARCH_STEPS * limits.iterations}
    first = np.zeros((width + 1) * num_classes) if start is None else _ravel(start)
    callback = (lambda _: tell()) if tell else None
    found = minimize(objective, first, method="L-BFGS-B", jac=True, callback=callback, options=options).x
    if not np.isfinite(found).all():
        raise ValueError(f"C={c:g}: the classifier is not finite at the end; leave this value out")
    return _unravel(found, width)


def _ravel(head: LinearHead) -> Float[np.ndarray, " n"]:
    return np.concatenate([np.asarray(part, np.float64).ravel() for part in head])


def _unravel(flat: np.ndarray, width: int) -> LinearHead:
    parts = jnp.asarray(flat.reshape(width + 1, -1), jnp.float32)
    return LinearHead(parts[:-1], parts[-1])


@jax.jit
def apply_scaled(head: LinearHead, scale: Scale, features: Float[Array, "*b d"]) -> Float[Array, "*b k"]:
    """Returns the logits of features as they come."""
    return apply_head(head, (features.astype(jnp.float32) - scale.mean) * scale.factor)


@jax.jit
def _loss_and_gradient(
    head: LinearHead, features: Float[Array, "m d"], classes: Int[Array, " m"], scale: Scale
) -> tuple[Float[Array, ""], LinearHead]:
    """Returns the summed cross-entropy of the rows with a class, and its gradient."""

    def loss_fn(head: LinearHead) -> Array:
        logits = apply_scaled(head, scale, features)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(classes, 0))
        return jnp.sum(losses * (classes != UNLABELED))

    return jax.value_and_grad(loss_fn)(head)

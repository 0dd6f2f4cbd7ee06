"""The random keys of a run: one for its start, and one for each thing that draws in a step."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Int


class StepKeys(NamedTuple):
    """The keys of one step; each is used once, as `split(k, n)[i] == fold_in(k, i)` with partitionable threefry.

    Attributes:
        augment: colors of both views.
        augment_local: colors of the local crops.
        cluster: tokens that the first centroids are drawn from.
        drop_path: stochastic depth of the student on both views.
        drop_path_local: stochastic depth of the student on the local crops.
        masks: patches that the student does not see.
    """

    augment: Array
    augment_local: Array
    cluster: Array
    drop_path: Array
    drop_path_local: Array
    masks: Array


def run_keys(seed: int) -> tuple[Array, Array]:
    """Returns the key of the initial parameters and the key that all steps derive theirs from.

    Examples:
        >>> init_rng, train_rng = run_keys(0)
        >>> bool((init_rng == train_rng).all())
        False
    """
    init_rng, train_rng = jax.random.split(jax.random.key(seed))
    return init_rng, train_rng


def step_keys(train_rng: Array, step: int | Int[Array, ""]) -> StepKeys:
    """Returns the keys of one step, as a function of the run's key and of the number of steps taken so far."""
    return StepKeys(*jax.random.split(jax.random.fold_in(train_rng, step), len(StepKeys._fields)))

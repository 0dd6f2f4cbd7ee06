"""Numbers that are not finite: found before they are saved, and explained."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from croc_jax.training.config import Recipe
from croc_jax.training.sharding import reduce_each


class NonFiniteError(ArithmeticError):
    """A loss or a state is not finite.

    Attributes:
        step: number of the update that showed it.
        finding: what is not finite.
    """

    def __init__(self, step: int, finding: str) -> None:
        """Describes the failure in one line."""
        super().__init__(f"step {step}: {finding}")
        self.step, self.finding = step, finding


def check_losses(step: int, metrics: Mapping[str, float]) -> None:
    """Raises NonFiniteError if the loss is not finite, with its parts."""
    if not math.isfinite(metrics["loss"]):
        parts = ", ".join(f"{name} {value}" for name, value in metrics.items() if name.startswith("loss_"))
        raise NonFiniteError(step, f"the loss is {metrics['loss']} ({parts})")


def check_state(step: int, state: Any) -> None:
    """Raises NonFiniteError, naming a tensor, if a tensor of a state has a value that is not finite."""
    arrays = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    finite = reduce_each(_all_finite, [leaf for _, leaf in arrays])
    for (path, _), good in zip(arrays, finite, strict=True):
        if not good:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise NonFiniteError(step, f"{name} has values that are not finite")


_all_finite = jax.jit(lambda array: jnp.all(jnp.isfinite(array)))


def explain(error: NonFiniteError, recipe: Recipe, *, last_good: Path | None) -> str:
    """Returns what happened, what is left of the run, and what to try."""
    optimizer, warmup = recipe.optimizer, recipe.optimizer.warmup_epochs
    kept = f"The last good checkpoint is {last_good}." if last_good else "There is no checkpoint yet."
    remedies = [
        f"--config.optimizer.base_lr={optimizer.base_lr / 2:g} (now {optimizer.base_lr:g})",
        f"--config.optimizer.warmup_epochs={2 * warmup or 1} (now {warmup})",
    ]
    if recipe.backbone.dtype != "float32":
        remedies.append(f"--config.backbone.dtype=float32 (now {recipe.backbone.dtype})")
    if not optimizer.clip_norm or optimizer.clip_norm > 1:
        remedies.append(f"--config.optimizer.clip_norm=1.0 (now {optimizer.clip_norm:g})")
    listed = "".join(f"\n  {remedy}" for remedy in remedies)
    return f"{error}; the run stops.\n{kept}\nIn a new workdir, try one or several of{listed}"

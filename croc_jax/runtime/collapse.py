"""Detects a collapse in the logged rows of a run, and says which settings to change."""

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from croc_jax.training.config import Recipe

Row = Mapping[str, float]


class Finding(NamedTuple):
    """A sign of collapse.

    Attributes:
        condition: short name.
        text: the numbers that show it, and what to change.
    """

    condition: str
    text: str


class _Check(NamedTuple):
    """A row shows the condition if each of `fields` lies below `below` of it (above, for a negative sign)."""

    condition: str
    bounds: Mapping[str, float]
    text: str
    advice: Sequence[tuple[str, float, float]]
    is_above: bool = False

    def shows(self, row: Row) -> bool:
        for name, bound in self.bounds.items():
            value = row.get(name)
            if value is None or not math.isfinite(value) or (value <= bound if self.is_above else value >= bound):
                return False
        return True


class Watchdog:
    """Looks at each logged row, and reports each condition once, and again if it recurs."""

    def __init__(self, recipe: Recipe, *, steps_per_epoch: int) -> None:
        """Starts with an empty window.

        Args:
            recipe: settings of the run; its group `runtime.watchdog` holds the thresholds.
            steps_per_epoch: updates an epoch.
        """
        config = recipe.runtime.watchdog
        # While the learning rate warms up, a healthy run can look collapsed.
        self._first = max(config.grace_steps, recipe.optimizer.warmup_epochs * steps_per_epoch)
        self._checks = _make_checks(recipe) if config.window else []
        self._rows = collections.deque[Row](maxlen=config.window or 1)
        self._reported = set[str]()

    def look(self, row: Row) -> list[Finding]:
        """Takes the next row; returns the conditions that every row of the full window shows and that are new."""
        if row["step"] < self._first:
            return []
        self._rows.append(row)
        if len(self._rows) < (self._rows.maxlen or 1):
            return []
        found = [check for check in self._checks if all(map(check.shows, self._rows))]
        new = [_explain(check, self._rows) for check in found if check.condition not in self._reported]
        self._reported = {check.condition for check in found}
        return new


def explain_divergence(error: FloatingPointError, recipe: Recipe) -> str:
    """Returns what to try where numbers are not finite, after the error itself."""
    optimizer, warmup = recipe.optimizer, recipe.optimizer.warmup_epochs
    changes = [("optimizer.base_lr", optimizer.base_lr, optimizer.base_lr / 2)]
    changes.append(("optimizer.warmup_epochs", warmup, 2 * warmup or 1))
    if not optimizer.clip_norm or optimizer.clip_norm > 1:
        changes.append(("optimizer.clip_norm", optimizer.clip_norm, 1.0))
    precision = "" if recipe.backbone.dtype == "float32" else ", or --config.backbone.dtype=float32"
    return f"{error}; the run stops. In a new workdir, try {_list_changes(changes)}{precision}"


def _explain(check: _Check, rows: Iterable[Row]) -> Finding:
    rows = list(rows)
    means = {name: math.fsum(row[name] for row in rows) / len(rows) for name in check.bounds}
    side = "above" if check.is_above else "below"
    numbers = ", ".join(f"{name} is {means[name]:.4g}, {side} {bound:.4g}" for name, bound in check.bounds.items())
    advice = _list_changes(check.advice)
    return Finding(
        check.condition, f"{check.text} ({numbers})" + (f". In a new workdir, try {advice}" if advice else "")
    )


def _list_changes(changes: Iterable[tuple[str, float, float]]) -> str:
    """Lists (field, value now, value to try), leaving out what changes nothing."""
    flags = [f"--config.{name}={new:g} (now {now:g})" for name, now, new in changes if f"{new:g}" != f"{now:g}"]
    return ", or ".join(flags)


def _make_checks(recipe: Recipe) -> list[_Check]:
    config, optimizer, objective = recipe.runtime.watchdog, recipe.optimizer, recipe.objective
    position, decay, center = recipe.clustering.lambda_pos, optimizer.weight_decay_end, objective.center_momentum
    lower_rate = ("optimizer.base_lr", optimizer.base_lr, optimizer.base_lr / 2)
    more_warmup = ("optimizer.warmup_epochs", optimizer.warmup_epochs, 2 * optimizer.warmup_epochs or 1)
    less_decay = ("optimizer.weight_decay_end", decay, decay / 2)
    colder, warmer = (("objective.teacher_temp", temp, k * temp) for temp in [objective.teacher_temp] for k in (0.5, 2))
    faster_center = ("objective.center_momentum", center, max(0.0, 2 * center - 1))

    def entropy_checks(suffix: str, prototypes: int, what: str) -> list[_Check]:
        most = math.log(prototypes)
        uniform, single = {f"teacher_entropy{suffix}": config.uniform_entropy * most}, config.single_entropy * most
        # A teacher that is sure of different answers is healthy, and hard for the student to follow: hence `kl`.
        bounds = {f"teacher_entropy{suffix}": single, f"kl{suffix}": config.single_kl * most}
        return [
            _Check(f"uniform{suffix}", uniform, f"the teacher's outputs for {what} are uniform over all prototypes",
                   [colder, lower_rate], is_above=True),
            _Check(f"one_prototype{suffix}", bounds, f"the teacher's outputs for {what} are a single prototype",
                   [faster_center, warmer]),
        ]  # fmt: skip

    # Without its loss, a head stays as it was drawn.
    checks = entropy_checks("", recipe.head.num_prototypes, "images") if objective.global_weight else []
    checks += [
        _Check("rank", {"feature_rank": config.min_feature_rank}, "the teacher's [CLS] tokens vary along one line only",
               [lower_rate, more_warmup]),
        _Check("spread", {"feature_spread": config.min_feature_spread}, "the teacher's [CLS] tokens are all the same",
               [lower_rate, less_decay]),
        _Check("norm", {"feature_norm": config.min_feature_norm}, "the teacher's [CLS] tokens vanish", [less_decay]),
    ]  # fmt: skip
    if not objective.alpha:
        return checks
    checks += entropy_checks("_c", recipe.head.num_prototypes_dense, "clusters")
    checks.append(
        _Check("few_valid", {"valid_fraction": config.min_valid_fraction}, "few clusters lie in both views",
               [("clustering.lambda_pos", position, position / 2)])
    )  # fmt: skip
    if min(recipe.clustering.k_start, recipe.clustering.k_max) > 2:
        checks.append(
            _Check("two_clusters", {"num_clusters": config.min_num_clusters}, "nearly all images merge to two clusters",
                   [("clustering.lambda_pos", position, 2 * position or 1.0)])
        )  # fmt: skip
    return checks

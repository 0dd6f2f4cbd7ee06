"""A collapse, seen in the rows of a log: what happened, in plain words, and which setting to change."""

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from croc_jax.clustering.config import ClusteringConfig
from croc_jax.training.config import Recipe, WatchdogConfig

Row = Mapping[str, float]


class CollapseError(RuntimeError):
    """Training has collapsed, and `runtime.watchdog.stop_on_collapse` asks to end it; the last state is saved."""


class Finding(NamedTuple):
    """A sign of collapse.

    Attributes:
        condition: its short name.
        text: what is seen, with numbers, and what to change.
    """

    condition: str
    text: str


class Watchdog:
    """Looks at each logged row, and tells each condition once; again if it recurs after it had gone."""

    def __init__(self, recipe: Recipe, *, steps_per_epoch: int) -> None:
        """Starts with an empty window.

        Args:
            recipe: of the run; its group `runtime.watchdog` holds the thresholds.
            steps_per_epoch: updates an epoch.
        """
        self._recipe, self._config = recipe, recipe.runtime.watchdog
        self._first = first_step(recipe, steps_per_epoch=steps_per_epoch)
        self._rows: collections.deque[Row] = collections.deque(maxlen=self._config.window)
        self._told: set[str] = set()

    def look(self, row: Row) -> list[Finding]:
        """Takes the next row, and returns the findings that are new."""
        if not self._config.window or row["step"] < self._first:
            return []
        self._rows.append(row)
        findings = find_collapse(self._rows, self._recipe)
        new = [finding for finding in findings if finding.condition not in self._told]
        self._told = {finding.condition for finding in findings}
        return new

    @property
    def stops(self) -> bool:
        """Whether a finding ends the run."""
        return self._config.stop_on_collapse


def first_step(recipe: Recipe, *, steps_per_epoch: int) -> int:
    """Returns the first step that is watched: a start looks like a collapse while the learning rate warms up."""
    return max(recipe.runtime.watchdog.grace_steps, recipe.optimizer.warmup_epochs * steps_per_epoch)


def find_collapse(rows: Sequence[Row], recipe: Recipe) -> list[Finding]:
    """Returns the conditions that every row of a full window shows; none for a window that is not full.

    Args:
        rows: of metrics.jsonl, the latest last. A row without a field, or with one that is not
            finite, does not show its condition.
        recipe: of the run.
    """
    window = recipe.runtime.watchdog.window
    if not window or len(rows) < window:
        return []
    latest = list(rows)[-window:]
    return [
        Finding(check.condition, check.explain(_Means(latest), recipe))
        for check in _checks(recipe)
        if all(_shows(check, row) for row in latest)
    ]


class _Means:
    """Means over rows, by name."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __getitem__(self, name: str) -> float:
        return math.fsum(row[name] for row in self._rows) / len(self._rows)


class _Check(NamedTuple):
    """A condition: the fields that it needs, a test of a row, and the words for it."""

    condition: str
    fields: tuple[str, ...]
    is_met: Callable[[Row], bool]
    explain: Callable[[_Means, Recipe], str]


def _shows(check: _Check, row: Row) -> bool:
    values = [row.get(name) for name in check.fields]
    return all(value is not None and math.isfinite(value) for value in values) and check.is_met(row)


def _checks(recipe: Recipe) -> list[_Check]:
    config, head = recipe.runtime.watchdog, recipe.head
    checks = _entropy_checks(config, "", head.num_prototypes) + _feature_checks(config)
    if recipe.objective.alpha:
        checks += _entropy_checks(config, "_c", head.num_prototypes_dense) + _cluster_checks(config, recipe.clustering)
    return checks


def _entropy_checks(config: WatchdogConfig, suffix: str, prototypes: int) -> list[_Check]:
    name, kl, most = f"teacher_entropy{suffix}", f"kl{suffix}", math.log(prototypes)
    who = "of clusters" if suffix else "of images"

    def explain_uniform(means: _Means, recipe: Recipe) -> str:
        temp = recipe.objective.teacher_temp
        return (
            f"the teacher's answers {who} are uniform: {name} is {means[name]:.3f}, and {most:.3f} is the most that "
            f"{prototypes} prototypes allow. Nothing is told apart"
            + _advise(_change("objective.teacher_temp", temp, temp / 2), _lower_rate(recipe))
        )

    def explain_single(means: _Means, recipe: Recipe) -> str:
        center, temp = recipe.objective.center_momentum, recipe.objective.teacher_temp
        return (
            f"the teacher's answers {who} are one prototype: {name} is {means[name]:.4f} of at most {most:.3f}, and "
            f"the student already agrees ({kl} is {means[kl]:.4f})"
            + _advise(
                _change("objective.center_momentum", center, max(0.0, 2 * center - 1), "the center follows faster"),
                _change("objective.teacher_temp", temp, 2 * temp),
            )
        )

    return [
        _Check(f"uniform{suffix}", (name,), lambda row: row[name] > config.uniform_entropy * most, explain_uniform),
        # A teacher that is sure of different answers is healthy, and hard to follow.
        _Check(
            f"one_prototype{suffix}",
            (name, kl),
            lambda row: row[name] < config.single_entropy * most and row[kl] < config.single_kl * most,
            explain_single,
        ),
    ]


def _feature_checks(config: WatchdogConfig) -> list[_Check]:
    def explain_rank(means: _Means, recipe: Recipe) -> str:
        warmup = recipe.optimizer.warmup_epochs
        return (
            f"the teacher's [CLS] tokens lie on a line: feature_rank is {means['feature_rank']:.2f}, below "
            f"{config.min_feature_rank:g}"
            + _advise(_lower_rate(recipe), _change("optimizer.warmup_epochs", warmup, 2 * warmup or 1))
        )

    def explain_spread(means: _Means, recipe: Recipe) -> str:
        return (
            f"the teacher's [CLS] tokens are all the same: their variance is {means['feature_spread']:.2g} of their "
            f"squared norm (feature_norm {means['feature_norm']:.3g})"
            + _advise(_lower_rate(recipe), _less_decay(recipe))
        )

    def explain_norm(means: _Means, recipe: Recipe) -> str:
        return (
            f"the teacher's [CLS] tokens vanish: feature_norm is {means['feature_norm']:.2g}, below "
            f"{config.min_feature_norm:g}" + _advise(_less_decay(recipe))
        )

    return [
        _Check("rank", ("feature_rank",), lambda row: row["feature_rank"] < config.min_feature_rank, explain_rank),
        _Check(
            "spread",
            ("feature_spread", "feature_norm"),
            lambda row: row["feature_spread"] < config.min_feature_spread,
            explain_spread,
        ),
        _Check("norm", ("feature_norm",), lambda row: row["feature_norm"] < config.min_feature_norm, explain_norm),
    ]


def _cluster_checks(config: WatchdogConfig, clustering: ClusteringConfig) -> list[_Check]:
    def explain_two(means: _Means, recipe: Recipe) -> str:
        lambda_pos = recipe.clustering.lambda_pos
        return (
            f"nearly all images merge down to two clusters: num_clusters is {means['num_clusters']:.2f}, of "
            f"{recipe.clustering.k_start} at the start"
            + _advise(
                _change("clustering.lambda_pos", lambda_pos, 2 * lambda_pos or 1.0, "places count more"),
                f"other --config.objective.tokens (now {recipe.objective.tokens})",
            )
        )

    def explain_valid(means: _Means, recipe: Recipe) -> str:
        lambda_pos, low, high = recipe.clustering.lambda_pos, *recipe.data.views.scale
        larger = (
            f"larger crops, which overlap more, --config.data.views.scale='({(low + high) / 2:g}, {high:g})' "
            f"(now ({low:g}, {high:g}))"
        )
        return (
            f"few clusters lie in both views: valid_fraction is {means['valid_fraction']:.3f}, so that little is left "
            f"to learn from"
            + _advise(larger if low < high else "", _change("clustering.lambda_pos", lambda_pos, lambda_pos / 2))
        )

    few = _Check(
        "few_valid",
        ("valid_fraction",),
        lambda row: row["valid_fraction"] < config.min_valid_fraction,
        explain_valid,
    )
    if min(clustering.k_start, clustering.k_max) <= 2:
        return [few]
    two = _Check(
        "two_clusters", ("num_clusters",), lambda row: row["num_clusters"] < config.min_num_clusters, explain_two
    )
    return [two, few]


def _advise(*changes: str) -> str:
    """Returns what to try: in a new workdir, as one holds a single recipe."""
    kept = [change for change in changes if change]
    return f". In a new workdir, try {', or '.join(kept)}" if kept else ""


def _change(field: str, now: float, new: float, purpose: str = "") -> str:
    """Returns a change of a setting; nothing where it would change nothing."""
    if f"{new:g}" == f"{now:g}":
        return ""
    return f"--config.{field}={new:g} (now {now:g})" + (f", so that {purpose}" if purpose else "")


def _lower_rate(recipe: Recipe) -> str:
    return _change("optimizer.base_lr", recipe.optimizer.base_lr, recipe.optimizer.base_lr / 2)


def _less_decay(recipe: Recipe) -> str:
    decay = recipe.optimizer.weight_decay_end
    return _change("optimizer.weight_decay_end", decay, decay / 2)


def describe_findings(rows: Sequence[Row], recipe: Recipe) -> list[str]:
    """Returns a sentence for each warning of a run, by what it logged.

    Args:
        rows: of metrics.jsonl, from the first one on.
        recipe: of the run.
    """
    if not rows:
        return []
    steps_per_epoch = round(rows[-1]["step"] / rows[-1]["epoch"])
    watchdog = Watchdog(recipe, steps_per_epoch=steps_per_epoch)
    return [f"Warning at step {row['step']:,}: {finding.text}." for row in rows for finding in watchdog.look(row)]


def explain_stop(step: int, findings: Sequence[Finding]) -> str:
    """Returns the one line that a stopped run ends with."""
    return f"step {step}: training has collapsed, and runtime.watchdog.stop_on_collapse is set: " + "; ".join(
        finding.text for finding in findings
    )

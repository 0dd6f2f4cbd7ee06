"""Grids over settings: the runs that they stand for, and how far each of them is."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from croc_jax.training.config import Recipe
from croc_jax.training.metrics_log import FILE_NAME, last_row
from croc_jax.training.workdir import CHECKPOINTS_NAME


class SweepError(ValueError):
    """A sweep cannot be expanded; the message names the field or the values."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """A setting that is varied.

    Attributes:
        fields: of the recipe, all of which get the same value.
        values: in the order of a report.
    """

    fields: tuple[str, ...]
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        """Raises SweepError for an axis that varies nothing."""
        if not self.values or len(set(self.values)) < len(self.values):
            raise SweepError(f"{','.join(self.fields)}={self.values}: an axis takes one or more values, each once")


# Every combination of the values of its axes.
Grid = tuple[Axis, ...]


class Run(NamedTuple):
    """One point of a sweep.

    Attributes:
        name: unique in the sweep: the swept fields that differ from the center, with their values.
        settings: every swept field, with its value.
    """

    name: str
    settings: dict[str, Any]


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        state: "finished" if its last checkpoint is there.
        step: of the last line of its log.
        epoch: likewise.
    """

    state: Literal["new", "started", "finished"]
    step: int = 0
    epoch: float = 0.0


def parse_grid(grid: Mapping[str, Any]) -> Grid:
    """Returns the axes of {"FIELD" or "FIELD,FIELD": values}.

    Raises:
        SweepError: if a value is no sequence of values, or a field comes twice.
    """
    axes = []
    for names, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise SweepError(f"{names}={values!r}: expected a tuple of values")
        axes.append(Axis(tuple(name.strip() for name in names.split(",")), tuple(values)))
    fields = [field for axis in axes for field in axis.fields]
    if twice := {field for field in fields if fields.count(field) > 1}:
        raise SweepError(f"{', '.join(sorted(twice))}: comes twice in one grid")
    return tuple(axes)


def expand(grids: Sequence[Grid], center: Mapping[str, Any]) -> list[Run]:
    """Returns the runs of several grids; one that they share is there once.

    Args:
        grids: each varies its own axes; the fields of the others stay at the center.
        center: {"clustering.k_start": 12, ...}, with every swept field.

    Raises:
        SweepError: for a field that the center lacks, or values that make the same name.
    """
    fields = list(dict.fromkeys(field for grid in grids for axis in grid for field in axis.fields))
    if unknown := [field for field in fields if field not in center]:
        raise SweepError(f"unknown field {unknown[0]}: there is no such setting to sweep")
    runs: dict[tuple[Any, ...], Run] = {}
    for grid in grids:
        for values in itertools.product(*(axis.values for axis in grid)):
            settings = {field: center[field] for field in fields}
            for axis, value in zip(grid, values, strict=True):
                settings |= dict.fromkeys(axis.fields, value)
            runs.setdefault(tuple(settings.values()), Run(_name(settings, center, grids), settings))
    names = [run.name for run in runs.values()]
    if same := [name for name in names if names.count(name) > 1]:
        raise SweepError(f"two runs would both be called {same[0]}: values must differ in letters and digits")
    return list(runs.values())


def format_value(value: Any) -> str:
    """Returns a value as the paper's tables write it: 3 for 3.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _name(settings: Mapping[str, Any], center: Mapping[str, Any], grids: Sequence[Grid]) -> str:
    heads = list(dict.fromkeys(axis.fields[0] for grid in grids for axis in grid))
    short = [head.rpartition(".")[2] for head in heads]
    parts = []
    for head, name in zip(heads, short, strict=True):
        if settings[head] != center[head]:
            name = name if short.count(name) == 1 else head
            parts.append(f"{name}-{re.sub(r'[^A-Za-z0-9.+_-]+', '-', format_value(settings[head]))}")
    return "_".join(parts) or "base"


def read_progress(workdir: Path, recipe: Recipe) -> Progress:
    """Returns how far the run in a folder is, from its files alone.

    Args:
        workdir: which may be missing.
        recipe: of the run.
    """
    row = last_row(workdir / FILE_NAME)
    if row is None:
        return Progress("started" if (workdir / CHECKPOINTS_NAME).is_dir() else "new")
    epoch = row.get("epoch", 0.0)
    ended = epoch >= recipe.schedule.epochs and (workdir / CHECKPOINTS_NAME / str(row["step"])).is_dir()
    return Progress("finished" if ended else "started", row["step"], epoch)

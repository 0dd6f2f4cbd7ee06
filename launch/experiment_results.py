"""What the runs of an experiment have given so far: the content of experiment.json, from the files of all runs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment_plan import Column, Experiment, Run, part_option

from croc_jax.evaluation.results import RESULTS
from croc_jax.runtime.metrics_writer import FILE_NAME, parse_row
from croc_jax.runtime.workdir import CONFIG_NAME, read_recipe
from croc_jax.training.config import flatten, recipe_to_dict

# Of the settings that all runs share, those that a reader of tables wants to know.
_SHOWN = (
    "backbone.variant", "backbone.width", "backbone.depth", "backbone.num_heads", "backbone.patch_size",
    "data.views.crop_size", "schedule.epochs", "schedule.batch_size", "optimizer.base_lr", "objective.teacher_temp",
)  # fmt: skip


def collect(
    experiment: Experiment,
    runs: Sequence[Run],
    columns: Iterable[Column],
    *,
    name: str,
    part: str,
) -> dict[str, Any]:
    """Returns the content of experiment.json: settings, columns, tables, and the scores of all runs that have any.

    Args:
        experiment: the experiment.
        runs: its runs.
        columns: its columns.
        name: its name.
        part: part of the validation images that is scored.
    """
    columns = list(columns)
    tables = [{"title": table.title, "rows": list(table.rows)} for table in experiment.tables]
    rows = [{"name": row.name, "label": row.label, "overrides": list(row.overrides)} for row in experiment.rows]
    described = [_describe(run, columns, experiment, part) for run in runs]
    settings = [flatten(recipe_to_dict(run.recipe)) for run in runs]
    shared = {field: settings[0][field] for field in _SHOWN if len({one[field] for one in settings}) == 1}
    return {
        "name": name,
        "part": part,
        "base": experiment.base,
        # What a network leaves open is as its variant has it.
        "settings": {field: value for field, value in shared.items() if value is not None},
        "columns": [column._asdict() for column in columns],
        "tables": tables or [{"title": "All rows", "rows": [row.name for row in experiment.rows]}],
        "rows": rows,
        "curve": experiment.curve,
        "runs": [run for run in described if run["scores"]],
    }


def _describe(run: Run, columns: Sequence[Column], experiment: Experiment, part: str) -> dict[str, Any]:
    scores: dict[str, dict[str, Any]] = {}
    for column in columns:
        output = run.scorings[column.data].output
        # One protocol writes to the folder itself, several below it.
        files = [output / column.name / RESULTS, output / RESULTS] if output else []
        file = next(filter(Path.is_file, files), None)
        if file is not None and run.is_trained() and run.scorings[column.data].is_done():
            found = json.loads(file.read_text(encoding="utf-8"))
            scores.setdefault(column.data, {})[column.name] = {
                "score": found[column.score],
                "step": found["step"],
                "seconds": round(found["seconds"]["total"], 1),
                "digest": found["fingerprint"]["digest"],
            }
    rows, batch = read_metrics(run.folder), run.recipe.schedule.batch_size
    # It may have been trained when another part was scored.
    config = run.folder / CONFIG_NAME
    has_curve = rows and config.is_file() and part_option(part) in read_recipe(config).evaluation.overrides
    steps = [row["step"] for row in rows]
    # The speed of a row is that of the steps since the one before.
    spans = zip(rows, [0, *steps], strict=False)
    seconds = sum((row["step"] - before) * batch / row["images_per_sec"] for row, before in spans)
    return {
        "row": run.row.name,
        "seed": run.seed,
        "steps": steps[-1] if steps else 0,
        "seconds": round(seconds, 1),
        "images_per_sec": round(steps[-1] * batch / seconds, 2) if seconds else 0,
        "scores": scores,
        "curve": _curve(rows, columns, experiment.curve) if has_curve else [],
    }


def _curve(rows: Iterable[Mapping[str, Any]], columns: Iterable[Column], curve: str) -> list[list[float]]:
    """Returns [epoch, score] of the evaluations during a run."""
    data, _, name = curve.partition("/")
    keys = [f"{one.protocol}_{one.score}" for one in columns if (one.data, one.name.split("-")[0]) == (data, name)]
    return [[round(row["epoch"], 3), row[key]] for row in rows for key in keys if row.get(key) is not None]


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns all rows of a run's metrics.jsonl that are whole; [] without one."""
    file = folder / FILE_NAME
    if not file.is_file():
        return []
    with file.open("rb") as lines:
        return [row for line in lines if (row := parse_row(line))]

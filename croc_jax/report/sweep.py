"""Sections about a sweep: scores against the value of a setting, beside the paper's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from croc_jax.report.evaluations import MAIN_SCORES, Entry, Group
from croc_jax.report.figures import SMALL
from croc_jax.report.html import Picture, Section, Table
from croc_jax.report.paper import PAPER, PAPER_DATASETS, TABLES, PaperTable
from croc_jax.report.style import BLUE, GREEN, MUTED, ORANGE, figure_style
from croc_jax.training.config import Recipe
from croc_jax.training.metrics_log import FILE_NAME, read_rows
from croc_jax.training.sweep import Axis, format_value, read_progress
from croc_jax.training.watchdog import describe_findings

LINE_COLORS = (BLUE, ORANGE, GREEN)
# {workdir: {swept field: value}}
Settings = Mapping[Path, Mapping[str, Any]]
Point = tuple[float, float | None]


class RunState(NamedTuple):
    """What has become of a run.

    Attributes:
        name: of it.
        state: in words.
        epoch: of its last logged step; None if there is none.
        loss: likewise; None also if it is not finite.
        warnings: a sentence each.
    """

    name: str
    state: str
    epoch: float | None
    loss: float | None
    warnings: tuple[str, ...]


class Line(NamedTuple):
    """Runs that differ in one axis alone.

    Attributes:
        label: the other swept settings, where there are other lines; empty otherwise.
        workdirs: by the text of the value.
    """

    label: str
    workdirs: dict[str, Path]


class Curve(NamedTuple):
    """The scores of one line by one protocol on one set of images.

    Attributes:
        label: of the line.
        points: score and deviation over seeds, by the text of the value.
    """

    label: str
    points: dict[str, Point]


def read_run(name: str, workdir: Path, recipe: Recipe, *, note: str = "") -> RunState:
    """Returns what has become of a run, from its files.

    Args:
        name: of it.
        workdir: which may be missing.
        recipe: of the run.
        note: what else is known, such as that it has failed.
    """
    words = {"new": "not started", "started": "unfinished", "finished": "finished"}
    state, rows = words[read_progress(workdir, recipe).state], read_rows(workdir / FILE_NAME)
    warnings = tuple(describe_findings(rows, recipe))
    last = rows[-1] if rows else {}
    return RunState(name, f"{state} ({note})" if note else state, last.get("epoch"), last.get("loss"), warnings)


def overview_section(runs: Sequence[RunState]) -> Section:
    """Returns a table of all runs of a sweep, whatever has become of them.

    Args:
        runs: in order.
    """
    rows = [
        [
            run.name,
            run.state,
            "" if run.epoch is None else f"{run.epoch:.1f}",
            "" if run.loss is None else f"{run.loss:.3f}",
            " ".join(run.warnings),
        ]
        for run in runs
    ]
    finished = sum(run.state.startswith("finished") for run in runs)
    text = f"{finished} of {len(runs)} are finished. Epoch and loss are those of the last logged step."
    return Section("All runs", text, [Table(["run", "state", "epoch", "loss", "warnings"], rows)])


def sweep_sections(
    groups: Sequence[Group], names: Sequence[str], axes: Sequence[Axis], runs: Settings
) -> list[Section]:
    """Returns a section for each axis along which some scores can be compared.

    Args:
        groups: of evaluations.
        names: of the groups, in the same order.
        axes: that the sweep varies.
        runs: the swept settings of each workdir.
    """
    sections = []
    for axis in axes:
        lines = find_lines(axis, runs)
        curves = [[Curve(line.label, _points(group, line)) for line in lines] for group in groups]
        shown = [
            (name, group, [curve for curve in of if curve.points])
            for name, group, of in zip(names, groups, curves, strict=True)
            if any(len(curve.points) > 1 for curve in of)
        ]
        if shown:
            sections.append(_section(axis, shown))
    return sections


def find_lines(axis: Axis, runs: Settings) -> list[Line]:
    """Returns the runs in lines along an axis, of two runs or more each.

    Args:
        axis: of the sweep.
        runs: the swept settings of each workdir.
    """
    found: dict[tuple[tuple[str, Any], ...], dict[str, Path]] = {}
    for workdir, settings in runs.items():
        others = tuple((field, value) for field, value in settings.items() if field not in axis.fields)
        found.setdefault(others, {})[format_value(settings[axis.fields[0]])] = workdir
    kept = {others: workdirs for others, workdirs in found.items() if len(workdirs) > 1}
    differing = {
        field for others in kept for field, value in others if any(dict(rival)[field] != value for rival in kept)
    }
    order = [format_value(value) for value in axis.values]
    return [
        Line(
            ", ".join(f"{field} {format_value(value)}" for field, value in others if field in differing),
            {value: workdirs[value] for value in order if value in workdirs},
        )
        for others, workdirs in kept.items()
    ]


def _points(group: Group, line: Line) -> dict[str, Point]:
    points = {}
    for value, workdir in line.workdirs.items():
        entry = next((entry for entry in group.entries if _is_of(entry, workdir)), None)
        if entry is not None:
            points[value] = (entry.score, entry.deviation)
    return points


def _is_of(entry: Entry, workdir: Path) -> bool:
    return any(one.folder.resolve().is_relative_to(workdir.resolve()) for one in entry.evaluations)


def _section(axis: Axis, shown: Sequence[tuple[str, Group, list[Curve]]]) -> Section:
    values = [format_value(value) for value in axis.values]
    published = [_paper_scores(axis, group) for _, group, _ in shown]
    rows, own = [], []
    labels = list(dict.fromkeys(curve.label for _, _, curves in shown for curve in curves))
    for value in values:
        for label in labels:
            cells = [
                next((curve.points[value] for curve in curves if curve.label == label and value in curve.points), None)
                for _, _, curves in shown
            ]
            if any(cells):
                own.append(len(rows))
                rows.append([f"{value} ({label})" if label else value, *map(_cell, cells)])
        if any(value in paper for paper in published):
            rows.append([f"{value} in the paper", *(f"{of[value]:.1f}" if value in of else "" for of in published)])
    table = Table(
        [axis.fields[0], *(f"{name}, {MAIN_SCORES[group.protocol][1]} (%)" for name, group, _ in shown)],
        rows,
        own=own,
        caption=f"The paper's rows are of {PAPER}." if any(published) else "",
    )
    pictures = [
        Picture(plot_sweep(values, curves, paper, setting=axis.fields[0], title=name))
        for (name, _, curves), paper in zip(shown, published, strict=True)
    ]
    return Section(f"What {axis.fields[0]} does", TEXT, [table, *pictures])


def _cell(point: Point | None) -> str:
    if point is None:
        return ""
    score, deviation = point
    return f"{score:.1f}" if deviation is None else f"{score:.1f} ± {deviation:.1f}"


def _paper_scores(axis: Axis, group: Group) -> dict[str, float]:
    """Returns the paper's scores by the text of the value; empty if it has none of this kind."""
    table: PaperTable | None = next((table for table in TABLES if table.setting in axis.fields), None)
    dataset = PAPER_DATASETS.get(group.dataset.get("kind", ""), "")
    if table is None or (group.protocol, dataset) not in zip(table.protocols, table.datasets, strict=True):
        return {}
    column = list(zip(table.protocols, table.datasets, strict=True)).index((group.protocol, dataset))
    return {row.label: row.scores[column] for row in table.rows}


def plot_sweep(
    values: Sequence[str], curves: Sequence[Curve], paper: Mapping[str, float], *, setting: str, title: str
) -> Figure:
    """Returns scores against the values of a setting, evenly spaced in their order.

    Args:
        values: texts of all values.
        curves: one or more.
        paper: the paper's scores, which may be empty.
        setting: that is varied.
        title: of the figure.
    """
    with figure_style():
        figure = Figure(figsize=SMALL, layout="constrained")
        axes = figure.subplots()
        for number, curve in enumerate(curves):
            places = [values.index(value) for value in curve.points]
            scores = [score for score, _ in curve.points.values()]
            spread = [deviation or 0.0 for _, deviation in curve.points.values()]
            color, label = LINE_COLORS[number % len(LINE_COLORS)], curve.label or "ours"
            axes.errorbar(places, scores, yerr=spread, color=color, marker="o", markersize=5, capsize=3, label=label)
        if known := [value for value in values if value in paper]:
            places, scores = [values.index(value) for value in known], [paper[value] for value in known]
            axes.plot(places, scores, color=MUTED, linestyle="--", marker="s", markersize=4, label="the paper")
        axes.set(title=title, xlabel=setting, ylabel="score (%)", xticks=range(len(values)), xticklabels=values)
        axes.margins(x=0.08, y=0.15)
        if known or len(curves) > 1:
            axes.legend()
        return figure


TEXT = (
    "All runs of a line differ in this setting alone. The values are evenly spaced, whatever lies between them; bars "
    "show the deviation over the seeds of the evaluation, not of the training, which is run once."
)

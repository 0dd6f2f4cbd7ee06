"""Figures and the page of an experiment: scores with deviations, and curves over training with bands."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from croc_jax.report import html
from croc_jax.report.experiment import (
    Content,
    column_title,
    describe_scores,
    make_curves,
    make_tables,
    summarize_row,
)
from croc_jax.report.figures import SMALL
from croc_jax.report.style import BLUE, GREEN, INK, MUTED, ORANGE, figure_style

_COLORS = (MUTED, ORANGE, BLUE, GREEN, INK)


def plot_scores(content: Content, protocol: str) -> Figure | None:
    """Returns a panel for each data set that a protocol scores, with a dot for each row and its deviation.

    Args:
        content: content of an experiment.json.
        protocol: name of the protocol, as in the columns.
    """
    columns = [column for column in content["columns"] if column["name"] == protocol]
    rows = [row for row in content["rows"] if any(summarize_row(content, row["name"], one) for one in columns)]
    if not rows:
        return None
    with figure_style():
        figure = Figure(figsize=(2.4 + 2.2 * len(columns), 0.26 * len(rows) + 1.1), layout="constrained")
        places = np.arange(len(rows))[::-1]
        panels = figure.subplots(1, len(columns), squeeze=False)[0]
        for number, (axes, column) in enumerate(zip(panels, columns, strict=True)):
            for place, row in zip(places, rows, strict=True):
                if found := summarize_row(content, row["name"], column):
                    style = {"color": BLUE, "marker": "o", "markersize": 5, "capsize": 3}
                    axes.errorbar(found.mean, place, xerr=found.deviation, **style)
            labels = [row["label"] for row in rows] if number == 0 else [""] * len(rows)
            axes.set(title=column_title(column), yticks=places, yticklabels=labels, xlabel=f"{column['label']} (%)")
            axes.margins(x=0.12)
            axes.set_ylim(-0.6, len(rows) - 0.4)
        return figure


def plot_curves(content: Content) -> Figure | None:
    """Returns the score of rows over training, the mean with a band of one deviation over seeds; None without any."""
    curves = make_curves(content)
    if not curves:
        return None
    with figure_style():
        figure = Figure(figsize=SMALL, layout="constrained")
        axes = figure.subplots()
        for (label, (epochs, mean, deviation)), color in zip(curves.items(), _COLORS * len(curves), strict=False):
            low, high = np.array(mean) - deviation, np.array(mean) + deviation
            axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
            axes.plot(epochs, mean, color=color, linewidth=1.9, marker="o", markersize=3, label=label)
        axes.set(title=content["curve"], xlabel="epoch", ylabel="%")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.legend(loc="best")
        return figure


def make_figures(content: Content) -> dict[str, Figure]:
    """Returns the figures of an experiment that there are scores for, by a name for their files."""
    names = dict.fromkeys(column["name"] for column in content["columns"])
    figures = {f"scores-{name}": plot_scores(content, name) for name in names} | {"curves": plot_curves(content)}
    return {name: figure for name, figure in figures.items() if figure is not None}


def write_experiment_page(content: Content, file: Path) -> None:
    """Writes tables and figures as one page, whole or not at all."""
    tables = [html.table(header, rows, caption=title) for title, header, rows in make_tables(content) if rows]
    figures = [html.picture(figure, name) for name, figure in make_figures(content).items()]
    sections = [html.section("Scores", describe_scores(content), tables), html.section("Figures", "", figures)]
    html.write_page(
        file,
        title=f"Experiment: {content['name']}",
        lead="Rows that differ in few settings, trained on the same images and scored on labels that training never "
        "sees.",
        facts=_facts(content),
        sections=sections,
        settings=content["settings"],
    )


def _facts(content: Content) -> list[tuple[str, str]]:
    runs: list[Mapping] = content["runs"]
    hours = sum(run["seconds"] for run in runs) / 3600
    return [(str(len(runs)), "runs with scores"), (f"{hours:.1f}", "hours of training, all runs together")]

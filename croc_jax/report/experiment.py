"""Tables of an experiment: the mean score of each row over its seeds, with their deviation, from experiment.json."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MISSING = "–"
Content = Mapping[str, Any]


class Summary(NamedTuple):
    """Scores of one row by one protocol: mean and sample deviation over seeds (None for one), and their number."""

    mean: float
    deviation: float | None
    count: int

    def __str__(self) -> str:
        """Returns the mean, with the deviation if there is one."""
        return f"{self.mean:.1f}" if self.deviation is None else f"{self.mean:.1f} ± {self.deviation:.1f}"


class Table(NamedTuple):
    """A table as text; the first column names the rows."""

    title: str
    header: list[str]
    rows: list[list[str]]


def read_content(file: Path) -> dict[str, Any]:
    """Returns the content of an experiment.json; ValueError if it holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        make_tables(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} was not written by launch/experiment.py ({error}): remove or restore it") from error
    return content


def summarize(scores: Sequence[float]) -> Summary | None:
    """Returns mean and deviation of scores; None if there are none.

    Examples:
        >>> str(summarize([20.0, 22.0])), str(summarize([20.0])), summarize([])
        ('21.0 ± 1.4', '20.0', None)
    """
    if not len(scores):
        return None
    deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    return Summary(float(np.mean(scores)), deviation, len(scores))


def summarize_row(content: Content, row: str, column: Mapping[str, str]) -> Summary | None:
    """Returns the scores of one row by one of the columns, over the seeds that have one; None if no seed has."""
    runs = (run for run in content["runs"] if run["row"] == row)
    found = (run["scores"].get(column["data"], {}).get(column["name"]) for run in runs)
    return summarize([one["score"] for one in found if one is not None])


def column_title(column: Mapping[str, str]) -> str:
    """Returns the heading of a column: a data set and a protocol, once where they have the same name."""
    data, protocol = column["data"], column["name"].replace("_", " ")
    return data if data == protocol else f"{data}, {protocol}"


def make_tables(content: Content) -> list[Table]:
    """Returns the tables of an experiment, a column for each data set and protocol; rows without a score are left out.

    A column of seeds says how many a row has, where that differs.
    """
    columns, labels = content["columns"], {row["name"]: row["label"] for row in content["rows"]}
    tables = []
    for table in content["tables"]:
        rows = []
        for name in table["rows"]:
            cells = [summarize_row(content, name, column) for column in columns]
            if any(cells):
                count = max(cell.count for cell in cells if cell)
                rows.append([labels[name], *(str(cell or MISSING) for cell in cells), str(count)])
        tables.append(Table(table["title"], ["", *map(column_title, columns), "seeds"], rows))
    return tables


def describe_scores(content: Content) -> str:
    """Returns what the columns are, in a sentence for readers of the tables."""
    labels = {column["name"].replace("_", " "): column["label"] for column in content["columns"]}
    half = {"reporting": "the second half", "tuning": "the first half", "all": "all"}[content["part"]]
    listed = ", ".join(f"{name}: {label}" for name, label in labels.items())
    return f"In percent ({listed}), on {half} of the validation images; mean and sample deviation over the seeds."


def render_markdown(content: Content) -> Iterator[str]:
    """Yields the lines of all tables that have rows, in Markdown."""
    for title, header, rows in make_tables(content):
        if rows:
            yield from (f"**{title}**", "")
            yield from (f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))
            yield ""
    yield from (describe_scores(content), "")


def make_curves(content: Content) -> dict[str, tuple[list[float], list[float], list[float]]]:
    """Returns {label: (epochs, mean score, deviation)} of the rows with scores during training.

    Of a row's seeds, the epochs that all have are taken; one seed has the deviation 0.
    """
    curves = {}
    for row in content["rows"]:
        found = [dict(run["curve"]) for run in content["runs"] if run["row"] == row["name"] and run["curve"]]
        if epochs := sorted(set.intersection(*map(set, found))) if found else []:
            scores = np.array([[one[epoch] for epoch in epochs] for one in found])
            deviation = np.std(scores, axis=0, ddof=1) if len(found) > 1 else np.zeros(len(epochs))
            curves[row["label"]] = epochs, scores.mean(axis=0).tolist(), deviation.tolist()
    return curves

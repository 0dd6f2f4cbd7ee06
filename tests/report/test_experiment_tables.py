"""Tables and figures of an experiment, from its JSON; README and site state what the published JSON holds."""

import json
import re
import statistics
from pathlib import Path

import pytest

from croc_jax.report.experiment import (
    column_title,
    make_curves,
    make_tables,
    read_content,
    render_markdown,
    summarize,
    summarize_row,
)
from croc_jax.report.experiment_page import make_figures, write_experiment_page
from tests.report.tiny_results import COLUMNS, experiment_content

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "docs" / "learning"


@pytest.fixture
def content():
    return experiment_content()


def test_a_cell_is_the_mean_with_the_deviation_of_the_sample(content):
    found = summarize_row(content, "croc", COLUMNS[0])
    scores = [30.0, 33.0, 31.5]
    assert found is not None and found.mean == statistics.mean(scores)
    assert found.deviation == pytest.approx(statistics.stdev(scores)) and str(found) == "31.5 ± 1.5"
    assert str(summarize_row(content, "random", COLUMNS[0])) == "20.0" and summarize([]) is None
    assert str(summarize_row(content, "croc", COLUMNS[1])) == "50.0"


def test_rows_without_a_score_are_left_out_and_other_gaps_are_shown(content):
    method, nothing = make_tables(content)
    assert method.header == ["", "streets, linear", "films, davis", "seeds"] and nothing.rows == []
    assert method.rows == [["random weights", "20.0", "–", "1"], ["CrOC", "31.5 ± 1.5", "50.0", "3"]]
    text = "\n".join(render_markdown(content))
    assert "| CrOC | 31.5 ± 1.5 | 50.0 | 3 |" in text and "Nothing" not in text and "the second half" in text


def test_a_curve_has_the_epochs_of_all_seeds(content):
    epochs, mean, deviation = make_curves(content)["CrOC"]
    assert epochs == [1] and mean == [25.0] and deviation == [pytest.approx(1.0)]
    content["runs"] = content["runs"][:2]
    assert make_curves(content) == {"CrOC": ([1, 2], [24.0, 30.0], [0.0, 0.0])}


def test_the_content_survives_its_file_and_others_are_refused(content, tmp_path):
    (tmp_path / "small.json").write_text(json.dumps(content))
    assert read_content(tmp_path / "small.json") == content
    for wrong in ("{", "{}", "[]"):
        (tmp_path / "wrong.json").write_text(wrong)
        with pytest.raises(ValueError, match="wrong.json was not written by launch/experiment.py"):
            read_content(tmp_path / "wrong.json")


def test_figures_show_every_row_with_a_score_and_its_deviation(content, tmp_path):
    figures = make_figures(content)
    assert [*figures] == ["scores-linear", "scores-davis", "curves"]
    (axes,) = figures["scores-linear"].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["random weights", "CrOC"]
    dots = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "o"]
    assert dots == [20.04, 31.5]
    # One seed has no deviation.
    (bar,) = [container for container in axes.containers if container.has_xerr]
    ends = bar[2][0].get_segments()[0][:, 0]
    assert ends.tolist() == [pytest.approx(30.0), pytest.approx(33.0)]
    write_experiment_page(content, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "31.5 ± 1.5" in page and page.count("<svg") == 3


def readme_table():
    """The first table below "It learns" in README.md: its header and its rows, without emphasis."""
    section = (ROOT / "README.md").read_text().partition("It learns")[2]
    lines = re.search(r"(?:^\|.*\|\n)+", section, re.MULTILINE)
    cells = [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines[0].splitlines()]
    return cells[0], cells[2:]


@pytest.mark.skipif(not (PUBLISHED / "small.json").is_file(), reason="no results are published yet")
def test_the_readme_states_what_the_published_results_hold():
    content, (header, rows) = read_content(PUBLISHED / "small.json"), readme_table()
    # A data set alone stands for its linear score.
    columns = {column["data"]: column for column in content["columns"] if column["name"] == "linear"}
    columns |= {column_title(column): column for column in content["columns"]}
    names = {row["label"]: row["name"] for row in content["rows"]}
    assert rows and {*header[1:]} <= columns.keys() and {row[0] for row in rows} <= names.keys()
    for label, *cells in rows:
        expected = [str(summarize_row(content, names[label], columns[title])) for title in header[1:]]
        assert cells == expected, label

"""What a page says about a sweep."""

import math

import pytest

from croc_jax.report import build_comparison
from croc_jax.report.comparison import group_titles
from croc_jax.report.evaluations import group_evaluations, read_evaluations
from croc_jax.report.html import Picture, Table
from croc_jax.report.paper import PROTOCOL_SETTINGS
from croc_jax.report.sweep import Curve, find_lines, plot_sweep, sweep_sections
from croc_jax.training.sweep import Axis
from tests.report.tiny_results import write_linear

LAMBDA, TOKENS = "clustering.lambda_pos", "objective.tokens"
AXES = [Axis((LAMBDA,), (0.0, 3.0, math.inf)), Axis((TOKENS,), ("keys", "values"))]
SCORES = {(0.0, "keys"): 50.0, (3.0, "keys"): 56.0, (math.inf, "keys"): 55.0, (3.0, "values"): 54.0}


@pytest.fixture
def runs(tmp_path):
    """A sweep of four runs along two axes, scored on two sets of images, with two seeds of one of them."""
    found = {}
    for (weight, tokens), miou in SCORES.items():
        workdir = tmp_path / f"{weight:g}-{tokens}"
        found[workdir] = {LAMBDA: weight, TOKENS: tokens}
        for kind, seed, shift in (("voc", 0, 0.0), ("folder", 0, -20.0), ("folder", 1, -22.0)):
            write_linear(
                workdir / "eval" / f"{kind}{seed}",
                miou=miou + shift,
                seed=seed,
                checkpoint=str(workdir),
                step=9,
                dataset={"kind": kind, "name": kind},
                settings=PROTOCOL_SETTINGS["linear"],
                sky=miou,
            )
    return found


def test_a_line_holds_runs_that_differ_in_one_axis(tmp_path):
    places = [tmp_path / str(index) for index in range(4)]
    square = {
        place: {LAMBDA: weight, TOKENS: tokens}
        for place, (weight, tokens) in zip(
            places, [(3.0, "keys"), (0.0, "keys"), (3.0, "values"), (0.0, "values")], strict=True
        )
    }
    one, two = find_lines(AXES[0], square)
    assert one == (f"{TOKENS} keys", {"0": places[1], "3": places[0]}) and two.label == f"{TOKENS} values"
    # Without the fourth, one line is left, and a run that belongs to none.
    (line,) = find_lines(AXES[0], {place: square[place] for place in places[:3]})
    assert line == ("", {"0": places[1], "3": places[0]})


def test_scores_stand_beside_the_paper_s(runs):
    groups = group_evaluations(read_evaluations(list(runs)))
    weight, tokens = sweep_sections(groups, group_titles(groups), AXES, runs)
    assert [weight.title, tokens.title] == [f"What {LAMBDA} does", f"What {TOKENS} does"]
    table, *pictures = weight.blocks
    assert isinstance(table, Table) and all(isinstance(picture, Picture) for picture in pictures)
    assert len(pictures) == 2
    names = ["Linear segmentation: folder, val, mIoU (%)", "Linear segmentation: PVOC12, val, mIoU (%)"]
    assert table.header == [LAMBDA, *names]
    assert table.rows == [
        ["0", "29.0 ± 1.4", "50.0"],
        ["0 in the paper", "", "52.2"],
        ["3", "35.0 ± 1.4", "56.0"],
        ["3 in the paper", "", "56.5"],
        ["inf", "34.0 ± 1.4", "55.0"],
        ["inf in the paper", "", "55.9"],
    ]
    assert table.own == [0, 2, 4] and table.caption
    assert [row[2] for row in tokens.blocks[0].rows] == ["56.0", "56.5", "54.0", "55.2"]


def test_a_curve_has_a_place_for_each_value():
    curve = Curve("", {"0": (50.0, None), "inf": (55.0, 0.5)})
    (axes,) = plot_sweep(["0", "3", "inf"], [curve], {"3": 56.5, "4": 1.0}, setting=LAMBDA, title="PVOC12").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "3", "inf"]
    drawn = {line.get_linestyle(): line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() != "None"}
    assert drawn == {"-": [[0, 50], [2, 55]], "--": [[1, 56.5]]}
    (bars,) = axes.containers
    assert [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()] == [[50, 50], [54.5, 55.5]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["the paper", "ours"]


def test_the_page_begins_with_the_sweep(runs, tmp_path):
    page = build_comparison(list(runs), tmp_path / "page.html", axes=AXES, swept=runs).read_text(encoding="utf-8")
    assert page.index(f"What {LAMBDA} does") < page.index("Everything that moves these scores")
    assert "What objective.tokens does" not in build_comparison(list(runs), tmp_path / "plain.html").read_text()


def test_one_run_alone_shows_no_axis(runs):
    (first,) = list(runs)[:1]
    groups = group_evaluations(read_evaluations([first]))
    assert sweep_sections(groups, group_titles(groups), AXES, {first: runs[first]}) == []

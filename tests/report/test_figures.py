"""Every figure shows the numbers that it was given."""

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.patches import Rectangle

from croc_jax.report.figures import (
    VIEW_COLORS,
    plot_class_scores,
    plot_clusters,
    plot_entropies,
    plot_losses,
    plot_merging,
    plot_num_clusters,
)
from croc_jax.report.overlay import enlarge, overlay
from croc_jax.report.style import BLUE, ORANGE

GRID = (2, 3)
HEADS, ROUNDS = 2, 4
KEYS = ("loss", "loss_dense", "loss_global", "teacher_entropy", "teacher_entropy_c", "num_clusters")


def make_rows(count=75, **constant):
    rng = np.random.default_rng(0)
    return [
        {"step": 10 * index + 1, **dict(zip(KEYS, rng.uniform(1, 5, len(KEYS)).tolist(), strict=True)), **constant}
        for index in range(count)
    ]


def column(rows, key):
    return [row[key] for row in rows]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def assert_curve(lines, rows, key):
    """A pale line of the values, and over it their running mean, which does not see beyond its ends."""
    noisy, smooth = lines
    values = np.array(column(rows, key))
    for line in lines:
        np.testing.assert_array_equal(line.get_xdata(), column(rows, "step"))
    np.testing.assert_array_equal(noisy.get_ydata(), values)
    reach = len(rows) // 25 // 2
    means = [values[max(0, index - reach) : index + reach + 1].mean() for index in range(len(rows))]
    np.testing.assert_allclose(smooth.get_ydata(), means)
    assert noisy.get_alpha() < 0.5 and noisy.get_color() == smooth.get_color()


@pytest.mark.parametrize("count", [1, 75, 130])
def test_losses(count):
    rows = make_rows(count)
    (axes,) = plot_losses(rows).axes
    assert len(axes.lines) == 6 and axes.get_ylim()[0] == 0
    for index, key in enumerate(("loss", "loss_dense", "loss_global")):
        assert_curve(axes.lines[2 * index : 2 * index + 2], rows, key)
    assert legend(axes) == ["total", "clusters", "whole image"]


def test_curves_that_a_run_lacks_are_not_drawn():
    rows = make_rows(loss_dense=0.0, teacher_entropy_c=0.0)
    (axes,) = plot_losses(rows).axes
    assert legend(axes) == ["total", "whole image"]
    assert_curve(axes.lines[2:], rows, "loss_global")
    (axes,) = plot_entropies(rows, num_prototypes=(64, 16)).axes
    assert len(axes.lines) == 3 and legend(axes) == ["whole image"]


def test_entropies_lie_below_those_of_uniform_answers():
    rows = make_rows()
    (axes,) = plot_entropies(rows, num_prototypes=(64, 16)).axes
    assert_curve(axes.lines[:2], rows, "teacher_entropy")
    assert_curve(axes.lines[3:5], rows, "teacher_entropy_c")
    limits = np.array([axes.lines[index].get_ydata() for index in (2, 5)])
    np.testing.assert_allclose(limits, np.log([[64, 64], [16, 16]]))
    assert legend(axes) == ["whole image", "clusters"] and axes.get_ylim()[0] == 0
    for curve, limit in ((1, 2), (4, 5)):
        assert axes.lines[curve].get_color() == axes.lines[limit].get_color()


def test_number_of_clusters():
    rows = make_rows()
    (axes,) = plot_num_clusters(rows, k_start=7).axes
    assert_curve(axes.lines[:2], rows, "num_clusters")
    np.testing.assert_array_equal(axes.lines[2].get_ydata(), [7, 7])
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 7


def test_scores_leave_absent_classes_out_but_not_those_at_zero():
    before = {"sky": 20.0, "cat": None, "dog": 0.0, "sea": 7.0, "fox": 1.0}
    after = {"sky": 61.26, "cat": None, "dog": 12.5, "sea": None}
    scores = {"random": before, "trained": after}
    figure = plot_class_scores(scores, {"random": 10.0, "trained": 36.9}, title="IoU (%)")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mean", "sky", "dog", "sea", "fox"]
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert widths == [[10.0, 20.0, 0.0, 7.0, 1.0], [36.9, 61.26, 12.5, 0.0, 0.0]]
    assert [text.get_text() for text in axes.texts][:3] == ["10.0", "20.0", "0.0"]
    # From top to bottom, each name beside its two bars.
    places = axes.get_yticks()
    assert (np.diff(places) < 0).all()
    for first, second, place in zip(*axes.containers, places, strict=True):
        middle = [bar.get_y() + bar.get_height() / 2 for bar in (first, second)]
        assert middle[0] > middle[1] and np.mean(middle) == pytest.approx(place)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["random", "trained"]


@pytest.mark.parametrize("count", [1, 3, 4])
def test_bars_of_several_weights_do_not_touch(count):
    scores = {f"weights {index}": {"sky": 10.0 + index, "sea": 5.0} for index in range(count)}
    (axes,) = plot_class_scores(scores, dict.fromkeys(scores, 7.0), title="IoU (%)").axes
    bars = sorted((bar.get_y(), bar.get_y() + bar.get_height()) for bars in axes.containers for bar in bars)
    assert len(bars) == 3 * count
    assert all(top <= bottom for (_, top), (bottom, _) in zip(bars, bars[1:], strict=False))
    assert len({bars[0].get_facecolor() for bars in axes.containers}) == count


@pytest.fixture
def views():
    return np.random.default_rng(1).integers(0, 256, (2, 12, 18, 3), dtype=np.uint8)


@pytest.fixture
def labels():
    return np.random.default_rng(2).integers(0, 4, (2, HEADS, 6))


VALID = np.array([[True, False, True, True], [False, False, True, False]])


def grid_cells(figure):
    """Returns the axes of a figure by the row and column in which they start."""
    places = [(axes, axes.get_subplotspec()) for axes in figure.axes]
    return {(spec.rowspan.start, spec.colspan.start): axes for axes, spec in places}


def shown(axes):
    (image,) = axes.images
    return np.asarray(image.get_array())


def frame(axes):
    """Returns the color of the frame around a picture, or None."""
    spines = list(axes.spines.values())
    assert len({spine.get_visible() for spine in spines}) == 1
    return matplotlib.colors.to_hex(spines[0].get_edgecolor()) if spines[0].get_visible() else None


def test_clusters_of_both_views_head_by_head(views, labels):
    figure = plot_clusters(views, labels, VALID, GRID)
    assert len(figure.axes) == 2 * (HEADS + 1)
    cells = grid_cells(figure)
    for view in range(2):
        np.testing.assert_array_equal(shown(cells[view, 0]), enlarge(views[view]))
        assert cells[view, 0].get_title() == f"view {view + 1}" and frame(cells[view, 0]) == VIEW_COLORS[view]
        for head in range(HEADS):
            expected = overlay(views[view], labels[view, head], GRID, valid=VALID[head])
            np.testing.assert_array_equal(shown(cells[view, 1 + head]), expected)
            assert frame(cells[view, 1 + head]) is None
    assert [cells[0, 1 + head].get_title() for head in range(HEADS)] == ["head 1: 3 shared", "head 2: 1 shared"]


def test_boxes_are_drawn_where_the_crops_come_from(views, labels):
    # So large an image is shrunk for the page; boxes stay in its own pixels.
    image = np.random.default_rng(3).integers(0, 256, (900, 1280, 3), dtype=np.uint8)
    boxes = np.array([[10, 20, 300, 450, 0], [400, 0, 500, 1280, 1]], np.float32)
    figure = plot_clusters(views, labels, VALID, GRID, scene=(image, boxes))
    assert len(figure.axes) == 2 * (HEADS + 1) + 1
    cells = grid_cells(figure)
    axes = cells[0, 0]
    assert shown(axes).shape == (450, 640, 3) and axes.images[0].get_extent() == [-0.5, 1279.5, 899.5, -0.5]
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [(*box.get_xy(), box.get_width(), box.get_height()) for box in frames] == [
        (20, 10, 450, 300),
        (0, 400, 1280, 500),
    ]
    assert [matplotlib.colors.to_hex(box.get_edgecolor()) for box in frames] == list(VIEW_COLORS)
    assert [text.get_text() for text in axes.texts] == ["1", "2 (mirrored)"]
    np.testing.assert_array_equal(shown(cells[1, 1]), enlarge(views[1]))


@pytest.fixture
def merging():
    rng = np.random.default_rng(4)
    rounds = [rng.integers(0, k, (2, HEADS, 6)) for k in range(ROUNDS + 1, 1, -1)]
    return np.stack(rounds)


COSTS = np.array([[0.5, 0.3, 0.2, 0.4], [0.9, 0.8, 0.85, 0.95]])
CHOSEN = np.array([3, 4])
ROUND_KS = [5, 4, 3, 2]


def test_every_round_has_a_column_and_the_chosen_one_a_frame(views, merging):
    figure = plot_merging(views, merging, COSTS, CHOSEN, GRID)
    cells = grid_cells(figure)
    assert sum(len(axes.images) for axes in figure.axes) == ROUNDS * 2 * HEADS == len(cells) - 1
    for head, color in enumerate((BLUE, ORANGE)):
        for view in range(2):
            for index, k in enumerate(ROUND_KS):
                axes = cells[2 * head + view, index]
                np.testing.assert_array_equal(shown(axes), overlay(views[view], merging[index, view, head], GRID))
                assert frame(axes) == (color if k == CHOSEN[head] else None)
            label = cells[2 * head + view, 0].yaxis.label
            assert label.get_text() == f"head {head + 1}\nview {view + 1}"
            assert label.get_rotation() == 0 and label.get_fontsize() > 9
    assert [cells[0, index].get_title() for index in range(ROUNDS)] == ["K = 5", "K = 4", "K = 3", "K = 2"]


def test_costs_stand_below_their_rounds_and_the_least_is_ringed(views, merging):
    figure = plot_merging(views, merging, COSTS, CHOSEN, GRID)
    axes = figure.axes[-1]
    assert axes.get_xlim() == (5.5, 1.5) and axes.get_xticks().tolist() == ROUND_KS
    for head, color in enumerate((BLUE, ORANGE)):
        curve, ring = axes.lines[2 * head : 2 * head + 2]
        np.testing.assert_array_equal(curve.get_xdata(), ROUND_KS)
        np.testing.assert_array_equal(curve.get_ydata(), COSTS[head])
        np.testing.assert_array_equal(ring.get_xydata(), [[CHOSEN[head], COSTS[head].min()]])
        assert ring.get_fillstyle() == "none" and curve.get_color() == ring.get_color() == color
    assert legend(axes) == ["head 1", "head 2"]
    # The columns of pictures stand above the ticks of their rounds.
    figure.draw_without_rendering()
    ticks = [axes.transData.transform((k, 0))[0] for k in ROUND_KS]
    columns = [cells.get_window_extent() for cells in figure.axes[: 2 * ROUNDS : 2]]
    for tick, box in zip(ticks, columns, strict=True):
        assert tick == pytest.approx((box.x0 + box.x1) / 2, abs=2)


@pytest.mark.parametrize("size", [(30, 40), (40, 30), (24, 24)])
def test_pictures_fill_their_cells_at_the_aspect_of_the_images(size, labels, merging):
    views = np.zeros((2, *size, 3), np.uint8)
    for figure in (plot_clusters(views, labels, VALID, GRID), plot_merging(views, merging, COSTS, CHOSEN, GRID)):
        figure.draw_without_rendering()
        pictures = [axes for axes in figure.axes if axes.images]
        boxes = [axes.get_window_extent() for axes in pictures]
        for box in boxes:
            assert box.height / box.width == pytest.approx(size[0] / size[1], rel=1e-3)
        # A row takes up its share of the width: nothing is lost to a cell of another shape.
        across = sum(boxes[index].width for index in range(len(boxes)) if abs(boxes[index].y0 - boxes[0].y0) < 3)
        assert across > 0.8 * figure.bbox.width


def test_nothing_is_cut_off(views, labels, merging):
    for figure in (plot_clusters(views, labels, VALID, GRID), plot_merging(views, merging, COSTS, CHOSEN, GRID)):
        figure.draw_without_rendering()
        for axes in figure.axes:
            box = axes.get_tightbbox()
            # Titles keep two pixels at least from the rim.
            assert box.y1 <= figure.bbox.y1 - 2 and box.x0 >= 0 and box.x1 <= figure.bbox.x1

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
    plot_score,
)
from croc_jax.report.overlay import enlarge, overlay
from croc_jax.report.style import BLUE, ORANGE

GRID, HEADS, KS = (2, 3), 2, [5, 4, 3, 2]
KEYS = ("loss", "loss_dense", "loss_global", "teacher_entropy", "teacher_entropy_c", "num_clusters")
RNG = np.random.default_rng(0)
VIEWS = RNG.integers(0, 256, (2, 12, 18, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 4, (2, HEADS, 6))
VALID = np.array([[True, False, True, True], [False, False, True, False]])
MERGING = np.stack([RNG.integers(0, k, (2, HEADS, 6)) for k in KS])
COSTS, CHOSEN = np.array([[0.5, 0.3, 0.2, 0.4], [0.9, 0.8, 0.85, 0.95]]), np.array([3, 4])


def make_rows(count=75, **constant):
    rng = np.random.default_rng(0)
    return [
        {"step": 10 * index + 1, **dict(zip(KEYS, rng.uniform(1, 5, len(KEYS)).tolist(), strict=True)), **constant}
        for index in range(count)
    ]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def assert_curve(lines, rows, key):
    """A pale line of the values, and over it their running mean, which does not see beyond its ends."""
    noisy, smooth = lines
    values = np.array([row[key] for row in rows])
    for line in lines:
        np.testing.assert_array_equal(line.get_xdata(), [row["step"] for row in rows])
    np.testing.assert_array_equal(noisy.get_ydata(), values)
    reach = len(rows) // 25 // 2
    means = [values[max(0, index - reach) : index + reach + 1].mean() for index in range(len(rows))]
    np.testing.assert_allclose(smooth.get_ydata(), means)
    assert noisy.get_alpha() < 0.5 and noisy.get_color() == smooth.get_color()


@pytest.mark.parametrize("count", [1, 75, 130])
def test_plot_losses(count):
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


def test_plot_entropies_and_plot_num_clusters_have_limits():
    rows = make_rows()
    (axes,) = plot_entropies(rows, num_prototypes=(64, 16)).axes
    for start, key, count in ((0, "teacher_entropy", 64), (3, "teacher_entropy_c", 16)):
        assert_curve(axes.lines[start : start + 2], rows, key)
        np.testing.assert_allclose(axes.lines[start + 2].get_ydata(), np.log([count, count]))
        assert axes.lines[start].get_color() == axes.lines[start + 2].get_color()
    assert legend(axes) == ["whole image", "clusters"] and axes.get_ylim()[0] == 0
    (axes,) = plot_num_clusters(rows, k_start=7).axes
    assert_curve(axes.lines[:2], rows, "num_clusters")
    np.testing.assert_array_equal(axes.lines[2].get_ydata(), [7, 7])
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 7


def test_plot_class_scores_leaves_absent_classes_out_but_not_those_at_zero():
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


@pytest.mark.parametrize("count", [1, 4])
def test_bars_of_several_weights_do_not_touch(count):
    scores = {f"weights {index}": {"sky": 10.0 + index, "sea": 5.0} for index in range(count)}
    (axes,) = plot_class_scores(scores, dict.fromkeys(scores, 7.0), title="IoU (%)").axes
    bars = sorted((bar.get_y(), bar.get_y() + bar.get_height()) for bars in axes.containers for bar in bars)
    assert len(bars) == 3 * count
    assert all(top <= bottom for (_, top), (bottom, _) in zip(bars, bars[1:], strict=False))
    assert len({bars[0].get_facecolor() for bars in axes.containers}) == count


def grid_cells(figure):
    """Returns the axes of a figure by the row and column in which they start."""
    places = [(axes, axes.get_subplotspec()) for axes in figure.axes]
    return {(spec.rowspan.start, spec.colspan.start): axes for axes, spec in places}


def shown(axes):
    (image,) = axes.images
    return np.asarray(image.get_array())


def frame(axes):
    """Returns the color of the frame around a picture, or None."""
    spine = axes.spines["left"]
    return matplotlib.colors.to_hex(spine.get_edgecolor()) if spine.get_visible() else None


def test_plot_clusters_of_both_views_head_by_head():
    figure = plot_clusters(VIEWS, LABELS, VALID, GRID)
    assert len(figure.axes) == 2 * (HEADS + 1)
    cells = grid_cells(figure)
    for view in range(2):
        np.testing.assert_array_equal(shown(cells[view, 0]), enlarge(VIEWS[view]))
        assert cells[view, 0].get_title() == f"view {view + 1}" and frame(cells[view, 0]) == VIEW_COLORS[view]
        for head in range(HEADS):
            expected = overlay(VIEWS[view], LABELS[view, head], GRID, valid=VALID[head])
            np.testing.assert_array_equal(shown(cells[view, 1 + head]), expected)
            assert frame(cells[view, 1 + head]) is None
    assert [cells[0, 1 + head].get_title() for head in range(HEADS)] == ["head 1: 3 shared", "head 2: 1 shared"]


def test_plot_clusters_draws_boxes_where_the_crops_come_from():
    # So large an image is shrunk for the page; boxes stay in its own pixels.
    image = RNG.integers(0, 256, (900, 1280, 3), dtype=np.uint8)
    boxes = np.array([[10, 20, 300, 450, 0], [400, 0, 500, 1280, 1]], np.float32)
    figure = plot_clusters(VIEWS, LABELS, VALID, GRID, scene=(image, boxes))
    assert len(figure.axes) == 2 * (HEADS + 1) + 1
    cells = grid_cells(figure)
    axes = cells[0, 0]
    assert shown(axes).shape == (450, 640, 3) and axes.images[0].get_extent() == [-0.5, 1279.5, 899.5, -0.5]
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    found = [(*box.get_xy(), box.get_width(), box.get_height()) for box in frames]
    assert found == [(20, 10, 450, 300), (0, 400, 1280, 500)]
    assert [matplotlib.colors.to_hex(box.get_edgecolor()) for box in frames] == list(VIEW_COLORS)
    assert [text.get_text() for text in axes.texts] == ["1", "2 (mirrored)"]
    np.testing.assert_array_equal(shown(cells[1, 1]), enlarge(VIEWS[1]))


def test_plot_merging_frames_the_chosen_round_above_the_costs():
    figure = plot_merging(VIEWS, MERGING, COSTS, CHOSEN, GRID)
    cells, axes = grid_cells(figure), figure.axes[-1]
    assert sum(len(axes.images) for axes in figure.axes) == len(KS) * 2 * HEADS == len(cells) - 1
    assert axes.get_xlim() == (5.5, 1.5) and axes.get_xticks().tolist() == KS
    for head, color in enumerate((BLUE, ORANGE)):
        for view, (index, k) in ((view, place) for view in range(2) for place in enumerate(KS)):
            cell = cells[2 * head + view, index]
            np.testing.assert_array_equal(shown(cell), overlay(VIEWS[view], MERGING[index, view, head], GRID))
            assert frame(cell) == (color if k == CHOSEN[head] else None)
            label = f"head {head + 1}\nview {view + 1}" if index == 0 else ""
            assert cell.get_ylabel() == label and cell.get_title() == (f"K = {k}" if head == view == 0 else "")
        curve, ring = axes.lines[2 * head : 2 * head + 2]
        np.testing.assert_array_equal(curve.get_xydata(), np.stack([KS, COSTS[head]], 1))
        np.testing.assert_array_equal(ring.get_xydata(), [[CHOSEN[head], COSTS[head].min()]])
        assert ring.get_fillstyle() == "none" and curve.get_color() == ring.get_color() == color
    assert legend(axes) == ["head 1", "head 2"]
    # The columns of pictures stand above the ticks of their rounds.
    figure.draw_without_rendering()
    for k, cell in zip(KS, figure.axes[: 2 * len(KS) : 2], strict=True):
        box = cell.get_window_extent()
        assert axes.transData.transform((k, 0))[0] == pytest.approx((box.x0 + box.x1) / 2, abs=2)


@pytest.mark.parametrize("size", [(30, 40), (40, 30)])
def test_pictures_fill_their_cells_at_the_aspect_of_the_images_and_nothing_is_cut_off(size):
    views = np.zeros((2, *size, 3), np.uint8)
    for figure in (plot_clusters(views, LABELS, VALID, GRID), plot_merging(views, MERGING, COSTS, CHOSEN, GRID)):
        figure.draw_without_rendering()
        boxes = [axes.get_window_extent() for axes in figure.axes if axes.images]
        for box in boxes:
            assert box.height / box.width == pytest.approx(size[0] / size[1], rel=1e-3)
        # A row takes up its share of the width: nothing is lost to a cell of another shape.
        assert sum(box.width for box in boxes if abs(box.y0 - boxes[0].y0) < 3) > 0.8 * figure.bbox.width
        for box in (axes.get_tightbbox() for axes in figure.axes):
            # Titles keep two pixels at least from the rim.
            assert box.y1 <= figure.bbox.y1 - 2 and box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_plot_score_rings_the_best():
    (axes,) = plot_score([5, 9, 12], [40.0, 61.25, 55.0], title="knn_top1").axes
    curve, ring = axes.lines
    assert curve.get_xydata().tolist() == [[5, 40], [9, 61.25], [12, 55]]
    assert ring.get_xydata().tolist() == [[9, 61.25]] and axes.get_title(loc="left") + axes.get_title() == "knn_top1"
    assert [text.get_text() for text in axes.texts] == ["61.25"]

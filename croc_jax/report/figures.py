"""Figures of a run, for the report, a notebook or a paper; each takes arrays and returns a Figure."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from PIL import Image

from croc_jax.report.overlay import enlarge, overlay
from croc_jax.report.style import BLUE, GREEN, GRID, INK, MUTED, NEUTRAL, ORANGE, PALE, figure_style

Rows = Sequence[Mapping[str, float]]
VIEW_COLORS, HEAD_COLORS = (BLUE, ORANGE), (BLUE, ORANGE, GREEN)
SERIES_COLORS = (PALE, BLUE, ORANGE, GREEN)
SMALL = (4.6, 2.9)
# Height of the costs below pictures, in inches.
_COSTS_HEIGHT = 1.45
_GLOBAL = ("whole image", ORANGE)


def plot_losses(rows: Rows) -> Figure:
    """Returns the total, dense and global loss over the steps, smoothed, with the noise behind.

    Args:
        rows: rows of metrics.jsonl.
    """
    curves = {"loss": ("total", INK), "loss_dense": ("clusters", BLUE), "loss_global": _GLOBAL}
    return _plot_curves(rows, "Loss (nats)", curves, {})


def plot_entropies(rows: Rows, *, num_prototypes: tuple[int, int]) -> Figure:
    """Returns the entropy of the teacher's answers over the steps, below the entropy of a uniform answer.

    Args:
        rows: rows of metrics.jsonl.
        num_prototypes: prototypes of the whole image's and of the clusters' head.
    """
    curves = {"teacher_entropy": _GLOBAL, "teacher_entropy_c": ("clusters", BLUE)}
    limits = dict(zip(curves, map(math.log, num_prototypes), strict=True))
    return _plot_curves(rows, "Entropy of the teacher (nats)", curves, limits)


def plot_num_clusters(rows: Rows, *, k_start: int) -> Figure:
    """Returns the mean number of clusters over the steps, below the number that merging starts from.

    Args:
        rows: rows of metrics.jsonl.
        k_start: largest number of clusters.
    """
    curves = {"num_clusters": ("mean K", GREEN)}
    return _plot_curves(rows, "Mean number of clusters K", curves, {"num_clusters": k_start})


def plot_score(steps: Sequence[float], values: Sequence[float], *, title: str) -> Figure:
    """Returns a score of the evaluations during a run over the steps; the largest is ringed.

    Args:
        steps: evaluated steps.
        values: the score of each.
        title: title of the figure.
    """
    with figure_style():
        figure = Figure(figsize=SMALL, layout="constrained")
        axes, best = figure.subplots(), int(np.argmax(values))
        axes.plot(steps, values, color=BLUE, linewidth=1.9, marker="o", markersize=3.5)
        axes.plot(steps[best], values[best], color=ORANGE, marker="o", markersize=9, fillstyle="none", mew=2)
        axes.annotate(f"{values[best]:.4g}", (steps[best], values[best]), xytext=(0, 9), textcoords="offset points",
                      ha="center", color=MUTED)  # fmt: skip
        axes.set(title=title, xlabel="step")
        axes.margins(y=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return figure


def _plot_curves(rows: Rows, title: str, curves: Mapping[str, tuple[str, str]], limits: Mapping[str, float]) -> Figure:
    """Draws a running mean over a 25th of the run, what it averages in pale, and dotted limits; leaves zeros out."""
    with figure_style():
        figure = Figure(figsize=SMALL, layout="constrained")
        axes, steps = figure.subplots(), [row["step"] for row in rows]
        window = np.ones(max(1, len(rows) // 25))
        for key, (name, color) in curves.items():
            values = [row[key] for row in rows]
            if any(values):
                mean = np.convolve(values, window, "same") / np.convolve(np.ones(len(rows)), window, "same")
                axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.25)
                axes.plot(steps, mean, color=color, linewidth=1.9, label=name)
                if key in limits:
                    axes.axhline(limits[key], color=color, linestyle=(0, (2, 3)), linewidth=1)
        top = max(limits.values(), default=0.0)
        axes.set(title=title, xlabel="step", ylim=(0, 1.08 * max(top, axes.get_ylim()[1])))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.legend(ncols=3, loc="best")
        return figure


def plot_class_scores(
    scores: Mapping[str, Mapping[str, float | None]], means: Mapping[str, float], *, title: str
) -> Figure:
    """Returns a bar for each class and each of a few weights, below the means.

    Args:
        scores: score in percent by label of the weights (at most as many as `SERIES_COLORS`), then by class; a class
            without a score anywhere is left out.
        means: mean score by label.
        title: title of the figure.
    """
    names = [
        name for name in next(iter(scores.values())) if any(values.get(name) is not None for values in scores.values())
    ]
    # The pale color is for the weights that others are compared with.
    colors = SERIES_COLORS if len(scores) > 1 else SERIES_COLORS[1:]
    with figure_style():
        step = 0.16 * len(scores) + 0.08
        figure = Figure(figsize=(5.6, step * (len(names) + 1.6) + 0.9), layout="constrained")
        axes = figure.subplots()
        places = np.array([len(names) + 0.6, *range(len(names))[::-1]])
        thickness = 0.76 / len(scores)
        for number, ((label, values), color) in enumerate(zip(scores.items(), colors, strict=False)):
            heights = [means[label], *(values.get(name) or 0.0 for name in names)]
            shift = 0.38 - thickness * (number + 0.5)
            bars = axes.barh(places + shift, heights, height=0.95 * thickness, color=color, label=label)
            axes.bar_label(bars, fmt="%.1f", padding=3, color=MUTED, fontsize=8 if len(scores) < 3 else 7)
        axes.set(title=title, yticks=places, yticklabels=["mean", *names])
        axes.get_yticklabels()[0].set(fontweight="bold", color=INK)
        axes.margins(x=0.1, y=0.01)
        axes.grid(axis="y", visible=False)
        figure.legend(ncols=2, loc="outside lower center")
        return figure


def plot_clusters(
    views: UInt8[np.ndarray, "v H W 3"],
    labels: Int[np.ndarray, "v h n"],
    valid: Bool[np.ndarray, "h k"],
    grid: tuple[int, int],
    *,
    scene: tuple[UInt8[np.ndarray, "S T 3"], Float[np.ndarray, "v 5"]] | None = None,
) -> Figure:
    """Returns an image, or both crops of one, and beside them each head's clusters drawn over them.

    A cluster has one color in both views; one that only one view shows is hatched in gray.

    Args:
        views: one image, or two crops of one.
        labels: cluster of each token.
        valid: clusters that all views show.
        grid: rows and columns of patches.
        scene: the image and the boxes of its crops, to show where they come from.
    """
    heads, tile = labels.shape[1], 1.5
    widths = [2.0] * (scene is not None) + [1.0] * (heads + 1)
    with figure_style(ink=NEUTRAL, soft=NEUTRAL):
        height = len(views) * (tile * _aspect(views) + 0.1) + 0.3
        figure = Figure(figsize=(tile * sum(widths), height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.06)  # pyright: ignore
        layout = figure.add_gridspec(len(views), len(widths), width_ratios=widths)
        first = len(widths) - heads - 1
        if scene is not None:
            _show_scene(figure.add_subplot(layout[:, 0]), *scene)
        for view in range(len(views)):
            title, frame = (f"view {view + 1}", VIEW_COLORS[view]) if len(views) > 1 else ("image", None)
            show_image(figure.add_subplot(layout[view, first]), enlarge(views[view]), title, frame)
            for head in range(heads):
                picture = overlay(views[view], labels[view, head], grid, valid=valid[head])
                name = f"head {head + 1}: " if heads > 1 else ""
                count = f"{int(valid[head].sum())} {'shared' if len(views) > 1 else 'clusters'}"
                title = f"{name}{count}" if view == 0 else ""
                show_image(figure.add_subplot(layout[view, first + 1 + head]), picture, title)
        return figure


def plot_merging(
    views: UInt8[np.ndarray, "v H W 3"],
    merging: Int[np.ndarray, "rounds v h n"],
    costs: Float[np.ndarray, "h rounds"],
    num_clusters: Int[np.ndarray, " h"],
    grid: tuple[int, int],
) -> Figure:
    """Returns some heads' clusters at every round from K_start to 2, above their transport costs.

    Like the paper's Figure 3: a row for each head and view, a column for each round. The chosen round is framed.

    Args:
        views: one image, or two crops of one.
        merging: cluster of each token in every round.
        costs: transport cost of each round.
        num_clusters: K of the chosen round.
        grid: rows and columns of patches.
    """
    heads, rounds = costs.shape
    ks = np.arange(rounds + 1, 1, -1)
    with figure_style(ink=NEUTRAL, soft=NEUTRAL):
        rows, tile = len(views) * heads, 0.92 * _aspect(views) + 0.09
        figure = Figure(figsize=(0.92 * rounds + 0.6, rows * tile + _COSTS_HEIGHT + 0.3), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.04)  # pyright: ignore
        layout = figure.add_gridspec(rows + 1, rounds, height_ratios=[*[tile] * rows, _COSTS_HEIGHT])
        for head in range(heads):
            for index, k in enumerate(ks):
                for view in range(len(views)):
                    cell = figure.add_subplot(layout[len(views) * head + view, index])
                    picture = overlay(views[view], merging[index, view, head], grid)
                    frame = HEAD_COLORS[head % 3] if k == num_clusters[head] else None
                    show_image(cell, picture, f"K = {k}" if head == view == 0 else "", frame)
                    if index == 0:
                        name = f"head {head + 1}\nview {view + 1}" if len(views) > 1 else f"head {head + 1}"
                        cell.set_ylabel(name, fontsize=9.5, rotation=0, ha="right", va="center")
        _plot_costs(figure.add_subplot(layout[-1, :]), costs, num_clusters, ks)
        return figure


def plot_costs(costs: Float[np.ndarray, "h rounds"], num_clusters: Int[np.ndarray, " h"]) -> Figure:
    """Returns the transport cost of every round of some heads; the chosen round is ringed.

    Args:
        costs: costs from K_start down to 2.
        num_clusters: K of the chosen round.
    """
    with figure_style(ink=NEUTRAL, soft=NEUTRAL):
        figure = Figure(figsize=(5.6, 2.6), layout="constrained")
        _plot_costs(figure.subplots(), costs, num_clusters, np.arange(costs.shape[1] + 1, 1, -1))
        return figure


def _plot_costs(axes: Axes, costs: np.ndarray, num_clusters: np.ndarray, ks: np.ndarray) -> None:
    for head, (cost, chosen) in enumerate(zip(costs, num_clusters, strict=True)):
        color = HEAD_COLORS[head % 3]
        axes.plot(ks, cost, color=color, linewidth=1.6, marker="o", markersize=3, label=f"head {head + 1}")
        axes.plot(chosen, cost[ks == chosen], color=color, marker="o", markersize=9, fillstyle="none", mew=2)
    # Each K is below its column of pictures.
    axes.set(xlim=(ks[0] + 0.5, ks[-1] - 0.5), xticks=ks, xlabel="number of clusters K", ylabel="cost $d_c$")
    axes.margins(y=0.2)
    axes.grid(color=NEUTRAL, alpha=0.25)
    axes.spines[:].set_color(NEUTRAL)
    # Costs are high on either side.
    axes.legend(ncols=len(costs), loc="upper center")


def _aspect(views: np.ndarray) -> float:
    """Returns height over width of pictures, within bounds."""
    return float(np.clip(views.shape[1] / views.shape[2], 0.25, 3.0))


def _show_scene(axes: Axes, image: np.ndarray, boxes: np.ndarray) -> None:
    """Shows a whole image, and where the two views come from."""
    height, width = image.shape[:2]
    small = Image.fromarray(image)
    small.thumbnail((640, 640))
    show_image(axes, np.asarray(small), "image")
    # Boxes are in pixels of the original.
    axes.images[0].set_extent((-0.5, width - 0.5, height - 0.5, -0.5))
    axes.set_anchor("N")
    for view, (top, left, rows, columns, flip) in enumerate(boxes):
        frame = Rectangle((left, top), columns, rows, fill=False, edgecolor=VIEW_COLORS[view], linewidth=2)
        frame.set_path_effects([withStroke(linewidth=3.5, foreground="white")])
        axes.add_patch(frame)
        axes.annotate(
            f"{view + 1} (mirrored)" if flip else f"{view + 1}",
            (left, top + rows if view else top),
            xytext=(5, 5 if view else -5),
            textcoords="offset points",
            # A box may end exactly where the image does, or a hair beyond.
            annotation_clip=False,
            va="bottom" if view else "top",
            color="white",
            fontsize=7,
            bbox={"boxstyle": "round,pad=0.25", "facecolor": VIEW_COLORS[view], "edgecolor": "none"},
        )


def show_image(axes: Axes, image: np.ndarray, title: str, frame: str | None = None) -> None:
    """Draws an RGB image without ticks, with a title, which may be empty, and perhaps a frame of a color."""
    axes.imshow(image, interpolation="lanczos")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set(visible=frame is not None, color=frame or GRID, linewidth=2.5)
    axes.set_title(title, fontsize=8.5, loc="center")

"""Figures of a run, for the report, a notebook or a paper; each takes arrays and returns a Figure."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from croc_jax.report.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, cluster_color, figure_style

Rows = Sequence[Mapping[str, float]]
CELL = 224


def plot_losses(rows: Rows) -> Figure:
    """Returns the total, dense and global loss over the steps.

    Args:
        rows: of metrics.jsonl.
    """
    with figure_style():
        figure = Figure(figsize=(8.2, 3.0), layout="constrained")
        axes = figure.subplots()
        steps = [row["step"] for row in rows]
        curves = (
            ("loss", "total", INK),
            ("loss_dense", "dense (clusters)", BLUE),
            ("loss_global", "global ([CLS])", ORANGE),
        )
        for key, name, color in curves:
            values = [row[key] for row in rows]
            if any(values):
                axes.plot(steps, values, color=color, linewidth=1.8, label=name)
        axes.set(xlabel="step", ylabel="cross-entropy (nats)", title="Loss")
        axes.legend(ncols=3, loc="upper right")
        return figure


def plot_training(rows: Rows) -> Figure:
    """Returns teacher entropies, the mean K, and the learning rate over the steps.

    Args:
        rows: of metrics.jsonl.
    """
    with figure_style():
        figure = Figure(figsize=(8.2, 2.5), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        steps = [row["step"] for row in rows]
        left.plot(steps, [row["teacher_entropy"] for row in rows], color=ORANGE, label="[CLS]")
        left.plot(steps, [row["teacher_entropy_c"] for row in rows], color=BLUE, label="clusters")
        left.set(title="Teacher entropy (nats)", xlabel="step")
        left.set_ylim(bottom=0)
        left.legend()
        middle.plot(steps, [row["num_clusters"] for row in rows], color=GREEN)
        middle.set(title="Mean K", xlabel="step")
        right.plot(steps, [row["lr"] for row in rows], color=PURPLE)
        right.set(title="Learning rate", xlabel="step")
        for axes in (left, middle, right):
            axes.xaxis.set_major_locator(MaxNLocator(4))
        return figure


def plot_num_clusters(num_clusters: Int[np.ndarray, "b h"], k_start: int) -> Figure:
    """Returns, for each head, how often each K was chosen.

    Args:
        num_clusters: K of each image and head.
        k_start: the largest K there could be.
    """
    with figure_style():
        figure = Figure(figsize=(8.2, 2.6), layout="constrained")
        axes = figure.subplots()
        heads, values = num_clusters.shape[1], np.arange(2, k_start + 1)
        for head in range(heads):
            share = [100 * np.mean(num_clusters[:, head] == k) for k in values]
            place = values + (head - (heads - 1) / 2) * 0.8 / heads
            axes.bar(place, share, width=0.8 / heads, color=cluster_color(head), label=f"head {head + 1}")
        axes.set(title="Clusters chosen for an image", xlabel="K", ylabel="% of images", xticks=values)
        axes.grid(axis="x", visible=False)
        axes.legend(ncols=heads, loc="upper left")
        return figure


def plot_scores(
    before: Mapping[str, float | None], after: Mapping[str, float | None], miou: tuple[float, float]
) -> Figure:
    """Returns the IoU of each class with random and with trained features, beside the means.

    Args:
        before: IoU in percent by class name; None for an absent class.
        after: alike.
        miou: means before and after.
    """
    with figure_style():
        names = ["mean", *before]
        figure = Figure(figsize=(8.2, 0.34 * len(names) + 0.9), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(names))[::-1]
        for values, mean, color, name, shift in (
            (before, miou[0], "#b6c0cc", "random weights", 0.19),
            (after, miou[1], BLUE, "after pre-training", -0.19),
        ):
            heights = [mean, *(value or 0.0 for value in values.values())]
            bars = axes.barh(places + shift, heights, height=0.36, color=color, label=name)
            axes.bar_label(bars, fmt="%.1f", padding=3, color=MUTED, fontsize=8)
        axes.set(title="Linear segmentation of frozen features: IoU (%)", yticks=places, yticklabels=names)
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower right")
        return figure


def plot_clusters(
    views: UInt8[np.ndarray, "v H W 3"],
    labels: Int[np.ndarray, "v h n"],
    valid: Bool[np.ndarray, "h k"],
    grid: tuple[int, int],
) -> Figure:
    """Returns both crops of an image, and below them each head's clusters drawn over them.

    A cluster has one color in both views; one that only one view shows is gray.

    Args:
        views: the crops.
        labels: each token's cluster.
        valid: clusters that both views show.
        grid: rows and columns of patches.
    """
    with figure_style():
        heads = labels.shape[1]
        figure = Figure(figsize=(1.55 * (heads + 1), 3.25), layout="constrained")
        cells = figure.subplots(2, heads + 1, squeeze=False)
        for view in range(2):
            _show(cells[view, 0], _enlarge(views[view]), title="crops" if view == 0 else None)
            cells[view, 0].set_ylabel(f"view {view + 1}")
            for head in range(heads):
                picture = overlay(views[view], labels[view, head], grid, valid=valid[head])
                title = f"head {head + 1}: {int(valid[head].sum())} shared" if view == 0 else None
                _show(cells[view, head + 1], picture, title=title)
        return figure


def plot_merging(
    views: UInt8[np.ndarray, "v H W 3"],
    merging: Int[np.ndarray, "rounds v n"],
    costs: Float[np.ndarray, " rounds"],
    chosen: int,
    grid: tuple[int, int],
) -> Figure:
    """Returns one head's clusters at every round from K_start to 2, above the transport cost.

    Like the paper's Figure 3; the round that is chosen is framed.

    Args:
        views: the crops.
        merging: each token's cluster in every round.
        costs: of the rounds.
        chosen: K of the chosen round.
        grid: rows and columns of patches.
    """
    rounds = len(costs)
    with figure_style():
        figure = Figure(figsize=(max(8.2, 0.86 * rounds), 3.5), layout="constrained")
        layout = figure.add_gridspec(3, rounds, height_ratios=(1, 1, 0.9))
        for index in range(rounds):
            num_clusters = rounds + 1 - index
            for view in range(2):
                cell = figure.add_subplot(layout[view, index])
                _show(
                    cell,
                    overlay(views[view], merging[index, view], grid),
                    title=f"K = {num_clusters}" if view == 0 else None,
                )
                if num_clusters == chosen:
                    _frame(cell)
        axes = figure.add_subplot(layout[2, :])
        ks = np.arange(rounds + 1, 1, -1)
        axes.plot(ks, costs, color=INK, marker="o", markersize=4)
        axes.plot(chosen, costs[rounds + 1 - chosen], marker="o", markersize=9, color=ORANGE)
        axes.set(xlim=(rounds + 1.5, 1.5), xticks=ks, xlabel="K", ylabel="cost $d_c$")
        return figure


def overlay(
    image: UInt8[np.ndarray, "H W 3"],
    labels: Int[np.ndarray, " n"],
    grid: tuple[int, int],
    *,
    valid: Bool[np.ndarray, " k"] | None = None,
    opacity: float = 0.58,
) -> UInt8[np.ndarray, "S S 3"]:
    """Returns an enlarged image with its patches tinted by cluster, and lines between clusters.

    Args:
        image: a crop.
        labels: the cluster of each patch.
        grid: rows and columns of patches.
        valid: clusters with a color of their own; the others are gray. All by default.
        opacity: of the tint.
    """
    large = _enlarge(image).astype(np.float32)
    side = np.arange(CELL)
    patches = labels.reshape(grid)[(side * grid[0] // CELL)[:, None], side * grid[1] // CELL]
    count = int(labels.max()) + 1
    colors = np.stack([255 * cluster_color(index) for index in range(count)])
    if valid is not None:
        colors[~valid[:count]] = 120.0
    tinted = (1 - opacity) * large + opacity * colors[patches]
    edges = np.zeros(patches.shape, bool)
    edges[1:] |= patches[1:] != patches[:-1]
    edges[:, 1:] |= patches[:, 1:] != patches[:, :-1]
    tinted[edges] = 255
    return tinted.round().astype(np.uint8)


def _enlarge(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((CELL, CELL), Image.Resampling.BICUBIC))


def _show(axes: Axes, image: np.ndarray, *, title: str | None) -> None:
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    if title:
        axes.set_title(title, fontsize=8.5, loc="center")


def _frame(axes: Axes) -> None:
    axes.spines[:].set(visible=True, color=ORANGE, linewidth=3)

"""The look that all figures share."""

import contextlib
from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
from jaxtyping import Float

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e3e8ee"
BLUE, ORANGE, GREEN, PURPLE = "#2f6fde", "#e8833a", "#2a9d7f", "#8a5bd1"

# Told apart by people with any color vision; light and dark alternate.
CLUSTER_COLORS = (
    "#3b82f6", "#f59e0b", "#10b981", "#ec4899", "#facc15", "#6366f1", "#f97316", "#22d3ee",
    "#a3e635", "#a855f7", "#ef4444", "#64748b", "#fde68a", "#0f766e", "#fbcfe8", "#7c2d12",
)  # fmt: skip


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """Draws without a display, on white, with quiet axes."""
    settings: Any = {
        "figure.facecolor": "white",
        "figure.dpi": 130,
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "axes.edgecolor": GRID,
        "axes.labelcolor": MUTED,
        "axes.titlecolor": INK,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings):
        yield


def cluster_color(index: int) -> Float[np.ndarray, "3"]:
    """Returns the color of a cluster's column, each part in [0, 1]."""
    return np.array(matplotlib.colors.to_rgb(CLUSTER_COLORS[index % len(CLUSTER_COLORS)]))

"""Colors and style of all figures."""

import contextlib
from collections.abc import Iterator

import matplotlib
import matplotlib.colors
import numpy as np
from jaxtyping import Float

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e3e8ee"
# For text beside photos: legible on a white page and on a dark one.
NEUTRAL = "#7f8a96"
BLUE, ORANGE, GREEN, PALE = "#2f6fde", "#e8833a", "#2a9d7f", "#a9b5c2"

# Okabe and Ito's colors, then Paul Tol's muted ones: distinct for any color vision.
# Gray is missing, because it marks clusters that are left out.
CLUSTER_COLORS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#332288",
    "#44aa99", "#882255", "#ddcc77", "#117733", "#aa4499", "#88ccee", "#cc6677", "#999933",
)  # fmt: skip


@contextlib.contextmanager
def figure_style(*, ink: str = INK, soft: str = MUTED) -> Iterator[None]:
    """Draws on white, with quiet axes; `ink` is the color of titles, `soft` that of labels and ticks."""
    settings = {
        "figure.facecolor": "white",
        "figure.dpi": 130,
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "axes.edgecolor": GRID,
        "axes.labelcolor": soft,
        "axes.titlecolor": ink,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": soft,
        "ytick.color": soft,
        "text.color": ink,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
    }
    with matplotlib.rc_context(settings):  # pyright: ignore[reportArgumentType]
        yield


def cluster_color(index: int) -> Float[np.ndarray, "3"]:
    """Returns the color of a cluster, each channel in [0, 1]."""
    return np.array(matplotlib.colors.to_rgb(CLUSTER_COLORS[index % len(CLUSTER_COLORS)]))

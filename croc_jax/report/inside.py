"""Figures of the same images along a run: clusters of each head, principal components, and the number of clusters."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from croc_jax.evaluation.components import align_components
from croc_jax.evaluation.inside import FOLDER_NAME, Inside, read_inside
from croc_jax.report.figures import SMALL
from croc_jax.report.gallery import scale_to_colors
from croc_jax.report.html import photos, picture, section
from croc_jax.report.inspect import rank_pairs
from croc_jax.report.overlay import enlarge, overlay
from croc_jax.report.style import BLUE, MUTED, NEUTRAL, ORANGE, figure_style

# Of a strip and of an animation.
NUM_STRIP_IMAGES, MOST_COLUMNS = 3, 7
NUM_ANIMATED_IMAGES, MOST_FRAMES, MOST_HEADS = 2, 13, 6
# In pixels.
_PIXELS, _GAP, _LINE = 148, 4, 24

TEXT = (
    "What the teacher makes of the same crops as training goes on. A cluster has the same color in both crops, and "
    "keeps it from one moment to the next as far as it overlaps with itself; hatched gray marks clusters that only one "
    "crop shows. Components are the first three principal components of the patch features of all these crops, as red, "
    "green and blue; each moment has its own, rotated onto those of the next."
)
STRIP_TEXT = "Clusters of head {head}, which has most of them in both crops at the end, above the components."
ANIMATION_TEXT = "Both crops of {images} images, from the first moment to the last."
COUNTS_TEXT = (
    "How often each K is chosen for these {images} images, and its mean. The crops are as large as those of the "
    "pictures, {size} pixels."
)
AGREEMENT_TEXT = (
    "1 for the same clusters, about 0 for clusters that have nothing in common; the mean over all heads and images. A "
    "teacher that learns moves away from its start."
)


class Film(NamedTuple):
    """The pictures of a run, whose colors keep their meaning from one moment to the next.

    Attributes:
        names: what each moment is called.
        views: the crops.
        grid: rows and columns of patches.
        labels: color of each token.
        valid: colors of clusters that both views show.
        components: components of the tokens, as red, green and blue.
    """

    names: Sequence[str]
    views: UInt8[np.ndarray, "b v H W 3"]
    grid: tuple[int, int]
    labels: Int[np.ndarray, "m v b h n"]
    valid: Bool[np.ndarray, "m b h k"]
    components: UInt8[np.ndarray, "m v b n 3"]

    def places(self, count: int) -> list[int]:
        """Returns at most so many moments, spread evenly, the first and the last among them."""
        return np.unique(np.linspace(0, len(self.names) - 1, count).round().astype(int)).tolist()

    def clusters(self, moment: int, image: int, view: int, head: int) -> UInt8[np.ndarray, "S T 3"]:
        """Returns a crop with the clusters of a head."""
        labels, valid = self.labels[moment, view, image, head], self.valid[moment, image, head]
        return overlay(self.views[image, view], labels, self.grid, valid=valid)

    def colors(self, moment: int, image: int, view: int) -> UInt8[np.ndarray, "S T 3"]:
        """Returns the components of a crop."""
        return enlarge(self.components[moment, view, image].reshape(*self.grid, 3))


def make_film(inside: Inside) -> Film:
    """Returns what a run has recorded with colors that stay."""
    moments = list(inside.moments.values())
    labels, valid = (np.stack([getattr(one, name) for one in moments]) for name in ("labels", "valid"))
    labels, valid = labels.astype(int), valid.copy()
    for image, head in np.ndindex(*valid.shape[1:3]):
        chosen = labels[:, :, image, head]
        colors = match_clusters(chosen.reshape(len(moments), -1), valid.shape[-1])
        labels[:, :, image, head] = np.stack([own[found] for own, found in zip(colors, chosen, strict=True)])
        np.put_along_axis(valid[:, image, head], colors, valid[:, image, head].copy(), axis=-1)
    scores = align_components([one.components.reshape(-1, one.components.shape[-1]) for one in moments])
    components = scale_to_colors(scores).reshape(len(moments), *moments[0].components.shape)
    side = math.isqrt(labels.shape[-1])
    names = [f"epoch {float(one.epoch):.4g}" if one.epoch else "start" for one in moments]
    return Film(names, inside.crops.views, (side, side), labels, valid, components)


def match_clusters(labels: Int[np.ndarray, "m n"], num_clusters: int) -> Int[np.ndarray, "m k"]:
    """Returns a color for each cluster of each moment, so that a cluster keeps its color as far as it stays.

    Colors of the last moment go by size. From there back, clusters take the colors of the later ones that they overlap
    with most (Hungarian method, over all clusters at once); the next moment counts twice as much as the one after it,
    so that a cluster which is gone for one moment gets its color back.

    Args:
        labels: cluster of each token.
        num_clusters: number of clusters and of colors.
    """
    one_hot, colors = np.eye(num_clusters), []
    sizes = np.bincount(labels[-1], minlength=num_clusters)
    votes = one_hot[(-sizes).argsort(kind="stable").argsort()[labels[-1]]]
    for own in reversed(labels):
        _, found = linear_sum_assignment(one_hot[own].T @ votes, maximize=True)
        votes = votes / 2 + one_hot[found[own]]
        colors.insert(0, found)
    return np.stack(colors)


def choose_head(valid: Bool[np.ndarray, "m b h k"]) -> int:
    """Returns the head with most clusters in both views at the end."""
    return int(valid[-1].sum(axis=(0, 2)).argmax())


def draw_strip(film: Film, images: Sequence[int]) -> Image.Image:
    """Returns a crop of some images, and beside it, over the run, its clusters in one head above its components.

    Args:
        film: the pictures.
        images: which images.
    """
    head, places = choose_head(film.valid), film.places(MOST_COLUMNS)
    sheet = _new_sheet(["", "", *(film.names[place] for place in places)], 2 * len(images))
    for row, image in zip(range(0, 2 * len(images), 2), images, strict=True):
        _paste(sheet, film.views[image, 0], row, 0, span=2)
        for column, place in enumerate(places, 2):
            _paste(sheet, film.clusters(place, image, 0, head), row, column)
            _paste(sheet, film.colors(place, image, 0), row + 1, column)
    return sheet


def draw_frames(film: Film, images: Sequence[int]) -> list[Image.Image]:
    """Returns a picture for each moment: both crops of some images, their clusters in each head, and their components.

    Args:
        film: the pictures.
        images: which images.
    """
    heads, frames = range(min(film.labels.shape[3], MOST_HEADS)), []
    for moment in film.places(MOST_FRAMES):
        titles = [film.names[moment], *(f"head {head + 1}" for head in heads), "components"]
        sheet = _new_sheet(titles, 2 * len(images))
        for row, (image, view) in enumerate(itertools.product(images, range(2))):
            clusters = [film.clusters(moment, image, view, head) for head in heads]
            for column, tile in enumerate([film.views[image, view], *clusters, film.colors(moment, image, view)]):
                _paste(sheet, tile, row, column)
        frames.append(sheet)
    return frames


def _new_sheet(titles: Sequence[str], rows: int) -> Image.Image:
    """Returns a transparent picture with titles above its columns, and two rows for each image."""
    gaps = _GAP * (rows - 1 + rows // 2 - 1)
    sheet = Image.new("RGBA", (len(titles) * (_PIXELS + _GAP) - _GAP, _LINE + rows * _PIXELS + gaps))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=17)
    for column, title in enumerate(titles):
        draw.text((column * (_PIXELS + _GAP) + _PIXELS / 2, 0), title, NEUTRAL, font, anchor="ma")
    return sheet


def _paste(sheet: Image.Image, tile: UInt8[np.ndarray, "H W 3"], row: int, column: int, *, span: int = 1) -> None:
    size, step = span * (_PIXELS + _GAP) - _GAP, _PIXELS + _GAP
    # What belongs to one image is close together.
    place = column * step, _LINE + row * step + row // 2 * _GAP
    sheet.paste(Image.fromarray(tile).resize((size, size), Image.Resampling.LANCZOS), place)


def plot_cluster_counts(
    num_clusters: Int[np.ndarray, "m b h"], epochs: Float[np.ndarray, " m"], *, k_start: int
) -> Figure:
    """Returns how often each K is chosen at each moment, and the mean K of each head and of all.

    Args:
        num_clusters: K of each image and head.
        epochs: epoch of each moment, two or more; between two, colors change at the middle.
        k_start: largest number of clusters.
    """
    heads = num_clusters.mean(axis=1)
    with figure_style():
        figure = Figure(figsize=SMALL, layout="constrained")
        axes, ks = figure.subplots(), np.arange(2, k_start + 1)
        # Without color where there is nothing, on a page of any color.
        colors = LinearSegmentedColormap.from_list("shares", [(*to_rgb(BLUE), alpha) for alpha in (0.0, 0.9)])
        shares = 100 * count_shares(num_clusters, k_start).T
        edges = np.concatenate([epochs[:1], (epochs[1:] + epochs[:-1]) / 2, epochs[-1:]])
        mesh = axes.pcolormesh(edges, np.arange(2, k_start + 2) - 0.5, shares, cmap=colors, vmin=0)
        for index, values in enumerate(heads.T):
            axes.plot(epochs, values, color=MUTED, linewidth=0.7, label="" if index else "mean of a head")
        axes.plot(epochs, heads.mean(axis=-1), color=ORANGE, linewidth=1.9, label="mean of all")
        axes.set(title="Number of clusters K", xlabel="epoch", yticks=ks[::2])
        axes.grid(visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        figure.legend(ncols=2, loc="outside lower center")
        figure.colorbar(mesh, ax=axes, label="% of images and heads").outline.set_visible(False)  # pyright: ignore
        return figure


def plot_agreement(labels: Int[np.ndarray, "m v b h n"], epochs: Float[np.ndarray, " m"]) -> Figure:
    """Returns how much the clusters of each moment agree with those of the first and of the last one.

    Args:
        labels: cluster of each token.
        epochs: epoch of each moment.
    """
    with figure_style():
        figure = Figure(figsize=SMALL, layout="constrained")
        axes = figure.subplots()
        for name, place, color in (("the start", 0, ORANGE), ("the end", -1, BLUE)):
            axes.plot(epochs, agreement(labels, place), color=color, linewidth=1.9, label=f"with those of {name}")
        axes.set(title="Agreement of clusters", xlabel="epoch", ylabel="adjusted Rand index", ylim=(0, 1.04))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        figure.legend(ncols=2, loc="outside lower center")
        return figure


def agreement(labels: Int[np.ndarray, "m v b h n"], place: int) -> list[float]:
    """Returns the adjusted Rand index of the clusters of each moment and of a certain one, the mean over all pairs."""
    # All tokens of one image and head side by side.
    flat = np.moveaxis(labels, 1, 3).reshape(len(labels), -1, labels.shape[1] * labels.shape[-1])
    return [float(np.mean([adjusted_rand_score(*both) for both in zip(flat[place], own, strict=True)])) for own in flat]


def count_shares(num_clusters: Int[np.ndarray, "m b h"], k_start: int) -> Float[np.ndarray, "m k"]:
    """Returns the share of images and heads with each K, from 2 to K_start."""
    return (num_clusters[..., None] == np.arange(2, k_start + 1)).mean(axis=(1, 2))


def inside_sections(workdir: Path) -> list[str]:
    """Returns a section of what a run has recorded of a few images; none before its second moment.

    Raises:
        ValueError: if a file is damaged.
    """
    inside = read_inside(workdir / FOLDER_NAME)
    if inside is None or len(inside.moments) < 2:
        return []
    film, order, moments = make_film(inside), rank_pairs(inside.crops.boxes).tolist(), list(inside.moments.values())
    num_clusters, epochs = (np.stack([getattr(one, name) for one in moments]) for name in ("num_clusters", "epoch"))
    counts = plot_cluster_counts(num_clusters, epochs, k_start=film.valid.shape[-1])
    shown, moving = order[:NUM_STRIP_IMAGES], order[:NUM_ANIMATED_IMAGES]
    blocks = [
        photos(draw_frames(film, moving), ANIMATION_TEXT.format(images=len(moving))),
        photos([draw_strip(film, shown)], STRIP_TEXT.format(head=choose_head(film.valid) + 1)),
        picture(counts, COUNTS_TEXT.format(images=len(order), size=film.views.shape[2])),
        picture(plot_agreement(film.labels, epochs), AGREEMENT_TEXT),
    ]
    return [section("Inside: the same images along the run", TEXT, blocks)]

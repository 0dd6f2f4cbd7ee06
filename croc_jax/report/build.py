"""The pages: of one pre-training run, and of the evaluations of several."""

import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from croc_jax.data.decoding import decode
from croc_jax.data.sources import ImageSource, open_data
from croc_jax.evaluation.backbones import FrozenBackbone, trained_backbone
from croc_jax.models import VisionTransformer
from croc_jax.report.comparison import comparison_facts, comparison_sections
from croc_jax.report.evaluations import group_evaluations, read_evaluations
from croc_jax.report.figures import (
    Rows,
    plot_clusters,
    plot_entropies,
    plot_losses,
    plot_mean_num_clusters,
    plot_merging,
    plot_num_clusters,
)
from croc_jax.report.html import Fact, Picture, Section, write_page
from croc_jax.report.inspect import Exploration, explore, overlap
from croc_jax.runtime.collapse import describe_findings
from croc_jax.runtime.metrics_writer import last_row, read_rows
from croc_jax.training.config import flatten, recipe_to_dict

NUM_IMAGES = 64
NUM_CANDIDATES = 24
NUM_PAIRS = 4
NUM_MERGINGS = 2
NUM_MERGING_HEADS = 3
# A pair that neither repeats nor misses the other is the most telling.
BEST_OVERLAP = 0.6
# Below so many patches a side, clusters are drawn on crops of twice the size.
COARSE_GRID = 14


class Gallery(NamedTuple):
    """Pairs of crops worth showing, and where their images are."""

    source: ImageSource
    pairs: Exploration
    order: list[int]


def build_report(workdir: Path, *, file: Path | None = None) -> Path:
    """Writes a page of the metrics, the checkpoint, the images and all evaluations of a run; returns its path.

    Args:
        workdir: of the run; results.json files in folders below it are taken along.
        file: the page; by default WORKDIR/report.html.

    Raises:
        ValueError: if there are no metrics yet, no image can be read, or a results.json is unusable.
        CheckpointError: if there is no checkpoint.
    """
    rows = read_metrics(workdir / "metrics.jsonl")
    backbone, groups = trained_backbone(workdir), group_evaluations(read_evaluations([workdir]))
    recipe = backbone.recipe
    source = open_data(recipe.data)
    typical = explore(backbone.module, backbone.params, recipe, source, num_images=NUM_IMAGES)
    file = file or workdir / "report.html"
    facts = collect_facts(rows, typical, batch_size=recipe.schedule.batch_size)
    write_page(
        file,
        title="CrOC learns from unlabeled images",
        lead=describe(backbone, len(source)),
        facts=[*comparison_facts(groups), *facts],
        sections=[
            *(comparison_sections(groups) if groups else []),
            *_gallery_sections(_open_gallery(backbone, source)),
            _training_section(rows, typical, backbone),
        ],
        settings=flatten(recipe_to_dict(recipe)),
    )
    return file


def build_comparison(folders: Sequence[Path], file: Path) -> Path:
    """Writes a page of all evaluations below some folders; returns its path.

    Args:
        folders: that evaluate.py wrote in, or workdirs; the losses of the latter are shown, too.
        file: the page.

    Raises:
        ValueError: for a missing folder, an unusable results.json, or none at all.
    """
    groups = group_evaluations(read_evaluations(folders))
    if not groups:
        names = ", ".join(map(str, folders))
        raise ValueError(f"no results.json in {names}: evaluate first (launch/evaluate.py)")
    curves = [folder for folder in folders if last_row(folder / "metrics.jsonl")]
    pictures = [Picture(plot_losses(read_metrics(folder / "metrics.jsonl")), folder.name) for folder in curves]
    labels = dict.fromkeys(entry.label for group in groups for entry in group.entries)
    write_page(
        file,
        title="What frozen features are worth",
        lead=COMPARISON_LEAD.format(weights=", ".join(labels)),
        facts=comparison_facts(groups),
        sections=[
            *comparison_sections(groups),
            *([Section("How training went", LOSSES_TEXT, pictures)] if pictures else []),
        ],
        settings={"folders": ", ".join(str(folder) for folder in folders)},
    )
    return file


def read_metrics(file: Path) -> list[dict[str, float]]:
    """Returns the rows of a metrics.jsonl; what is null there is NaN here.

    Raises:
        ValueError: if there are none.
    """
    rows = [{name: math.nan if value is None else value for name, value in row.items()} for row in read_rows(file)]
    if not rows:
        raise ValueError(f"{file} holds no metrics: train first (launch/pretrain.py)")
    return rows


def describe(backbone: FrozenBackbone, num_images: int) -> str:
    """Says what was trained, on what, and for how long."""
    recipe, module = backbone.recipe, backbone.module
    size = recipe.data.views.crop_size
    return (
        f"{_architecture(backbone)} (patches of {module.patch_size} x {module.patch_size} pixels) saw {num_images:,} "
        f"images without a single label, as pairs of {size} x {size} crops, for {recipe.schedule.epochs} epochs: "
        f"{backbone.step:,} steps of {recipe.schedule.batch_size} images. The pictures show its teacher, the slowly "
        "moving average that training learns from and leaves behind."
    )


def _architecture(backbone: FrozenBackbone) -> str:
    variant, module = backbone.recipe.backbone.variant, backbone.module
    if isinstance(module, VisionTransformer):
        return f"A vision transformer of {module.depth} blocks, {module.width} features and {module.num_heads} heads"
    return f"A convolutional network ({variant}) of {module.width} features"


def collect_facts(rows: Rows, typical: Exploration, *, batch_size: int) -> list[Fact]:
    """Returns the numbers to read first.

    Args:
        rows: of metrics.jsonl.
        typical: pairs of crops as in training.
        batch_size: images a step.
    """
    return [
        Fact(_duration(training_seconds(rows, batch_size)), "of training"),
        Fact(f"{np.median([row['images_per_sec'] for row in rows]):.0f}", "images a second"),
        Fact(f"{typical.num_clusters.mean():.1f}", "clusters in a pair of crops, on average"),
        Fact(f"{100 * typical.valid.sum() / typical.num_clusters.sum():.0f}%", "of clusters lie in both crops"),
    ]


def training_seconds(rows: Rows, batch_size: int) -> float:
    """Returns the time that the logged steps took, whatever happened between two runs.

    Args:
        rows: of metrics.jsonl.
        batch_size: images a step.
    """
    steps = np.diff([0, *(row["step"] for row in rows)])
    return float(np.sum(steps * batch_size / [row["images_per_sec"] for row in rows]))


def _duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return str(datetime.timedelta(minutes=round(seconds / 60))).removesuffix(":00") + " h"


def _open_gallery(backbone: FrozenBackbone, source: ImageSource) -> Gallery:
    recipe, size = backbone.recipe, backbone.recipe.data.views.crop_size
    coarse = size // recipe.backbone.patch_size < COARSE_GRID
    pairs = explore(
        backbone.module,
        backbone.params,
        recipe,
        source,
        num_images=NUM_CANDIDATES,
        crop_size=2 * size if coarse else size,
    )
    order = np.abs(overlap(pairs.boxes) - BEST_OVERLAP).argsort(kind="stable")
    return Gallery(source, pairs, order.tolist())


def _gallery_sections(gallery: Gallery) -> list[Section]:
    pairs = gallery.pairs
    size, rounds = pairs.views.shape[2], pairs.costs.shape[-1]
    return [
        Section(
            "What it sees: clusters across two crops",
            CLUSTERS_TEXT.format(rows=pairs.grid[0], columns=pairs.grid[1], size=size),
            [_pair(gallery, index) for index in gallery.order[:NUM_PAIRS]],
        ),
        Section(
            f"How it gets there: merging from {rounds + 1} clusters to 2",
            MERGING_TEXT,
            [_merging(gallery, index) for index in gallery.order[:NUM_MERGINGS]],
        ),
    ]


def _pair(gallery: Gallery, index: int) -> Picture:
    pairs, image = gallery.pairs, int(gallery.pairs.indices[index])
    scene = (decode(gallery.source[image]), pairs.boxes[index])
    figure = plot_clusters(pairs.views[index], pairs.labels[:, index], pairs.valid[index], pairs.grid, scene=scene)
    return Picture(figure, Path(gallery.source.name(image)).name)


def _merging(gallery: Gallery, index: int) -> Picture:
    pairs = gallery.pairs
    heads = np.arange(pairs.num_clusters.shape[1])[:NUM_MERGING_HEADS]
    figure = plot_merging(
        pairs.views[index],
        pairs.merging[:, :, index, heads],
        pairs.costs[index, heads],
        pairs.num_clusters[index, heads],
        pairs.grid,
    )
    return Picture(figure, Path(gallery.source.name(int(pairs.indices[index]))).name)


def _training_section(rows: Rows, typical: Exploration, backbone: FrozenBackbone) -> Section:
    head, k_start = backbone.recipe.head, backbone.recipe.clustering.k_start
    pictures = [
        Picture(plot_losses(rows), LOSSES_TEXT),
        Picture(plot_entropies(rows, num_prototypes=(head.num_prototypes, head.num_prototypes_dense)), ENTROPIES_TEXT),
        Picture(plot_num_clusters(typical.num_clusters, k_start=k_start), NUM_CLUSTERS_TEXT),
    ]
    if any(row["num_clusters"] for row in rows):
        pictures.append(Picture(plot_mean_num_clusters(rows, k_start=k_start), MEAN_TEXT))
    warnings = describe_findings(rows, backbone.recipe)
    return Section("How training went", " ".join([TRAINING_TEXT, *warnings]), pictures)


COMPARISON_LEAD = (
    "The weights {weights} at work, frozen, by protocols that see their features alone. Each score comes with the "
    "settings that move it."
)
CLUSTERS_TEXT = (
    "Two random crops of an image (framed) are cut into patches, and all patches of both are clustered together, once "
    "for each attention head. The same color in both views is the same cluster: training asks that the two views of "
    "each cluster look alike to the network. Hatched gray marks clusters that only one view shows; they are left out. "
    "Drawn on {rows} x {columns} patches ({size} pixels)."
)
MERGING_TEXT = (
    "The clustering starts from patches drawn at random and, round after round, merges the two clusters whose "
    "centers agree most, until two are left. Each round has a transport cost: how badly its clusters fit the patches. "
    "The cheapest round is kept (framed above, ringed below), so every image and head has its own number of clusters."
)
TRAINING_TEXT = (
    "Student and teacher see the same crops in different colors, and the student learns to give the teacher's answer "
    "for the other view: for the image as a whole, and for each cluster."
)
LOSSES_TEXT = (
    "Cross-entropy between the answers of student and teacher. The teacher changes too, so a loss that rises while "
    "the teacher grows less certain is no bad sign."
)
ENTROPIES_TEXT = (
    "How undecided the teacher is. At zero it would be sure of one answer every time; at the dotted line it would "
    "not prefer any. A run that sits at either end has collapsed: healthy ones stay in between."
)
NUM_CLUSTERS_TEXT = "K is chosen for each image and each head; it is not a setting. Crops as in training."
MEAN_TEXT = "The mean over all images and heads of a step; the dotted line is the number that merging starts from."

"""The report of one pre-training run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from croc_jax.data.sources import FolderSource
from croc_jax.evaluation.backbones import FrozenBackbone, trained_backbone
from croc_jax.report.exploration import Exploration, explore
from croc_jax.report.figures import (
    plot_clusters,
    plot_losses,
    plot_merging,
    plot_num_clusters,
    plot_scores,
    plot_training,
)
from croc_jax.report.html import Fact, Section, write_page
from croc_jax.training.config import flatten, recipe_to_dict

NUM_IMAGES = 64
NUM_PAIRS = 4
NUM_MERGINGS = 2


class Scores(NamedTuple):
    """Linear segmentation results (as in results.json) with random and with trained weights."""

    before: Mapping[str, Any]
    after: Mapping[str, Any]


def build_report(workdir: Path, *, scores: Scores | None = None) -> Path:
    """Writes WORKDIR/report.html from the metrics, the checkpoint and the images of a run; returns it.

    Args:
        workdir: of the run.
        scores: of linear segmentation, if the images have labels.

    Raises:
        ValueError: if there are no metrics yet, or no image can be read.
        CheckpointError: if there is no checkpoint.
    """
    rows = read_metrics(workdir / "metrics.jsonl")
    backbone = trained_backbone(workdir)
    source = FolderSource(backbone.recipe.data.folders)
    inside = explore(backbone.module, backbone.params, backbone.recipe, source, num_images=NUM_IMAGES)
    file = workdir / "report.html"
    write_page(
        file,
        title="CrOC learns from unlabeled images",
        lead=describe(backbone, len(source)),
        facts=collect_facts(rows, inside, scores),
        sections=collect_sections(rows, backbone, inside, scores),
        settings=flatten(recipe_to_dict(backbone.recipe)),
    )
    return file


def read_metrics(file: Path) -> list[dict[str, float]]:
    """Returns the rows of a metrics.jsonl.

    Raises:
        ValueError: if there are none.
    """
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    if not rows:
        raise ValueError(f"{file} holds no metrics: train first (launch/pretrain.py)")
    return rows


def describe(backbone: FrozenBackbone, num_images: int) -> str:
    """Says what was trained, on what, and for how long."""
    recipe, module = backbone.recipe, backbone.module
    size = recipe.data.views.crop_size
    return (
        f"A vision transformer of {module.depth} blocks, {module.width} features and {module.num_heads} heads "
        f"(patch {module.patch_size}) saw {num_images:,} images without labels, as pairs of {size} x {size} crops, "
        f"for {recipe.schedule.epochs} epochs ({backbone.step:,} steps of {recipe.schedule.batch_size} images). "
        "Pictures below show its teacher."
    )


def collect_facts(rows: list[dict[str, float]], inside: Exploration, scores: Scores | None) -> list[Fact]:
    """Returns the numbers to read first."""
    speed = float(np.median([row["images_per_sec"] for row in rows[1:] or rows]))
    facts = [
        Fact(f"{rows[-1]['loss']:.2f}", f"loss at the end, from {rows[0]['loss']:.2f}"),
        Fact(f"{inside.num_clusters.mean():.1f}", "clusters a pair and head, on average"),
        Fact(f"{100 * inside.valid.sum() / inside.num_clusters.sum():.0f}%", "of clusters lie in both views"),
        Fact(f"{speed:.0f}", "images/s while training"),
    ]
    if scores:
        before, after = scores.before["miou"], scores.after["miou"]
        gain = Fact(f"{before:.1f} → {after:.1f}", "linear mIoU (%), random weights → pre-trained")
        facts.insert(0, gain)
    return facts


def collect_sections(
    rows: list[dict[str, float]], backbone: FrozenBackbone, inside: Exploration, scores: Scores | None
) -> list[Section]:
    """Returns the sections of the page."""
    k_start = backbone.recipe.clustering.k_start
    sections = [
        Section(
            "Clusters in pairs of crops", CLUSTERS_TEXT, [_pair(inside, index) for index in _spread(inside, NUM_PAIRS)]
        ),
        Section(
            f"Merging from {k_start} clusters to 2",
            MERGING_TEXT,
            [_merging(inside, index) for index in _spread(inside, NUM_MERGINGS)],
        ),
        Section("How many clusters", NUM_CLUSTERS_TEXT, [plot_num_clusters(inside.num_clusters, k_start)]),
        Section("Training", TRAINING_TEXT, [plot_losses(rows), plot_training(rows)]),
    ]
    if scores:
        means = (scores.before["miou"], scores.after["miou"])
        figure = plot_scores(scores.before["class_iou"], scores.after["class_iou"], means)
        sections.insert(0, Section("What the features know", SCORES_TEXT, [figure]))
    return sections


def _spread(inside: Exploration, count: int) -> list[int]:
    total = len(inside.views)
    return sorted({int(index) for index in np.linspace(0, total - 1, min(count, total))})


def _pair(inside: Exploration, index: int) -> Any:
    return plot_clusters(inside.views[index], inside.labels[:, index], inside.valid[index], inside.grid)


def _merging(inside: Exploration, index: int) -> Any:
    """The merging in the head whose clusters are most."""
    head = int(inside.num_clusters[index].argmax())
    chosen = int(inside.num_clusters[index, head])
    return plot_merging(
        inside.views[index], inside.merging[:, :, index, head], inside.costs[index, head], chosen, inside.grid
    )


SCORES_TEXT = (
    "A single linear layer reads object classes from the frozen patch features, once with the random weights that "
    "training starts from and once with the trained teacher. Scored on images that neither saw."
)
CLUSTERS_TEXT = (
    "Two random crops of one image are clustered together, once for each attention head. The same color in both "
    "views is the same cluster: this is what training pulls together. Gray clusters lie in one view only, and are "
    "left out."
)
MERGING_TEXT = (
    "The clustering starts from tokens drawn at random and merges the two most similar clusters, round after round. "
    "The round with the least transport cost is chosen (framed)."
)
NUM_CLUSTERS_TEXT = "The number of clusters is chosen for each image and head; it is not a setting."
TRAINING_TEXT = (
    "The dense loss compares clusters across views, the global loss whole images. An entropy that falls to zero "
    "would mean that the teacher gives the same answer for everything."
)

"""The report: one page of a pre-training run, or of the evaluations of several."""

import datetime
import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from croc_jax.data.channels import load_pixels, show_pixels
from croc_jax.data.sources import open_data
from croc_jax.evaluation import interval, unlabeled
from croc_jax.evaluation.backbones import FrozenBackbone, load_backbone
from croc_jax.evaluation.crop_pairs import picture_size
from croc_jax.models import VisionTransformer
from croc_jax.report.comparison import comparison_facts, comparison_sections
from croc_jax.report.evaluations import group_evaluations, read_evaluations
from croc_jax.report.figures import (
    Rows,
    plot_clusters,
    plot_entropies,
    plot_losses,
    plot_merging,
    plot_num_clusters,
    plot_score,
)
from croc_jax.report.html import picture, section, write_page
from croc_jax.report.inside import inside_sections
from croc_jax.report.inspect import explore, rank_pairs
from croc_jax.training.config import flatten, recipe_to_dict

# What the facts and the figures show.
COLUMNS = (
    "step", "images_per_sec", "loss", "loss_dense", "loss_global", "teacher_entropy", "teacher_entropy_c",
    "num_clusters", "valid_fraction",
)  # fmt: skip
# Longer than any run: a number in the file is wrong.
_MOST_SECONDS = 1e10
NUM_CANDIDATES, NUM_PAIRS, NUM_MERGINGS, NUM_MERGING_HEADS = 24, 4, 2, 3

COMPARISON_LEAD = (
    "The weights {weights} at work, frozen, by protocols that see their features alone. Each score comes with the "
    "settings that move it."
)
CLUSTERS_TEXT = (
    "Two random crops of an image (framed) are cut into patches, and all patches of both are clustered together, once "
    "for each attention head. The same color in both views is the same cluster: training asks that the two views of "
    "each cluster get the same answer from the network. Hatched gray marks clusters that only one view shows; they are "
    "left out. Drawn on {rows} x {columns} patches ({size} pixels)."
)
MERGING_TEXT = (
    "The clustering starts from patches drawn at random and, round after round, merges the two clusters whose "
    "centers agree most, until two are left. Each round has a transport cost: how badly its clusters fit the patches. "
    "The cheapest round is kept (framed above, ringed below), so every image and head has its own number of clusters."
)
SCORES_TEXT = (
    "The teacher, scored while it trained; the best is ringed. Scores without labels are of two crops of a few "
    "training images: how often the features of one find the other, the share of the variance of patch features that "
    "lies between 32 clusters, and the number of directions that the image features use."
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
    "not prefer any. A run at either end has collapsed: healthy ones stay in between."
)
NUM_CLUSTERS_TEXT = "The mean over all images and heads of a step; the dotted line is the number merging starts from."


def build_report(workdir: Path, *, file: Path | None = None) -> Path:
    """Writes a page of the metrics, the clusters and all evaluations below a workdir; returns its path.

    Args:
        workdir: workdir of the run.
        file: path of the page; WORKDIR/report.html by default.

    Raises:
        ValueError: if there are no metrics or no checkpoint yet, no image can be read, or a results.json is unusable.
    """
    rows = read_metrics(workdir / "metrics.jsonl", columns=COLUMNS)
    backbone, groups = load_backbone(workdir), group_evaluations(read_evaluations([workdir]))
    recipe, file = backbone.recipe, file or workdir / "report.html"
    cluster_sections, num_images = _cluster_sections(backbone)
    write_page(
        file,
        title="CrOC learns from unlabeled images",
        lead=describe(backbone, num_images),
        facts=[*comparison_facts(groups), *collect_facts(rows, batch_size=recipe.schedule.batch_size)],
        sections=[
            *comparison_sections(groups),
            *cluster_sections,
            *inside_sections(workdir),
            _training_section(rows, backbone),
            *_score_sections(rows),
        ],
        settings=flatten(recipe_to_dict(recipe)),
    )
    return file


def build_comparison(folders: Sequence[Path], file: Path) -> Path:
    """Writes a page of all evaluations below some folders; returns its path.

    Args:
        folders: folders that evaluate.py wrote in, or workdirs, whose losses are shown, too.
        file: path of the page.

    Raises:
        ValueError: for a missing folder, an unusable results.json, or none at all.
    """
    groups = group_evaluations(read_evaluations(folders))
    if not groups:
        names = ", ".join(map(str, folders))
        raise ValueError(f"no results.json in {names}: evaluate first (launch/evaluate.py)")
    metrics = {folder.name: rows for folder in folders if (rows := _parse_rows(folder / "metrics.jsonl"))}
    losses = [picture(plot_losses(rows), name) for name, rows in metrics.items()]
    training = [section("How training went", LOSSES_TEXT, losses)] if losses else []
    labels = dict.fromkeys(entry.label for group in groups for entry in group.entries)
    write_page(
        file,
        title="What frozen features are worth",
        lead=COMPARISON_LEAD.format(weights=", ".join(labels)),
        facts=comparison_facts(groups),
        sections=[*comparison_sections(groups), *training],
        settings={"folders": ", ".join(map(str, folders))},
    )
    return file


def read_metrics(file: Path, *, columns: Collection[str] = ()) -> list[dict[str, float]]:
    """Returns the rows of a metrics.jsonl; what is null there is NaN here.

    Args:
        file: path of the file.
        columns: names that every row must have.

    Raises:
        ValueError: if there are no rows, or one lacks a column.
    """
    rows = _parse_rows(file)
    if not rows:
        raise ValueError(f"{file} holds no metrics: train first (launch/pretrain.py)")
    if lacking := {name for row in rows for name in columns if name not in row}:
        raise ValueError(f"{file} has rows without {', '.join(sorted(lacking))}: name the workdir of a run")
    return rows


def _parse_rows(file: Path) -> list[dict[str, float]]:
    # One that is being written may be torn.
    lines = file.read_bytes().splitlines() if file.is_file() else []
    rows = [row for line in lines if (row := _parse_row(line))]
    if len(rows) < len(lines) - 1:
        logging.warning(
            "%s: %d of %d lines are left out, as they hold no metrics", file, len(lines) - len(rows), len(lines)
        )
    return rows


def _parse_row(line: bytes) -> dict[str, float] | None:
    """Returns the numbers in a line, or None if it holds something else."""
    try:
        row = {name: math.nan if value is None else float(value) for name, value in json.loads(line).items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return row if 0 <= row.get("step", math.nan) < math.inf else None


def describe(backbone: FrozenBackbone, num_images: int) -> str:
    """Returns a paragraph about what was trained, on what, and for how long."""
    recipe, module = backbone.recipe, backbone.module
    size, kind = recipe.data.views.crop_size, f"A convolutional network ({recipe.backbone.variant}) of "
    kind += f"{module.width} features"
    if isinstance(module, VisionTransformer):
        kind = f"A vision transformer of {module.depth} blocks, {module.width} features and {module.num_heads} heads"
    return (
        f"{kind} (patches of {module.patch_size} x {module.patch_size} pixels) saw {num_images:,} images without a "
        f"single label, as pairs of {size} x {size} crops, for {recipe.schedule.epochs} epochs: {backbone.step:,} "
        f"steps of {recipe.schedule.batch_size} images. The pictures show its teacher, the slowly moving average that "
        "training learns from and leaves behind."
    )


def collect_facts(rows: Rows, *, batch_size: int) -> list[tuple[str, str]]:
    """Returns the numbers to read first, and what they are, from the rows of metrics.jsonl."""
    # Each row's speed holds for the steps since the row before, whatever happened between two runs.
    speeds, steps = np.array([row["images_per_sec"] for row in rows]), np.diff([0, *(row["step"] for row in rows)])
    known = speeds > 0
    seconds = float(np.sum(steps[known] * batch_size / speeds[known]))
    if not known.any() or seconds > _MOST_SECONDS:
        return []
    hours = str(datetime.timedelta(minutes=round(seconds / 60))).removesuffix(":00")
    facts = [
        (f"{seconds / 60:.1f} min" if seconds < 3600 else f"{hours} h", "of training"),
        (f"{np.median(speeds[known]):.0f}", "images a second"),
    ]
    if rows[-1]["num_clusters"]:
        facts.append((f"{rows[-1]['num_clusters']:.1f}", "clusters in a pair of crops, on average"))
        facts.append((f"{100 * rows[-1]['valid_fraction']:.0f}%", "of clusters lie in both crops"))
    return facts


def _cluster_sections(backbone: FrozenBackbone) -> tuple[list[str], int]:
    """Returns sections of the clusters of a few pairs of crops, and the number of images of the run."""
    recipe, pixels = backbone.recipe, backbone.module.pixels
    source, crop_size = open_data(recipe.data), picture_size(recipe)
    pairs = explore(backbone, source, num_images=NUM_CANDIDATES, crop_size=crop_size)
    order = rank_pairs(pairs.boxes)
    names = [Path(source.name(int(index))).name for index in pairs.indices]
    clusters, mergings = [], []
    for i in order[:NUM_PAIRS].tolist():
        image = show_pixels(load_pixels(source, int(pairs.indices[i]), pixels), pixels)
        scene = (image, pairs.boxes[i])
        figure = plot_clusters(pairs.views[i], pairs.labels[:, i], pairs.valid[i], pairs.grid, scene=scene)
        clusters.append(picture(figure, names[i]))
    for i in order[:NUM_MERGINGS].tolist():
        h = slice(NUM_MERGING_HEADS)
        chosen = pairs.merging[:, :, i, h], pairs.costs[i, h], pairs.num_clusters[i, h]
        mergings.append(picture(plot_merging(pairs.views[i], *chosen, pairs.grid), names[i]))
    text = CLUSTERS_TEXT.format(rows=pairs.grid[0], columns=pairs.grid[1], size=crop_size)
    rounds = pairs.costs.shape[-1]
    return [
        section("What it sees: clusters across two crops", text, clusters),
        section(f"How it gets there: merging from {rounds + 1} clusters to 2", MERGING_TEXT, mergings),
    ], len(source)


def _training_section(rows: Rows, backbone: FrozenBackbone) -> str:
    head, k_start = backbone.recipe.head, backbone.recipe.clustering.k_start
    entropies = plot_entropies(rows, num_prototypes=(head.num_prototypes, head.num_prototypes_dense))
    pictures = [picture(plot_losses(rows), LOSSES_TEXT), picture(entropies, ENTROPIES_TEXT)]
    if any(row["num_clusters"] for row in rows):
        pictures.append(picture(plot_num_clusters(rows, k_start=k_start), NUM_CLUSTERS_TEXT))
    return section("How training went", TRAINING_TEXT, pictures)


def find_scores(rows: Rows) -> dict[str, list[tuple[float, float]]]:
    """Returns (step, value) of each score of the evaluations during a run, by name."""
    found = dict[str, list[tuple[float, float]]]()
    for row in rows:
        names = list(row)
        for name in names[names.index(interval.SECONDS) + 1 :] if interval.SECONDS in row else ():
            if math.isfinite(row[name]):
                found.setdefault(name, []).append((row["step"], row[name]))
    return found


def _score_sections(rows: Rows) -> list[str]:
    pictures = [
        picture(plot_score(*zip(*points, strict=True), title=unlabeled.SCORE_LABELS.get(name, name)), name)
        for name, points in find_scores(rows).items()
    ]
    return [section("Scores along the way", SCORES_TEXT, pictures)] if pictures else []

"""Writes a score together with every setting that moves it."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from croc_jax.data.labeled import SegmentationSplit
from croc_jax.data.videos import Video
from croc_jax.evaluation.backbones import FrozenBackbone
from croc_jax.evaluation.linear import LinearProtocol
from croc_jax.evaluation.normalization import RELATIVE_FLOOR
from croc_jax.evaluation.retrieval import RetrievalProtocol, RetrievalScore
from croc_jax.evaluation.segmentation import LinearScore
from croc_jax.evaluation.unsupervised import UnsupervisedProtocol, UnsupervisedScore
from croc_jax.evaluation.video.evaluate import VideoProtocol, VideoScore
from croc_jax.evaluation.video.measures import BOUNDARY_TOLERANCE

# What the code does without asking, spelled out for those who compare numbers.
LINEAR_CONVENTIONS = {
    "tokens": "patch tokens after the final norm, float16",
    "image_resize": "bicubic, antialiased",
    "label_resize": "nearest",
    "upsampling": "bilinear logits, half-pixel centers",
    "ignored_label": 255,
    "start": "zeros",
    "normalization_floor": RELATIVE_FLOOR,
    "miou": "percent, over the whole split, mean of the classes in labels or predictions",
}


UNSUPERVISED_CONVENTIONS = {
    "tokens": "patch tokens after the final norm, float16",
    "image_resize": "bicubic, antialiased",
    "label_resize": "nearest",
    "upsampling": "clusters: nearest",
    "ignored_label": 255,
    "start": "greedy k-means++ on 65536 tokens, one start a seed",
    "miou": "percent, over the whole split, mean of the classes in labels or clusters, mean over seeds",
}

RETRIEVAL_CONVENTIONS = {
    "tokens": "patch tokens after the final norm, unit length, float32",
    "image_resize": "bicubic, antialiased",
    "memory": "as many patches of each image, drawn evenly among those with labels; no augmentation",
    "similarity": "cosine, exact search",
    "upsampling": "bilinear soft labels, half-pixel centers",
    "ignored_label": 255,
    "miou": "percent, over the whole split, mean of the classes in labels or predictions",
}

VIDEO_CONVENTIONS = {
    "tokens": "patch tokens after the final norm, float32",
    "frame_resize": "bilinear, antialiased; masks to patches: nearest",
    "upsampling": "bilinear soft labels, each stretched to [0, 1]; to the frame's size: nearest",
    "boundary_tolerance": BOUNDARY_TOLERANCE,
    "scores": "percent, mean over the objects of all sequences, over frames with masks but the first",
}


def linear_results(
    score: LinearScore,
    *,
    protocol: LinearProtocol,
    backbone: FrozenBackbone,
    checkpoint: str,
    train: SegmentationSplit,
    val: SegmentationSplit,
) -> dict[str, Any]:
    """Returns what results.json holds.

    Args:
        score: of the evaluation.
        protocol: its settings.
        backbone: what was evaluated.
        checkpoint: as the caller named it.
        train: images of the linear layer.
        val: images of the score.
    """
    scores = {
        "miou": score.miou,
        "class_iou": name_classes(val, score.class_iou),
        "final_train_loss": float(score.losses[-1]),
    }
    settings = {"linear": dataclasses.asdict(protocol), "conventions": LINEAR_CONVENTIONS}
    return _results(
        "linear",
        scores,
        settings | {"dataset": describe_split(val) | {"train_split": train.name, "num_train": len(train)}},
        backbone=backbone,
        checkpoint=checkpoint,
        root=val.root,
        seconds=score.seconds,
    )


def unsupervised_results(
    score: UnsupervisedScore,
    *,
    protocol: UnsupervisedProtocol,
    backbone: FrozenBackbone,
    checkpoint: str,
    val: SegmentationSplit,
) -> dict[str, Any]:
    """Returns what results.json holds.

    Args:
        score: of the evaluation.
        protocol: its settings.
        backbone: what was evaluated.
        checkpoint: as the caller named it.
        val: images of the clusters and the score.
    """
    scores = {
        "miou": score.miou,
        "miou_deviation": None if math.isnan(score.miou_deviation) else score.miou_deviation,
        "seed_miou": score.seed_miou.tolist(),
        "class_iou": name_classes(val, score.class_iou),
        "inertia": score.inertia.tolist(),
    }
    settings = {
        "unsupervised": dataclasses.asdict(protocol),
        "conventions": UNSUPERVISED_CONVENTIONS,
        "dataset": describe_split(val),
    }
    return _results(
        "unsupervised",
        scores,
        settings,
        backbone=backbone,
        checkpoint=checkpoint,
        root=val.root,
        seconds=score.seconds,
    )


def retrieval_results(
    score: RetrievalScore,
    *,
    protocol: RetrievalProtocol,
    backbone: FrozenBackbone,
    checkpoint: str,
    train: SegmentationSplit,
    val: SegmentationSplit,
) -> dict[str, Any]:
    """Returns what results.json holds.

    Args:
        score: of the evaluation.
        protocol: its settings.
        backbone: what was evaluated.
        checkpoint: as the caller named it.
        train: images of the memory.
        val: images of the score.
    """
    return _results(
        "retrieval",
        {"miou": score.miou, "class_iou": name_classes(val, score.class_iou)},
        {
            "retrieval": dataclasses.asdict(protocol) | {"memory_patches": score.memory_patches},
            "conventions": RETRIEVAL_CONVENTIONS,
            "dataset": describe_split(val) | {"train_split": train.name, "num_train": len(train)},
        },
        backbone=backbone,
        checkpoint=checkpoint,
        root=val.root,
        seconds=score.seconds,
    )


def video_results(
    score: VideoScore,
    *,
    protocol: VideoProtocol,
    backbone: FrozenBackbone,
    checkpoint: str,
    root: Path,
    videos: Sequence[Video],
) -> dict[str, Any]:
    """Returns what results.json holds.

    Args:
        score: of the evaluation.
        protocol: its settings.
        backbone: what was evaluated.
        checkpoint: as the caller named it.
        root: of the data set.
        videos: that were labeled.
    """
    scores: dict[str, Any] = {"jf_mean": score.jf_mean}
    for name, statistics in (("j", score.region), ("f", score.boundary)):
        scores |= {f"{name}_{part}": value for part, value in statistics._asdict().items()}
    scores["objects"] = {
        f"{o.sequence}/{o.object_id}": {"j_mean": 100 * o.region.mean, "f_mean": 100 * o.boundary.mean}
        for o in score.objects
    }
    names = [video.name for video in videos]
    dataset = {"name": root.resolve().name, "sequences": names, "num_frames": score.num_frames}
    settings = {"video": dataclasses.asdict(protocol), "conventions": VIDEO_CONVENTIONS, "dataset": dataset}
    seconds = {"labeling": score.seconds}
    return _results("video", scores, settings, backbone=backbone, checkpoint=checkpoint, root=root, seconds=seconds)


def name_classes(split: SegmentationSplit, values: Iterable[float]) -> dict[str, float | None]:
    """Returns each class's score by its name; None for a class that does not occur."""
    pairs = zip(split.class_names, map(float, values), strict=True)
    return {name: None if math.isnan(value) else value for name, value in pairs}


def describe_split(val: SegmentationSplit) -> dict[str, Any]:
    """Returns what identifies the images that are scored."""
    name = val.root.resolve().name
    return {"name": name, "val_split": val.name, "num_val": len(val), "num_classes": val.num_classes}


def _results(
    protocol: str,
    scores: dict[str, Any],
    settings: dict[str, Any],
    *,
    backbone: FrozenBackbone,
    checkpoint: str,
    root: Path,
    seconds: dict[str, float],
) -> dict[str, Any]:
    module = {"compute_dtype": str(backbone.module.dtype), "pretrained_grid": backbone.module.grid_size}
    settings = settings | {
        "backbone": dataclasses.asdict(backbone.recipe.backbone) | module,
        "which": backbone.which,
    }
    return {
        "protocol": protocol,
        "dataset": str(root),
        "checkpoint": checkpoint,
        "step": backbone.step,
        **scores,
        "seconds": seconds | {"total": sum(seconds.values())},
        "fingerprint": settings | {"digest": digest(settings)},
    }


def digest(settings: dict[str, Any]) -> str:
    """Returns 12 hexadecimal digits that differ wherever settings do."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def write_results(results: dict[str, Any], output: Path) -> Path:
    """Writes OUTPUT/results.json and returns its path."""
    output.mkdir(parents=True, exist_ok=True)
    file = output / "results.json"
    file.write_text(json.dumps(results, indent=2) + "\n")
    return file

"""Scores of all protocols under their usual names, with what moves them."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from croc_jax.data.labeled.boxes import BoxSplit
from croc_jax.data.labeled.classes import ClassificationSplit
from croc_jax.data.labeled.davis import Video
from croc_jax.data.labeled.segmentation import SegmentationSplit
from croc_jax.evaluation.classification import REFERENCE_BATCH, ClassificationProtocol, ClassificationScore
from croc_jax.evaluation.discovery import CORLOC_IOU, DiscoveryProtocol, DiscoveryScore
from croc_jax.evaluation.knn import KnnProtocol, KnnScore
from croc_jax.evaluation.linear import LinearProtocol
from croc_jax.evaluation.normalization import RELATIVE_FLOOR
from croc_jax.evaluation.results import Outcome
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
    "tokens": "patch tokens after the final norm, float16, then unit length in float32",
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

KNN_CONVENTIONS = {
    "image_resize": "shorter side, bicubic, antialiased; center crop",
    "similarity": "cosine, float32",
    "weight": "exp(similarity / temperature)",
    "ties": "the lower class; a class without votes is never among the top five",
    "neighbors": "at most the training images",
}

CLASSIFICATION_CONVENTIONS = {
    "image_resize": "shorter side, bicubic, antialiased; center crop; the same in training: no augmentation",
    "tokens": "of the last block, after the final norm; float32",
    "lr": f"scaled by batch_size / {REFERENCE_BATCH}; cosine to 0, constant within an epoch",
    "optimizer": "SGD, momentum 0.9, coupled weight decay",
    "last_batch": "dropped if incomplete",
    "start": "zeros",
    "normalization_floor": RELATIVE_FLOOR,
    "score": "after the last epoch",
}

DISCOVERY_CONVENTIONS = {
    "images": "at their own size, filled up with zeros (after normalization) to whole patches",
    "tokens": "of the last block, all heads side by side, not normalized, float32",
    "ties": "the first patch in row-major order",
    "components": "4-connected",
    "corloc": f"percent of the images with boxes, IoU >= {CORLOC_IOU} with any box",
}


def linear_outcome(
    score: LinearScore, *, protocol: LinearProtocol, train: SegmentationSplit, val: SegmentationSplit
) -> Outcome:
    """Returns what linear segmentation found."""
    scores = {
        "miou": score.miou,
        "class_iou": name_classes(val.class_names, score.class_iou),
        "final_train_loss": float(score.losses[-1]),
    }
    settings = _settings("linear", protocol, LINEAR_CONVENTIONS, describe_split(val, train))
    return Outcome("linear", scores, settings, val.root, score.seconds)


def unsupervised_outcome(
    score: UnsupervisedScore, *, protocol: UnsupervisedProtocol, val: SegmentationSplit
) -> Outcome:
    """Returns what k-means found."""
    scores = {
        "miou": score.miou,
        "miou_deviation": None if math.isnan(score.miou_deviation) else score.miou_deviation,
        "seed_miou": score.seed_miou.tolist(),
        "class_iou": name_classes(val.class_names, score.class_iou),
        "inertia": score.inertia.tolist(),
    }
    settings = _settings("unsupervised", protocol, UNSUPERVISED_CONVENTIONS, describe_split(val))
    return Outcome("unsupervised", scores, settings, val.root, score.seconds)


def retrieval_outcome(
    score: RetrievalScore, *, protocol: RetrievalProtocol, train: SegmentationSplit, val: SegmentationSplit
) -> Outcome:
    """Returns what dense retrieval found."""
    scores = {"miou": score.miou, "class_iou": name_classes(val.class_names, score.class_iou)}
    settings = _settings("retrieval", protocol, RETRIEVAL_CONVENTIONS, describe_split(val, train))
    settings["retrieval"]["memory_patches"] = score.memory_patches
    return Outcome("retrieval", scores, settings, val.root, score.seconds)


def video_outcome(score: VideoScore, *, protocol: VideoProtocol, root: Path, videos: Sequence[Video]) -> Outcome:
    """Returns what label propagation found."""
    scores: dict[str, Any] = {"jf_mean": score.jf_mean}
    for name, statistics in (("j", score.region), ("f", score.boundary)):
        scores |= {f"{name}_{part}": value for part, value in statistics._asdict().items()}
    scores["objects"] = {
        f"{o.sequence}/{o.object_id}": {"j_mean": 100 * o.region.mean, "f_mean": 100 * o.boundary.mean}
        for o in score.objects
    }
    names = [video.name for video in videos]
    dataset = {"name": root.resolve().name, "sequences": names, "num_frames": score.num_frames}
    settings = _settings("video", protocol, VIDEO_CONVENTIONS, dataset)
    return Outcome("video", scores, settings, root, {"labeling": score.seconds})


def knn_outcome(
    score: KnnScore, *, protocol: KnnProtocol, train: ClassificationSplit, val: ClassificationSplit
) -> Outcome:
    """Returns what k-NN classification found."""
    first = min(protocol.neighbors[0], len(train))
    scores = {"top1": score.top1[first], "top5": score.top5[first]}
    scores |= {f"top1_{count}_neighbors": value for count, value in score.top1.items()}
    settings = _settings("knn", protocol, KNN_CONVENTIONS, describe_classes(train, val))
    return Outcome("knn", scores, settings, val.root, score.seconds)


def classification_outcome(
    score: ClassificationScore,
    *,
    protocol: ClassificationProtocol,
    train: ClassificationSplit,
    val: ClassificationSplit,
) -> Outcome:
    """Returns what linear classification found."""
    scores = {
        "top1": score.top1,
        "top5": score.top5,
        "class_accuracy": name_classes(val.class_names, score.class_accuracy),
        "final_train_loss": float(score.losses[-1]),
    }
    settings = _settings("classification", protocol, CLASSIFICATION_CONVENTIONS, describe_classes(train, val))
    return Outcome("classification", scores, settings, val.root, score.seconds)


def discovery_outcome(score: DiscoveryScore, *, protocol: DiscoveryProtocol, split: BoxSplit) -> Outcome:
    """Returns what object discovery found."""
    dataset = {"name": split.root.resolve().name, "split": split.name, "num_images": len(split), "hard": split.hard}
    scores = {"corloc": score.corloc, "num_scored": int(np.sum(~np.isnan(score.ious)))}
    settings = _settings("discovery", protocol, DISCOVERY_CONVENTIONS, dataset)
    return Outcome("discovery", scores, settings, split.root, {"discovery": score.seconds})


def name_classes(names: Iterable[str], values: Iterable[float]) -> dict[str, float | None]:
    """Returns each class's score by its name; None for a class that does not occur."""
    pairs = zip(names, map(float, values), strict=True)
    return {name: None if math.isnan(value) else value for name, value in pairs}


def describe_split(val: SegmentationSplit, train: SegmentationSplit | None = None) -> dict[str, Any]:
    """Returns what identifies the images that are scored, and those that are learned from, if any."""
    described = {"kind": val.kind, "name": val.root.resolve().name}
    described |= {"val_split": val.name, "num_val": len(val), "num_classes": val.num_classes}
    return described | ({"train_split": train.name, "num_train": len(train)} if train else {})


def describe_classes(train: ClassificationSplit, val: ClassificationSplit) -> dict[str, Any]:
    """Returns what identifies the images with one class each."""
    described = {"name": val.root.resolve().name, "train_split": train.name, "val_split": val.name}
    return described | {"num_train": len(train), "num_val": len(val), "num_classes": val.num_classes}


def _settings(name: str, protocol: Any, conventions: dict[str, Any], dataset: dict[str, Any]) -> dict[str, Any]:
    return {name: dataclasses.asdict(protocol), "conventions": conventions, "dataset": dataset}

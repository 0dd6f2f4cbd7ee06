"""Writes a score together with every setting that moves it."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from croc_jax.data.labeled import SegmentationSplit
from croc_jax.evaluation.backbones import FrozenBackbone
from croc_jax.evaluation.linear import LinearProtocol
from croc_jax.evaluation.normalization import RELATIVE_FLOOR
from croc_jax.evaluation.segmentation import LinearScore

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
    settings = linear_settings(protocol, backbone, train=train, val=val)
    class_iou = zip(val.class_names, score.class_iou.tolist(), strict=True)
    return {
        "protocol": "linear",
        "dataset": str(val.root),
        "checkpoint": checkpoint,
        "step": backbone.step,
        "miou": score.miou,
        "class_iou": {name: None if math.isnan(iou) else iou for name, iou in class_iou},
        "final_train_loss": float(score.losses[-1]),
        "seconds": score.seconds | {"total": sum(score.seconds.values())},
        "fingerprint": settings | {"digest": digest(settings)},
    }


def linear_settings(
    protocol: LinearProtocol, backbone: FrozenBackbone, *, train: SegmentationSplit, val: SegmentationSplit
) -> dict[str, Any]:
    """Returns every setting that moves the score of linear segmentation."""
    module = {"compute_dtype": str(backbone.module.dtype), "pretrained_grid": backbone.module.grid_size}
    return {
        "linear": dataclasses.asdict(protocol),
        "conventions": LINEAR_CONVENTIONS,
        "backbone": dataclasses.asdict(backbone.recipe.backbone) | module,
        "which": backbone.which,
        "dataset": {
            "name": val.root.resolve().name,
            "train_split": train.name,
            "val_split": val.name,
            "num_train": len(train),
            "num_val": len(val),
            "num_classes": val.num_classes,
        },
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

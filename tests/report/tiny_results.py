"""Writes results.json files as evaluate.py does."""

import json

from croc_jax.evaluation.results import digest


def write(folder, protocol, scores, *, checkpoint="random", step=0, settings=None, dataset=None, which="teacher"):
    """Writes one, whose fingerprint holds the settings of the protocol and what identifies the data set."""
    folder.mkdir(parents=True, exist_ok=True)
    fingerprint = {
        protocol: settings or {},
        "dataset": {"kind": "folder", "name": "scenes", "val_split": "val", "num_val": 3} | (dataset or {}),
        "backbone": {"width": 8},
        "which": "random" if checkpoint == "random" else which,
    }
    results = {
        "protocol": protocol,
        "dataset": "scenes",
        "checkpoint": checkpoint,
        "step": step,
        **scores,
        "seconds": {"total": 12.0},
        "fingerprint": fingerprint | {"digest": digest(fingerprint)},
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def write_linear(folder, *, miou, seed=0, checkpoint="random", step=0, dataset=None, settings=None, **class_iou):
    """Writes that of linear segmentation."""
    scores = {"miou": miou, "num_images": 7, "num_classes_in_labels": 4, "class_iou": class_iou}
    settings = {"epochs": 3, "seed": seed} | (settings or {})
    return write(folder, "linear", scores, checkpoint=checkpoint, step=step, settings=settings, dataset=dataset)

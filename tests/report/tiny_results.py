"""Writes results.json files as evaluate.py does, and returns the content of an experiment.json."""

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


COLUMNS = [
    {"data": "streets", "name": "linear", "protocol": "linear", "score": "miou", "label": "mIoU"},
    {"data": "films", "name": "davis", "protocol": "video", "score": "jf_mean", "label": "J&F"},
]


def one_run(row, seed, linear, films=None, curve=()):
    scores = {"streets": {"linear": {"score": linear, "step": 9, "seconds": 2.0, "digest": "0f"}}}
    scores |= {} if films is None else {"films": {"davis": {"score": films, "step": 9, "seconds": 3.0, "digest": "1f"}}}
    run = {"row": row, "seed": seed, "steps": 9, "seconds": 60.0, "images_per_sec": 40.0}
    return run | {"scores": scores, "curve": [list(point) for point in curve]}


def experiment_content():
    """Returns the content of an experiment.json: three rows, one of them without a run, on two data sets."""
    return {
        "name": "small",
        "part": "reporting",
        "base": "recipe.py",
        "settings": {"schedule.epochs": 8},
        "columns": COLUMNS,
        "tables": [{"title": "Method", "rows": ["random", "croc", "later"]}, {"title": "Nothing", "rows": ["later"]}],
        "rows": [
            {"name": "random", "label": "random weights", "overrides": []},
            {"name": "croc", "label": "CrOC", "overrides": []},
            {"name": "later", "label": "not yet", "overrides": []},
        ],
        "curve": "streets/linear",
        "runs": [
            one_run("random", 0, 20.04),
            one_run("croc", 0, 30.0, 50.0, [(1, 24.0), (2, 30.0)]),
            one_run("croc", 1, 33.0, None, [(1, 26.0)]),
            one_run("croc", 2, 31.5, None, [(1, 25.0), (2, 31.5)]),
        ],
    }

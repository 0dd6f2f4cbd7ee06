"""Scores that others published for the protocols of configs/eval, to show results beside.

A row holds the scores of one network by one protocol. To add one, append a `Published` to `PUBLISHED`: the protocol and
its variant as on the command line, the network as its owners call it, mean IoU (or what the protocol is known by) in
percent for each data set by its kind (`voc`, `ade20k`, `cityscapes`, ...), and the publication with its table. Only
numbers that were read in that table. docs/evaluation.md is filled from here. A config whose results reports shall show
beside its rows has an entry in `FOLLOWED`.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from croc_jax.evaluation.registry import find_protocols
from croc_jax.report.paper import LINEAR, PAPER, PAPER_DATASETS, TABLES, UNSUPERVISED


class Published(NamedTuple):
    """Scores of one network.

    Attributes:
        config: config file and variant that follow the protocol, such as "linear.py:dinov2".
        network: method and architecture, such as "DINOv2 ViT-S/14".
        scores: main score in percent, by kind of data set.
        source: publication and table.
    """

    config: str
    network: str
    scores: Mapping[str, float]
    source: str


class Followed(NamedTuple):
    """The protocol of a config, and the settings in which it differs from the protocol's defaults."""

    protocol: str
    settings: Mapping[str, Any]


_HUMMINGBIRD: dict[str, Any] = {
    "image_size": (518, 518),
    "score_size": (518, 518),
    "whole_patches": True,
    "memory_size": 10_240_000,
    "sampling": "class_balanced",
    "memory_epochs": 2,
    "augmentation": "crop_jitter",
    "interpolation": "bilinear",
    "ignored": "first",
}
_DIP = _HUMMINGBIRD | {"image_size": (504, 504), "score_size": (504, 504), "temperature": 0.07}
FOLLOWED = {
    "linear.py:dinov2": Followed("linear_crops", {}),
    "linear.py:dinov3": Followed(
        "linear_crops",
        {
            "antialias": True,
            "saturation_kind": "gray",
            "hue": 0.5,
            "dropout": 0.1,
            "weight_decay": 1e-3,
            "schedule": "cosine",
        },
    ),
    "logreg.py": Followed("logreg", {}),
    "knn_segmentation.py": Followed("knn_segmentation", {}),
    "retrieval.py:hummingbird": Followed("retrieval", _HUMMINGBIRD),
    "retrieval.py:dip": Followed("retrieval", _DIP),
    "retrieval.py:dip_ade20k": Followed("retrieval", _DIP | {"ignored": "scored"}),
}


def published_for(protocol: str, settings: Mapping[str, Any], kind: str) -> list[Published]:
    """Returns the rows that a result compares with: of its protocol, its settings but for seeds, and its data set.

    Args:
        protocol: name of the protocol.
        settings: the group of that name in the fingerprint of results.json.
        kind: kind of data set.
    """

    def is_followed(config: str) -> bool:
        followed = FOLLOWED.get(config)
        if followed is None or followed.protocol != protocol:
            return False
        expected = dataclasses.asdict(find_protocols()[protocol].config(**followed.settings))
        expected = json.loads(json.dumps({name: value for name, value in expected.items() if name != "seed"}))
        return all(settings.get(name) == value for name, value in expected.items())

    return [row for row in PUBLISHED if kind in row.scores and is_followed(row.config)]


def _three(ade20k: float, cityscapes: float, voc: float) -> dict[str, float]:
    return {"ade20k": ade20k, "cityscapes": cityscapes, "voc": voc}


def _of_paper() -> Iterator[Published]:
    """Yields the rows of the paper's tables of protocols, of CrOC and of its nearest rivals."""
    configs = {LINEAR: "linear.py:paper", UNSUPERVISED: "unsupervised.py"}
    kinds = {name: kind for kind, name in PAPER_DATASETS.items()}
    for table in (table for table in TABLES if not table.setting):
        for row in table.rows:
            if row.label.startswith(("CrOC", "DINO,")):
                scores = dict(zip((kinds[name] for name in table.datasets), row.scores, strict=True))
                yield Published(configs[table.protocols[0]], row.label, scores, f"{PAPER}, Table {table.number}")


_DINOV2 = "DINOv2, arXiv:2304.07193v2, Table 10, lin."
_DINOV3 = "DINOv3, MODEL_CARD.md of facebookresearch/dinov3; sweep of learning rate and decay"
_CAPI = "CAPI, arXiv:2502.08769v1, Table 7, with standardization"
_CAPI_CARD = "README.md of facebookresearch/capi"
_OPEN_HUMMINGBIRD = "README.md of vpariza/open-hummingbird-eval"
_AT_504 = f"{_OPEN_HUMMINGBIRD}, at 504 px"
_DIP_TABLE = "DIP, arXiv:2506.18463v3, Table 1"

PUBLISHED: tuple[Published, ...] = (
    *_of_paper(),
    Published("linear.py:dinov2", "DINOv2 ViT-S/14", _three(44.3, 66.6, 81.1), _DINOV2),
    Published("linear.py:dinov2", "DINOv2 ViT-B/14", _three(47.3, 69.4, 82.5), _DINOV2),
    Published("linear.py:dinov2", "DINOv2 ViT-L/14", _three(47.7, 70.3, 82.1), _DINOV2),
    Published("linear.py:dinov2", "DINOv2 ViT-g/14", _three(49.0, 71.3, 83.0), _DINOV2),
    Published("linear.py:dinov2", "DINO ViT-B/8", _three(31.8, 56.9, 66.4), _DINOV2),
    Published("linear.py:dinov2", "iBOT ViT-L/16", _three(44.6, 64.8, 82.3), _DINOV2),
    Published("linear.py:dinov2", "MAE ViT-H/14", _three(33.3, 58.4, 67.6), _DINOV2),
    Published("linear.py:dinov2", "OpenCLIP ViT-G/14", _three(39.3, 60.3, 71.4), _DINOV2),
    Published("linear.py:dinov3", "DINOv3 ViT-S/16", {"ade20k": 47.0}, _DINOV3),
    Published("linear.py:dinov3", "DINOv3 ViT-S+/16", {"ade20k": 48.8}, _DINOV3),
    Published("linear.py:dinov3", "DINOv3 ViT-B/16", {"ade20k": 51.8}, _DINOV3),
    Published("linear.py:dinov3", "DINOv3 ViT-L/16", {"ade20k": 54.9}, _DINOV3),
    Published("linear.py:dinov3", "DINOv3 ViT-H+/16", {"ade20k": 54.8}, _DINOV3),
    Published("linear.py:dinov3", "DINOv3 ViT-7B/16", {"ade20k": 55.9}, _DINOV3),
    Published("linear.py:dinov3", "DINOv3 ConvNeXt-T", {"ade20k": 42.7}, _DINOV3),
    Published("linear.py:dinov3", "DINOv3 ConvNeXt-S", {"ade20k": 44.8}, _DINOV3),
    Published("linear.py:dinov3", "DINOv3 ConvNeXt-B", {"ade20k": 46.3}, _DINOV3),
    Published("linear.py:dinov3", "DINOv3 ConvNeXt-L", {"ade20k": 47.8}, _DINOV3),
    Published("logreg.py", "CAPI", _three(37.7, 44.3, 73.3), _CAPI),
    Published("logreg.py", "AIM-600M", _three(31.5, 38.2, 67.0), _CAPI),
    Published("logreg.py", "DINOv2 ViT-g/14, registers", _three(39.0, 46.8, 72.8), _CAPI),
    Published("logreg.py", "I-JEPA ViT-H/14, IN-1k", _three(25.7, 34.5, 63.6), _CAPI),
    Published("logreg.py", "I-JEPA ViT-H/14, IN-22k", _three(26.4, 34.2, 64.2), _CAPI),
    Published("logreg.py", "MAE ViT-L/16", _three(27.4, 38.5, 61.5), _CAPI),
    Published("knn_segmentation.py", "CAPI", _three(33.0, 39.2, 65.2), _CAPI),
    Published("knn_segmentation.py", "AIM-600M", {"cityscapes": 32.1, "voc": 60.2}, _CAPI),
    Published("knn_segmentation.py", "DINOv2 ViT-g/14, registers", _three(34.0, 42.0, 63.0), _CAPI),
    Published("knn_segmentation.py", "I-JEPA ViT-H/14, IN-1k", _three(20.8, 26.4, 56.7), _CAPI),
    Published("knn_segmentation.py", "I-JEPA ViT-H/14, IN-22k", _three(18.9, 23.2, 55.0), _CAPI),
    Published("knn_segmentation.py", "MAE ViT-L/16", _three(21.5, 32.8, 53.7), _CAPI),
    Published("knn_segmentation.py", "CAPI ViT-L/14, Places205", {"ade20k": 35.2}, _CAPI_CARD),
    Published("knn_segmentation.py", "CAPI ViT-L/14, LVD-142M", {"ade20k": 32.1}, _CAPI_CARD),
    Published("knn_segmentation.py", "CAPI ViT-L/14, IN-22k", {"ade20k": 29.7}, _CAPI_CARD),
    Published("knn_segmentation.py", "CAPI ViT-L/14, IN-1k", {"ade20k": 29.2}, _CAPI_CARD),
    Published("retrieval.py:hummingbird", "DINO ViT-S/16", {"voc": 46.6}, _OPEN_HUMMINGBIRD),
    Published("retrieval.py:hummingbird", "DINO ViT-B/16", {"voc": 55.7}, _OPEN_HUMMINGBIRD),
    Published("retrieval.py:hummingbird", "DINOv2 ViT-S/14", {"voc": 77.0}, _AT_504),
    Published("retrieval.py:hummingbird", "DINOv2 ViT-B/14", {"voc": 76.9}, _AT_504),
    Published("retrieval.py:hummingbird", "DINOv2 ViT-L/14", {"voc": 74.8}, _AT_504),
    Published("retrieval.py:hummingbird", "DINOv2 ViT-g/14", {"voc": 73.6}, _AT_504),
    Published("retrieval.py:dip", "DINOv2R ViT-S/14", {"voc": 79.4}, _DIP_TABLE),
    Published("retrieval.py:dip", "NeCo ViT-S/14", {"voc": 81.0}, _DIP_TABLE),
    Published("retrieval.py:dip", "DIP ViT-S/14", {"voc": 81.0}, _DIP_TABLE),
    Published("retrieval.py:dip", "DINOv2R ViT-B/14", {"voc": 79.0}, _DIP_TABLE),
    Published("retrieval.py:dip", "NeCo ViT-B/14", {"voc": 82.4}, _DIP_TABLE),
    Published("retrieval.py:dip", "DIP ViT-B/14", {"voc": 82.1}, _DIP_TABLE),
    Published("retrieval.py:dip_ade20k", "DINOv2R ViT-S/14", {"ade20k": 39.3}, _DIP_TABLE),
    Published("retrieval.py:dip_ade20k", "NeCo ViT-S/14", {"ade20k": 38.9}, _DIP_TABLE),
    Published("retrieval.py:dip_ade20k", "DIP ViT-S/14", {"ade20k": 39.7}, _DIP_TABLE),
    Published("retrieval.py:dip_ade20k", "DINOv2R ViT-B/14", {"ade20k": 40.8}, _DIP_TABLE),
    Published("retrieval.py:dip_ade20k", "NeCo ViT-B/14", {"ade20k": 41.2}, _DIP_TABLE),
    Published("retrieval.py:dip_ade20k", "DIP ViT-B/14", {"ade20k": 42.6}, _DIP_TABLE),
)

"""Every protocol, as its config sets it up, scores transformers; some also networks without attention."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.evaluation import FrozenFeatures, MemoryBudget, find_protocols, get_protocol
from croc_jax.evaluation.classification import ClassificationConfig
from croc_jax.evaluation.davis import DavisConfig
from croc_jax.evaluation.discovery import DiscoveryConfig
from croc_jax.evaluation.knn import KnnConfig
from croc_jax.evaluation.knn_segmentation import KnnSegmentationConfig
from croc_jax.evaluation.linear_crops import LinearCropsConfig, check_colors
from croc_jax.evaluation.logreg import LogregConfig
from croc_jax.evaluation.results import describe_counts
from croc_jax.evaluation.retrieval import RetrievalConfig
from croc_jax.evaluation.segmentation import SegmentationConfig
from croc_jax.evaluation.unsupervised import UnsupervisedConfig
from croc_jax.models import BackboneConfig, make_backbone
from croc_jax.pixel_format import PixelFormat
from tests.data.tiny_sets import write_voc_boxes
from tests.evaluation.conftest import read_config, score
from tests.evaluation.test_davis import write_davis


@pytest.fixture(scope="module")
def features(backbone, params):
    return FrozenFeatures(backbone, params, remember=True)


@pytest.fixture(scope="module")
def resnet_features():
    config = BackboneConfig(variant="resnet_50", width=64, stages=(1, 1, 1, 1), patch_size=8, dtype="float32")
    module = make_backbone(config, image_size=32)
    weights = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    return FrozenFeatures(module, weights, remember=True)


@pytest.fixture(scope="module")
def roots(folder, classes, tmp_path_factory):
    """A data set for each protocol."""
    root = tmp_path_factory.mktemp("roots")
    write_davis(root / "davis", names=("still",), count=3)
    ground = np.random.default_rng(0).integers(60, 90, (48, 64, 3), np.uint8)
    ground[16:32, 32:56] = (240, 40, 20)
    write_voc_boxes(root / "voc", [ground], [[(33, 17, 56, 32, "0")]])
    dense = dict.fromkeys(
        ("linear", "linear:dinov2", "logreg", "unsupervised", "retrieval", "knn_segmentation"), folder
    )
    return dense | {"knn": classes, "classification": classes, "davis": root / "davis", "discovery": root / "voc"}


# Settings, and the least score. Random weights separate places as well as colors: hence many clusters, and the nearest
# neighbor alone.
SETTINGS = {
    "linear": ({"image_size": (24, 48), "train_size": (12, 24), "epochs": 20}, 70),
    "linear:dinov2": (
        {
            "short_side": 24,
            "crop_size": 24,
            "stride": 17,
            "lr": 0.2,
            "warmup_iterations": 2,
            "iterations": 12,
            "batch_size": 4,
        },
        70,
    ),
    "logreg": ({"image_size": (24, 48), "c_values": (1e-6, 1.0), "validation_share": 0.2, "max_iterations": 12}, 70),
    "unsupervised": (
        {"image_size": (24, 48), "label_size": (24, 48), "seeds": (0, 1), "num_clusters": 30, "matching": "greedy"},
        55,
    ),
    "retrieval": ({"image_size": (24, 48), "memory_size": 90, "num_neighbors": 1}, 80),
    "knn_segmentation": (
        {"image_size": (24, 48), "neighbors": (1,), "distances": ("cosine",), "standardize": False},
        50,
    ),
    "knn": ({"resize": 18, "image_size": 16}, 60),
    "classification": ({"resize": 18, "image_size": 16}, 90),
    "davis": ({"short_side": 64, "multiple": 8, "topk": 1}, 50),
    "discovery": ({"tokens": "last", "centered": True}, 0),
}
CLASSES = "3 classes, 3 classes in labels, 3 classes predicted"
COUNTS = {
    "linear": f"5 images, 9 training images, {CLASSES}",
    "linear:dinov2": f"5 images, 9 training images, {CLASSES}",
    "logreg": f"5 images, 9 training images, {CLASSES}",
    "unsupervised": f"5 images, 360 tokens, 30 clusters, {CLASSES}",
    "retrieval": f"5 images, 9 training images, {CLASSES}",
    "knn_segmentation": "5 images, 9 training images, 1 neighbors, 4 classes, 3 classes in labels, 4 classes predicted",
    "knn": f"20 neighbors, 15 images, 36 training images, {CLASSES}",
    "classification": f"15 images, 36 training images, {CLASSES}",
    "davis": "1 sequences, 1 frames, 2 objects",
    "discovery": "1 images, 1 scored, 1 boxes",
}
PICTURES = {"davis": ["still.png"], "discovery": ["typical.png"], "knn": [], "classification": []}


def check(name, features, roots, output):
    """Returns the fingerprint of a protocol, after checks of its result."""
    settings, least = SETTINGS[name]
    protocol = get_protocol(read_config(name)["protocol"])
    overrides = {f"{protocol.name}__{field}": value for field, value in settings.items()}
    result, fingerprint = score(name, features, output, dataset__root=roots[name], **overrides)
    assert result.scores[protocol.main_score] >= least and set(protocol.score_labels) <= set(result.scores)
    assert next(iter(protocol.score_labels)) == protocol.main_score
    assert bool(protocol.class_scores) == (protocol.class_scores in result.scores)
    assert json.loads(json.dumps(fingerprint))[protocol.name].items() >= json.loads(json.dumps(settings)).items()
    assert fingerprint["conventions"] == protocol.conventions and fingerprint["dataset"] == result.dataset
    assert describe_counts(result.scores) == COUNTS[name]
    assert result.root == roots[name] or result.root.is_relative_to(roots[name])
    assert min(result.seconds.values()) >= 0
    expected = PICTURES.get(name, ["best.png", "typical.png", "worst.png"])
    assert sorted(file.name for file in output.glob("*.png")) == expected
    return fingerprint


@pytest.mark.parametrize("name", SETTINGS)
def test_every_protocol_scores_and_describes_what_moves_the_score(features, roots, tmp_path, name):
    fingerprint = check(name, features, roots, tmp_path)
    if name == "retrieval":
        assert fingerprint["retrieval"]["memory_patches"] == 90
        counts = {"num_train": 9, "num_val": 5, "num_classes": 3}
        names = {"kind": "folder", "name": roots[name].name, "train_split": "train", "val_split": "val"}
        digest = fingerprint["dataset"]["digest"]
        assert fingerprint["dataset"] == names | counts | {"digest": digest} and len(digest) == 16


@pytest.mark.parametrize("name", ["linear", "knn", "discovery"])
def test_networks_without_attention(resnet_features, roots, tmp_path, name):
    check(name, resnet_features, roots, tmp_path)


def test_mistakes_in_a_config_are_named(resnet_features, roots, tmp_path):
    with pytest.raises(ValueError, match=f"protocol='pixels': choose one of {', '.join(find_protocols())}"):
        get_protocol("pixels")
    with pytest.raises(ValueError, match="dataset.root is empty: name a data set"):
        score("knn", None)
    with pytest.raises(ValueError, match="no folder"):
        score("linear", None, dataset__root=tmp_path)
    with pytest.raises(ValueError, match="saturation=0.5, hue=0.1: only red, green and blue have them, .* 5 chan"):
        check_colors(LinearCropsConfig(), PixelFormat(channels=5))
    check_colors(LinearCropsConfig(saturation=0, hue=0), PixelFormat(channels=5))
    with pytest.raises(ValueError, match="tokens='keys': this backbone has no attention; choose 'last'"):
        score("discovery", resnet_features, dataset__root=roots["discovery"])


IMPOSSIBLE = {
    MemoryBudget: {"batch_size": 0, "num_threads": 0},
    SegmentationConfig: {"normalization": "batch", "optimizer": "lars", "schedule": "linear", "lr": 0.0, "epochs": 0,
                         "batch_size": -1, "image_size": (0, 4), "train_size": (3,)},
    LinearCropsConfig: {"crop_size": 513, "short_side": 0, "scale": (2, 1), "max_class_share": 0, "flip": 1.5, "hue": 1,
                        "brightness": -0.1, "saturation_kind": "lab", "stride": 513, "dropout": 1.0, "lr": 0.0,
                        "schedule": "step", "warmup_iterations": 40_000, "iterations": 0, "batch_size": 0},
    LogregConfig: {"image_size": (224,), "c_values": (), "validation_share": 0.0, "max_iterations": 0, "memory": 0},
    ClassificationConfig: {"feature": "max", "image_size": 300, "normalization": "batch", "lr": 0.0, "batch_size": 0},
    KnnConfig: {"feature": "max", "image_size": 300, "neighbors": (0,), "temperature": 0.0},
    RetrievalConfig: {"memory_size": 0, "num_neighbors": 0, "temperature": 0.0, "image_size": (24,),
                      "score_size": (None,), "sampling": "even", "memory_epochs": 2, "augmentation": "flip",
                      "interpolation": "nearest", "ignored": "second"},
    KnnSegmentationConfig: {"neighbors": (), "distances": ("l1",), "validation_share": 1.0},
    UnsupervisedConfig: {"matching": "best", "seeds": (), "max_iterations": 0},
    DiscoveryConfig: {"tokens": "cls", "num_patches": 0},
    DavisConfig: {"short_side": 0, "multiple": 0, "num_last_frames": -1, "neighborhood": -2, "topk": 0,
                  "temperature": 0},
}  # fmt: skip


@pytest.mark.parametrize("kind", IMPOSSIBLE, ids=lambda kind: kind.__name__)
def test_impossible_settings_are_named(kind):
    for field, value in IMPOSSIBLE[kind].items():
        with pytest.raises(ValueError, match=f"{field}="):
            kind(**{field: value})

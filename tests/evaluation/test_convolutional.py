"""Every protocol of launch/evaluate.py scores networks without attention, from their own configs."""

import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from croc_jax.checkpoints.manager import Checkpointer
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.evaluation import FrozenFeatures
from croc_jax.losses import ObjectiveConfig
from croc_jax.models import BackboneConfig, make_backbone
from croc_jax.runtime.workdir import init_workdir
from tests.data.tiny_sets import write_voc_boxes
from tests.evaluation.conftest import ROOT
from tests.evaluation.video.test_evaluate import write_davis
from tests.training.tiny import first_state, tiny_recipe

NETWORKS = ("resnet_50", "convnext_tiny")


def recipe_of(variant):
    # Of equal width and grid, so that what follows the network is compiled once for both.
    backbone = BackboneConfig(variant=variant, width=64, stages=(1, 1, 1, 1), patch_size=8, dtype="float32")
    views = ViewsConfig(crop_size=32)
    return tiny_recipe(backbone=backbone, objective=ObjectiveConfig(tokens="last"), data=DataConfig(views=views))


@functools.cache
def features_of(variant):
    recipe = recipe_of(variant)
    module = make_backbone(recipe.backbone, image_size=recipe.data.views.crop_size)
    return FrozenFeatures(module, first_state(recipe).teacher["backbone"], remember=True)


@pytest.fixture(params=NETWORKS)
def features(request):
    return features_of(request.param)


# Settings, and the least score. Weights that nobody trained tell places apart as well as colors: hence many clusters,
# and the nearest neighbor alone.
DENSE = {
    "linear": ({"train_size": "12,24", "epochs": 20}, 70),
    "unsupervised": ({"label_size": "24,48", "seeds": "0,1", "num_clusters": 30, "matching": "greedy"}, 55),
    "retrieval": ({"memory_size": 300, "num_neighbors": 1}, 95),
}


@pytest.mark.parametrize("protocol", DENSE)
def test_protocols_with_pixel_labels(plan, features, folder, tmp_path, protocol):
    settings, least = DENSE[protocol]
    overrides = {f"{protocol}__{name}": value for name, value in ({"image_size": "24,48"} | settings).items()}
    outcome = plan(protocol, features, tmp_path / "out", dataset__root=folder, **overrides)
    assert outcome.protocol == protocol and outcome.scores["miou"] > least and len(outcome.scores["class_iou"]) == 3


@pytest.mark.parametrize("protocol", ["knn", "classification"])
def test_protocols_with_classes(plan, features, classes, tmp_path, protocol):
    overrides = {f"{protocol}__resize": 18, f"{protocol}__image_size": 16}
    outcome = plan(protocol, features, tmp_path / "out", dataset__root=classes, **overrides)
    assert outcome.scores["top1"] == 100 and outcome.settings[protocol]["image_size"] == 16


def test_videos(plan, features, tmp_path):
    write_davis(tmp_path / "davis", names=("still",), count=3)
    overrides = {"dataset__root": tmp_path / "davis", "video__short_side": 64, "video__multiple": 8, "video__topk": 1}
    outcome = plan("davis", features, tmp_path / "out", **overrides)
    assert set(outcome.scores["objects"]) == {"still/1", "still/2"} and outcome.scores["jf_mean"] > 50


def test_discovery_takes_the_feature_map_and_says_so(plan, features, tmp_path):
    ground = np.random.default_rng(0).integers(60, 90, (48, 64, 3), np.uint8)
    ground[16:32, 32:56] = (240, 40, 20)
    write_voc_boxes(tmp_path / "data", [ground], [[(33, 17, 56, 32, "0")]])
    run = functools.partial(plan, "discovery", features, dataset__root=tmp_path / "data")
    with pytest.raises(ValueError, match="tokens='keys': this backbone has no attention; choose 'last'"):
        run(tmp_path / "keys")
    outcome = run(tmp_path / "last", discovery__tokens="last", discovery__centered=True)
    assert outcome.scores["num_scored"] == 1 and outcome.settings["discovery"]["tokens"] == "last"


def test_the_program_scores_a_run_at_another_distance_of_tokens(folder, tmp_path):
    recipe = recipe_of("resnet_50")
    init_workdir(tmp_path, recipe)
    saver = Checkpointer(tmp_path, recipe)
    saver.save(3, jax.device_put(first_state(recipe)), wait=True)
    saver.close()
    command = [
        sys.executable, "launch/evaluate.py", "--config=configs/eval/retrieval.py", f"--checkpoint={tmp_path}",
        "--patch_size=16", f"--output={tmp_path / 'out'}", f"--config.dataset.root={folder}",
        "--config.retrieval.image_size=48,96", "--config.retrieval.memory_size=300",
        "--config.retrieval.num_neighbors=1",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["step"] == 3 and results["miou"] > 95
    assert results["fingerprint"]["backbone"].items() >= {"variant": "resnet_50", "patch_size": 16}.items()

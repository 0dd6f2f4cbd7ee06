"""Weights of a run, at its start and later; the program on both."""

import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from croc_jax.checkpoints.manager import Checkpointer
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.evaluation.backbones import load_backbone, random_backbone
from croc_jax.losses import ObjectiveConfig
from croc_jax.models import BackboneConfig
from croc_jax.runtime.workdir import init_workdir
from croc_jax.training.state import init_state
from tests.evaluation.conftest import ROOT
from tests.training.tiny import tiny_recipe

RECIPE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({"backbone": {"width": 24, "depth": 1, "num_heads": 2, "patch_size": 4},
                       "data": {"views": {"crop_size": 16}}})
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Holds step 7 of a run of a tiny ResNet, whose weights are those of its start."""
    folder = tmp_path_factory.mktemp("workdir")
    backbone = BackboneConfig(variant="resnet_50", width=64, stages=(1, 1, 1, 1), patch_size=8, dtype="float32")
    recipe = tiny_recipe(
        backbone=backbone, objective=ObjectiveConfig(tokens="last"), data=DataConfig(views=ViewsConfig(crop_size=32))
    )
    init_workdir(folder, recipe)
    checkpointer = Checkpointer(folder, recipe)
    state = jax.jit(lambda: init_state(recipe, steps_per_epoch=2))()
    checkpointer.save(7, state.replace(step=state.step + 7), wait=True)
    checkpointer.close()
    return folder


def test_random_is_the_start_of_the_run(workdir):
    for path, which in ((workdir, "teacher"), (workdir / "checkpoints" / "7", "student")):
        trained = load_backbone(path, which=which)
        assert trained.step == 7 and trained.which == which
        start = random_backbone(trained.recipe)
        assert start.module == trained.module and (start.step, start.which) == (0, "random")
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), trained.params, start.params)


def test_impossible_requests_are_named(workdir, backbone, params):
    with pytest.raises(ValueError, match="num_heads=2: the config of the run"):
        load_backbone(workdir, num_heads=2)
    trained = load_backbone(workdir)
    with pytest.raises(ValueError, match=r"images \(1, 8, 8\) uint8: expected \[b H W 3\] uint8"):
        trained.encode(np.zeros((1, 8, 8), np.uint8))
    images = np.zeros((1, 32, 32, 3), np.uint8)
    assert trained.encode(images).patches.shape == (1, 16, 64)
    assert trained.with_patch_size(16).encode(images).patches.shape == (1, 4, 64)
    with pytest.raises(ValueError, match="patch_size=8: this transformer was trained on patches of 4 pixels"):
        trained._replace(module=backbone).with_patch_size(8)


def evaluate(output, folder, *flags):
    command = [sys.executable, "launch/evaluate.py", f"--output={output}", f"--config.dataset.root={folder}", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


LINEAR = (
    "--config=configs/eval/linear.py",
    "--config.linear.image_size=24,36",
    "--config.linear.train_size=12,18",
    "--config.linear.epochs=20",
)
RETRIEVAL = (
    "--config=configs/eval/retrieval.py",
    "--config.retrieval.memory_size=300",
    "--config.retrieval.num_neighbors=1",
)


def test_several_protocols_on_random_weights(folder, tmp_path):
    (tmp_path / "tiny.py").write_text(RECIPE)
    flags = ("--checkpoint=random", f"--config.recipe={tmp_path / 'tiny.py'}", "--config.retrieval.image_size=24,36")
    done = evaluate(tmp_path, folder, *LINEAR, *RETRIEVAL, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mIoU") == 2
    for name in ("linear", "retrieval"):
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert (results["protocol"], results["checkpoint"], results["step"]) == (name, "random", 0)
        assert results["dataset"] == str(folder)
        assert results["miou"] > 85
        assert np.mean(list(results["class_iou"].values())) == pytest.approx(results["miou"])
        phases = [value for phase, value in results["seconds"].items() if phase != "total"]
        assert results["seconds"]["total"] == pytest.approx(sum(phases))
        fingerprint = results["fingerprint"]
        assert fingerprint[name]["image_size"] == [24, 36] and fingerprint["which"] == "random"
        assert fingerprint["backbone"]["width"] == 24 and len(fingerprint["digest"]) == 12
        for picture_name in ("typical", "best", "worst"):
            with Image.open(tmp_path / name / f"{picture_name}.png") as picture:
                assert picture.width > 1000


def test_a_run_at_another_distance_of_tokens(workdir, folder, tmp_path):
    flags = (f"--checkpoint={workdir}", "--patch_size=16", "--config.retrieval.image_size=48,96")
    done = evaluate(tmp_path, folder, *RETRIEVAL, *flags)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["step"] == 7 and results["miou"] > 95 and results["fingerprint"]["which"] == "teacher"
    assert results["fingerprint"]["backbone"].items() >= {"variant": "resnet_50", "patch_size": 16}.items()


def test_a_mistake_ends_with_one_line(tmp_path):
    done = evaluate(tmp_path, "nowhere", *LINEAR, "--checkpoint=random")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: no folder nowhere/images/train")
    assert not list(tmp_path.iterdir())

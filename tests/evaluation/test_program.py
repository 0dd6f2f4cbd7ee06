"""launch/evaluate.py from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from croc_jax.checkpoints.orbax import Checkpointer
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.evaluation.backbones import random_backbone, trained_backbone
from croc_jax.models import BackboneConfig, HeadConfig
from croc_jax.training.config import Recipe, ScheduleConfig
from croc_jax.training.state import init_state
from croc_jax.training.workdir import claim_workdir
from tests.evaluation.video.test_evaluate import write_davis

ROOT = Path(__file__).parents[2]
RECIPE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({"backbone": {"width": 24, "depth": 1, "num_heads": 2, "patch_size": 4},
                       "data": {"views": {"crop_size": 16}}})
"""


def evaluate(*flags, checkpoint="random", config="configs/eval/linear.py"):
    command = [
        sys.executable,
        "launch/evaluate.py",
        f"--config={config}",
        f"--checkpoint={checkpoint}",
        *flags,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def small_flags(folder, output):
    return (
        f"--output={output}",
        f"--config.dataset.root={folder}",
        "--config.linear.image_size=24,36",
        "--config.linear.train_size=12,18",
        "--config.linear.epochs=20",
    )


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("recipe") / "tiny.py"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def random_results(folder, recipe_file, tmp_path_factory):
    output = tmp_path_factory.mktemp("random")
    done = evaluate(*small_flags(folder, output), f"--config.recipe={recipe_file}")
    assert done.returncode == 0, done.stderr
    assert "mIoU" in done.stdout
    for name in ("typical", "best", "worst"):
        with Image.open(output / f"{name}.png") as picture:
            assert picture.width > 1000
    return json.loads((output / "results.json").read_text())


def test_results_hold_the_score_and_all_that_moves_it(random_results, folder):
    results = random_results
    assert results["protocol"] == "linear" and results["dataset"] == str(folder)
    assert results["checkpoint"] == "random" and results["step"] == 0
    assert results["miou"] > 90
    assert np.mean(list(results["class_iou"].values())) == pytest.approx(results["miou"])
    assert results["seconds"]["total"] == pytest.approx(
        sum(results["seconds"][phase] for phase in ("features", "training", "scoring"))
    )
    fingerprint = results["fingerprint"]
    assert fingerprint["linear"]["epochs"] == 20 and fingerprint["linear"]["image_size"] == [24, 36]
    counts = {"num_train": 9, "num_val": 5, "num_classes": 3}
    names = {"name": folder.name, "train_split": "train", "val_split": "val"}
    assert fingerprint["dataset"] == names | counts
    assert fingerprint["backbone"]["width"] == 24 and len(fingerprint["digest"]) == 12


def test_random_is_the_start_of_the_run(random_results, folder, tmp_path):
    recipe = Recipe(
        backbone=BackboneConfig(width=24, depth=1, num_heads=2, patch_size=4),
        head=HeadConfig(hidden_dim=16, bottleneck_dim=8, num_prototypes=12, num_prototypes_dense=10),
        data=DataConfig(views=ViewsConfig(crop_size=16)),
        schedule=ScheduleConfig(epochs=20),
    )
    claim_workdir(tmp_path, recipe)
    checkpointer = Checkpointer(tmp_path, recipe)
    state = jax.jit(lambda: init_state(recipe, steps_per_epoch=2))()
    checkpointer.save(7, state.replace(step=state.step + 7), wait=True)
    checkpointer.close()
    done = evaluate(*small_flags(folder, tmp_path / "evaluation"), checkpoint=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert results["step"] == 7 and results["fingerprint"]["which"] == "teacher"
    assert results["miou"] == pytest.approx(random_results["miou"], abs=1e-6)
    start = random_backbone(recipe)
    for which in ("teacher", "student"):
        trained = trained_backbone(tmp_path / "checkpoints" / "7", which=which)
        assert trained.recipe == recipe and trained.step == 7 and trained.which == which
        jax.tree.map(np.testing.assert_array_equal, trained.params, start.params)


@pytest.mark.parametrize("protocol", ["unsupervised", "retrieval"])
def test_protocols_without_training(folder, recipe_file, tmp_path, protocol):
    settings = {"unsupervised": ("label_size=24,36", "seeds=0,1"), "retrieval": ("memory_size=300", "num_neighbors=5")}
    done = evaluate(
        f"--output={tmp_path}",
        f"--config.dataset.root={folder}",
        f"--config.recipe={recipe_file}",
        f"--config.{protocol}.image_size=24,36",
        *(f"--config.{protocol}.{setting}" for setting in settings[protocol]),
        config=f"configs/eval/{protocol}.py",
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["protocol"] == protocol and results["miou"] > 85 and len(results["class_iou"]) == 3
    assert results["fingerprint"][protocol]["image_size"] == [24, 36] and results["seconds"]["total"] > 0
    assert results["fingerprint"]["dataset"]["num_val"] == 5
    assert (tmp_path / "worst.png").is_file() and "mIoU" in done.stdout


def test_videos(recipe_file, tmp_path):
    write_davis(tmp_path / "davis")
    done = evaluate(
        f"--output={tmp_path / 'out'}",
        f"--config.dataset.root={tmp_path / 'davis'}",
        f"--config.recipe={recipe_file}",
        "--config.video.short_side=32",
        "--config.video.multiple=8",
        config="configs/eval/davis.py",
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["jf_mean"] == pytest.approx((results["j_mean"] + results["f_mean"]) / 2)
    assert set(results["objects"]) == {f"{name}/{number}" for name in ("still", "slide") for number in (1, 2)}
    assert results["fingerprint"]["dataset"]["sequences"] == ["still", "slide"] and "J&F" in done.stdout


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        (
            "--config.linear.epoch=3",
            ("unknown field epoch", "--config.linear.epoch=3", "did you mean epochs?"),
        ),
        ("--config.dataset.root=nowhere", ("no folder nowhere/images/train",)),
    ],
)
def test_mistakes_end_with_one_line(folder, recipe_file, tmp_path, flag, words):
    done = evaluate(*small_flags(folder, tmp_path), f"--config.recipe={recipe_file}", flag)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and all(word in line for word in words), line
    assert not (tmp_path / "results.json").exists()

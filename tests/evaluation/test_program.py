"""launch/evaluate.py from the command line."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from croc_jax.checkpoints.manager import Checkpointer
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.evaluation import FrozenFeatures
from croc_jax.evaluation.backbones import random_backbone, trained_backbone
from croc_jax.models import BackboneConfig, HeadConfig
from croc_jax.runtime.workdir import init_workdir
from croc_jax.training.config import Recipe, ScheduleConfig
from croc_jax.training.state import init_state
from tests.data.tiny_sets import write_voc_boxes
from tests.evaluation.video.test_evaluate import write_davis

ROOT = Path(__file__).parents[2]
RECIPE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({"backbone": {"width": 24, "depth": 1, "num_heads": 2, "patch_size": 4},
                       "data": {"views": {"crop_size": 16}}})
"""


def evaluate(*flags, checkpoint="random", configs=("linear",)):
    command = [
        sys.executable,
        "launch/evaluate.py",
        *(f"--config=configs/eval/{name}.py" for name in configs),
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


DENSE = ("linear", "unsupervised", "retrieval")


@pytest.fixture(scope="module")
def random_results(folder, recipe_file, tmp_path_factory):
    """All dense protocols in one call."""
    output = tmp_path_factory.mktemp("random")
    done = evaluate(
        *small_flags(folder, output),
        f"--config.recipe={recipe_file}",
        "--config.unsupervised.image_size=24,36",
        "--config.unsupervised.label_size=24,36",
        "--config.unsupervised.seeds=0,1",
        "--config.retrieval.image_size=24,36",
        "--config.retrieval.memory_size=300",
        "--config.retrieval.num_neighbors=5",
        configs=DENSE,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mIoU") == 3
    # Whoever comes first encodes; the others find the features of both splits there.
    for name in DENSE:
        for picture_name in ("typical", "best", "worst"):
            with Image.open(output / name / f"{picture_name}.png") as picture:
                assert picture.width > 1000
    return {name: json.loads((output / name / "results.json").read_text()) for name in DENSE}


def test_results_hold_the_score_and_all_that_moves_it(random_results, folder):
    results = random_results["linear"]
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
    names = {"kind": "folder", "name": folder.name, "train_split": "train", "val_split": "val"}
    assert fingerprint["dataset"] == names | counts
    assert fingerprint["backbone"]["width"] == 24 and len(fingerprint["digest"]) == 12


@pytest.mark.parametrize("protocol", ["unsupervised", "retrieval"])
def test_protocols_without_training(random_results, protocol):
    results = random_results[protocol]
    assert results["protocol"] == protocol and results["miou"] > 85 and len(results["class_iou"]) == 3
    assert results["fingerprint"][protocol]["image_size"] == [24, 36] and results["seconds"]["total"] > 0
    assert results["fingerprint"]["dataset"]["num_val"] == 5


def test_random_is_the_start_of_the_run(random_results, folder, tmp_path):
    recipe = Recipe(
        backbone=BackboneConfig(width=24, depth=1, num_heads=2, patch_size=4),
        head=HeadConfig(hidden_dim=16, bottleneck_dim=8, num_prototypes=12, num_prototypes_dense=10),
        data=DataConfig(views=ViewsConfig(crop_size=16)),
        schedule=ScheduleConfig(epochs=20),
    )
    init_workdir(tmp_path, recipe)
    checkpointer = Checkpointer(tmp_path, recipe)
    state = jax.jit(lambda: init_state(recipe, steps_per_epoch=2))()
    checkpointer.save(7, state.replace(step=state.step + 7), wait=True)
    checkpointer.close()
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6),
        trained_backbone(tmp_path).params,
        random_backbone(recipe).params,
    )
    done = evaluate(*small_flags(folder, tmp_path / "evaluation"), checkpoint=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert results["step"] == 7 and results["fingerprint"]["which"] == "teacher"
    # Two trainings from equal weights were seen to differ by one pixel of 4320, at an edge: 0.035.
    assert results["miou"] == pytest.approx(random_results["linear"]["miou"], abs=0.1)
    start = random_backbone(recipe)
    for which in ("teacher", "student"):
        trained = trained_backbone(tmp_path / "checkpoints" / "7", which=which)
        assert trained.recipe == recipe and trained.step == 7 and trained.which == which
        jax.tree.map(np.testing.assert_array_equal, trained.params, start.params)


def test_videos(plan, backbone, params, tmp_path):
    write_davis(tmp_path / "davis")
    overrides = {"dataset__root": tmp_path / "davis", "video__short_side": 32, "video__multiple": 8}
    outcome = plan("davis", FrozenFeatures(backbone, params), tmp_path / "out", **overrides)
    scores = outcome.scores
    assert outcome.protocol == "video" and scores["jf_mean"] == pytest.approx((scores["j_mean"] + scores["f_mean"]) / 2)
    assert set(scores["objects"]) == {f"{name}/{number}" for name in ("still", "slide") for number in (1, 2)}
    assert outcome.settings["dataset"]["sequences"] == ["still", "slide"]
    assert (tmp_path / "out" / "predictions" / "still" / "00000.png").is_file()


def test_classification_and_neighbors(plan, backbone, params, classes, tmp_path):
    features = FrozenFeatures(backbone, params, remember=True)
    for name in ("knn", "classification"):
        overrides = {f"{name}__{field}": value for field, value in (("resize", 18), ("image_size", 16))}
        outcome = plan(name, features, tmp_path / name, dataset__root=classes, **overrides)
        assert outcome.protocol == name and outcome.scores["top1"] > 80 and outcome.scores["top5"] == 100
        expected = {"num_train": 12, "num_val": 8, "num_classes": 2}
        assert outcome.settings["dataset"].items() >= expected.items() and outcome.settings[name]["resize"] == 18
        json.dumps(outcome.settings)
        if name == "knn":
            # More neighbors than training images are all of these.
            assert outcome.scores["top1_10_neighbors"] == 100 and outcome.scores["top1"] == 100
        else:
            assert set(outcome.scores["class_accuracy"]) == {"red", "blue"}


def test_discovery(plan, backbone, params, tmp_path):
    image = np.zeros((20, 28, 3), np.uint8)
    image[4:12, 8:20] = 230
    write_voc_boxes(tmp_path / "data", [image], [[(9, 5, 20, 12, "0")]])
    outcome = plan("discovery", FrozenFeatures(backbone, params), tmp_path / "out", dataset__root=tmp_path / "data")
    assert outcome.protocol == "discovery" and outcome.scores["corloc"] in (0, 100)
    assert outcome.scores["num_scored"] == outcome.settings["dataset"]["num_images"] == 1
    assert (tmp_path / "out" / "typical.png").is_file()


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        (
            "--config.linear.epoch=3",
            ("unknown field epoch", "--config.linear.epoch=3", "did you mean epochs?"),
        ),
        ("--config.dataset.root=nowhere", ("no folder nowhere/images/train",)),
        ("--config=configs/eval/nothing.py", ("--config=configs/eval/nothing.py: there is no such file",)),
    ],
)
def test_mistakes_end_with_one_line(folder, recipe_file, tmp_path, flag, words):
    done = evaluate(*small_flags(folder, tmp_path), f"--config.recipe={recipe_file}", flag)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and all(word in line for word in words), line
    assert not (tmp_path / "results.json").exists()

"""Weights of a run, at its start and later; launch/evaluate.py on both."""

import json

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
from tests.launch.program import run_program
from tests.training.tiny import first_state, tiny_recipe

RECIPE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({"backbone": {"width": 24, "depth": 1, "num_heads": 2, "patch_size": 4},
                       "data": {"views": {"crop_size": 16}}})
"""


@pytest.fixture(scope="module")
def state():
    """A run of a tiny ResNet: its settings and a state whose student differs from its teacher."""
    backbone = BackboneConfig(variant="resnet_50", width=64, stages=(1, 1, 1, 1), patch_size=8, dtype="float32")
    recipe = tiny_recipe(
        backbone=backbone, objective=ObjectiveConfig(tokens="last"), data=DataConfig(views=ViewsConfig(crop_size=32))
    )
    state = jax.device_put(first_state(recipe))
    student = jax.tree.map(lambda leaf: leaf + 1, state.student)
    return recipe, state.replace(step=state.step + 7, student=student)


@pytest.fixture(scope="module")
def workdir(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workdir")
    init_workdir(folder, state[0])
    checkpointer = Checkpointer(folder, state[0])
    checkpointer.save(7, state[1], wait=True)
    checkpointer.close()
    return folder


def test_load_backbone_restores_teacher_and_student(workdir, state):
    for path, which in ((workdir, "teacher"), (workdir / "checkpoints" / "7", "student")):
        found = load_backbone(path, which=which)
        assert (found.step, found.which, found.recipe) == (7, which, state[0])
        jax.tree.map(np.testing.assert_array_equal, found.params, getattr(state[1], which)["backbone"])


def test_random_backbone_is_the_start_of_a_run():
    recipe = tiny_recipe()
    found, start = random_backbone(recipe), jax.jit(lambda: init_state(recipe, steps_per_epoch=2).teacher["backbone"])()
    assert (found.step, found.which) == (0, "random")
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), found.params, start)


def test_impossible_requests_are_named(workdir, backbone):
    with pytest.raises(ValueError, match="num_heads=2: the config of the run"):
        load_backbone(workdir, num_heads=2)
    trained = load_backbone(workdir)
    with pytest.raises(ValueError, match=r"images \(1, 8, 8\) uint8: expected \[b H W 3\] uint8"):
        trained.encode(np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="patch_size=8: this transformer was trained on patches of 4 pixels"):
        trained._replace(module=backbone).with_patch_size(8)


def test_evaluate_runs_several_protocols_on_random_weights(folder, tmp_path, capsys):
    (tmp_path / "tiny.py").write_text(RECIPE)
    protocols = {
        "linear": {"image_size": "24,36", "train_size": "12,18", "epochs": 20},
        "retrieval": {"image_size": "24,36", "memory_size": 300, "num_neighbors": 1},
    }
    run_program(
        "evaluate", "--checkpoint=random", f"--output={tmp_path}", f"--config.dataset.root={folder}",
        f"--config.recipe={tmp_path / 'tiny.py'}", *(f"--config=configs/eval/{name}.py" for name in protocols),
        *(f"--config.{name}.{field}={value}" for name, one in protocols.items() for field, value in one.items()),
    )  # fmt: skip
    assert capsys.readouterr().out.count("mIoU") == 2
    for name in protocols:
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert (results["protocol"], results["checkpoint"], results["step"]) == (name, "random", 0)
        assert results["dataset"] == str(folder) and results["miou"] > 85
        assert np.mean(list(results["class_iou"].values())) == pytest.approx(results["miou"])
        total = results["seconds"].pop("total")
        assert total == pytest.approx(sum(results["seconds"].values()))
        fingerprint = results["fingerprint"]
        assert fingerprint[name]["image_size"] == [24, 36] and fingerprint["which"] == "random"
        assert fingerprint["backbone"]["width"] == 24 and len(fingerprint["digest"]) == 12
        for picture_name in ("typical", "best", "worst"):
            with Image.open(tmp_path / name / f"{picture_name}.png") as picture:
                assert picture.width > 1000


def test_evaluate_sets_the_distance_of_the_tokens_of_a_run(workdir, classes, tmp_path):
    sizes = "--config.knn.resize=36", "--config.knn.image_size=32", "--patch_size=16"
    files = f"--checkpoint={workdir}", f"--config.dataset.root={classes}", f"--output={tmp_path}"
    run_program("evaluate", "--config=configs/eval/knn.py", *files, *sizes)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["step"] == 7 and results["top1"] > 60 and results["fingerprint"]["which"] == "teacher"
    expected = {"variant": "resnet_50", "patch_size": 16, "image_mean": [0.485, 0.456, 0.406], "prefix": ""}
    assert results["fingerprint"]["backbone"].items() >= expected.items()


def test_evaluate_finds_mistakes_before_it_writes(tmp_path):
    with pytest.raises(ValueError, match="no folder nowhere/images/train"):
        flags = "--config=configs/eval/linear.py", "--checkpoint=random", "--config.dataset.root=nowhere"
        run_program("evaluate", f"--output={tmp_path}", *flags)
    assert not list(tmp_path.iterdir())

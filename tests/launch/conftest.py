"""Labeled images for the programs, and the modules of an experiment."""

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.launch.program import on_command_line
from tests.launch.tiny_experiment import photos


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Twelve images with labels."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / split / f"{index}.png")
            Image.fromarray((pixels[..., 0] > 127).astype(np.uint8)).save(folder / "labels" / split / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def modules():
    """The modules of the program by name."""
    names = ("experiment_plan", "experiment_jobs", "experiment_progress", "experiment_results")
    with on_command_line("experiment"):
        yield SimpleNamespace(**{name.partition("_")[2]: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def places(modules, data, tmp_path):
    """Labeled data below a folder, and a folder of other images to train on."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bands").symlink_to(data)
    return modules.plan.Places(tmp_path / "work", photos(tmp_path / "images", 9), tmp_path / "data", "reporting")

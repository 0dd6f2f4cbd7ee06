"""A folder of a few photos, one of them damaged, and a small network's clusters of them."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from croc_jax.clustering import ClusteringConfig
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.data.sources import FolderSource
from croc_jax.evaluation.backbones import random_backbone
from croc_jax.report.inspect import explore
from croc_jax.training.config import ScheduleConfig
from tests.training.tiny import tiny_recipe


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Six images of different sizes, and "2.png", which is cut short."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("photos")
    for index in range(7):
        height, width = 40 + 6 * index, 70 - 3 * index
        pixels = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(folder / f"{index}.png")
    broken = folder / "2.png"
    broken.write_bytes(broken.read_bytes()[:100])
    return folder


@pytest.fixture(scope="session")
def recipe(photos):
    return dataclasses.replace(
        tiny_recipe(),
        clustering=ClusteringConfig(k_start=5, k_max=4),
        data=DataConfig(folders=(str(photos),), views=ViewsConfig(crop_size=24)),
        schedule=ScheduleConfig(epochs=4, batch_size=4),
    )


@pytest.fixture(scope="session")
def backbone(recipe):
    return random_backbone(recipe)


@pytest.fixture(scope="session")
def found(backbone, photos):
    return explore(backbone, FolderSource(photos), num_images=64)

"""A tiny backbone, tiny labeled sets that its features separate, and protocols as configs/eval set them up."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from croc_jax.evaluation import get_protocol
from croc_jax.models import BackboneConfig, make_backbone

ROOT = Path(__file__).parents[2]
COLORS = np.array([[200, 60, 60], [60, 190, 80], [70, 80, 210]], np.uint8)


@pytest.fixture(scope="session")
def backbone():
    return make_backbone(
        BackboneConfig(variant="vit_tiny", width=24, depth=1, num_heads=2, patch_size=4), image_size=16
    )


@pytest.fixture(scope="session")
def params(backbone):
    return jax.jit(backbone.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Nine training and five validation images: vertical bands, a color a class; sizes vary."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("bands")
    for split, count in (("train", 9), ("val", 5)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            size = (24, 36) if index % 2 else (32, 48)
            labels = np.repeat(rng.permutation(3), size[1] // 3)[None].repeat(size[0], 0).astype(np.uint8)
            image = np.clip(COLORS[labels] + rng.normal(0, 10, (*size, 3)), 0, 255).astype(np.uint8)
            labels[:3] = 255
            Image.fromarray(image).save(root / "images" / split / f"{index}.png")
            Image.fromarray(labels).save(root / "labels" / split / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def classes(tmp_path_factory):
    """Twelve training and five validation images of noise around each of three colors."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("classes")
    for name, color in zip(("red", "green", "blue"), COLORS, strict=True):
        for split, count in (("train", 12), ("val", 5)):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(color, 25, (20, 26, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def read_config(name, **overrides):
    """Returns the content of a file in configs/eval, such as "linear:dinov2", with overrides such as knn__resize=18."""
    file, *variant = name.split(":")
    config = runpy.run_path(str(ROOT / "configs" / "eval" / f"{file}.py"))["get_config"](*variant).to_dict()
    for field, value in overrides.items():
        group, _, key = field.partition("__")
        assert key in config[group], field
        config[group][key] = value
    return config


def score(name, features, output=None, **overrides):
    """Returns the result of a config of configs/eval, and its fingerprint."""
    config = read_config(name, **overrides)
    protocol = get_protocol(config["protocol"])
    result = protocol.prepare(config)(features, output)
    return result, protocol.fingerprint(config, result)

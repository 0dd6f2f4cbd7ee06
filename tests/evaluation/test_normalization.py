"""Whatever encodes images normalizes them by the mean and deviation of its backbone."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from croc_jax.checkpoints import stablehlo
from croc_jax.clustering import ClusteringConfig
from croc_jax.data import photometric
from croc_jax.evaluation import backbones, crop_pairs, discovery, features
from croc_jax.losses import ObjectiveConfig
from croc_jax.models import BackboneConfig, make_backbone
from croc_jax.pixel_format import RGB8
from croc_jax.training import step
from croc_jax.training.sharding import make_mesh
from croc_jax.training.state import abstract_batch
from tests.checkpoints.tiny_weights import official_weights, write
from tests.launch.program import run_program
from tests.training.tiny import tiny_recipe

MEAN, STD = (0.43, 0.411, 0.296), (0.213, 0.156, 0.143)
CONFIG = BackboneConfig(variant="vit_tiny", width=8, depth=1, num_heads=2, patch_size=4, image_mean=MEAN, image_std=STD)
MODULE = make_backbone(CONFIG, image_size=8)
IMAGES = np.zeros((1, 8, 8, 3), np.uint8)
SETTINGS = ClusteringConfig(), ObjectiveConfig(), (2, 2)
# Functions that encode images, and the modules that they call `normalize` in.
READERS = {
    "extract": (features, lambda: features.make_extract_fn(MODULE)({}, IMAGES)),
    "pool": (features, lambda: features.make_pool_fn(MODULE, "cls")({}, IMAGES)),
    "encode": (backbones, lambda: backbones._encode_fn(MODULE)({}, IMAGES)),
    "discover": (
        discovery,
        lambda: discovery.make_discover_fn(MODULE, discovery.DiscoveryConfig())({}, IMAGES[0], np.array([8, 8])),
    ),
    "explore": (crop_pairs, lambda: crop_pairs.make_cluster_fn(MODULE, *SETTINGS)({}, IMAGES[None], None, None)),
    "stablehlo": (stablehlo, lambda: stablehlo.make_encode_fn({}, CONFIG, image_size=8)(IMAGES)),
}


class Seen(Exception):
    """Ends a function where it normalizes."""


def stop(images, mean=None, std=None, pixels=RGB8):
    assert pixels == RGB8
    raise Seen(mean, std)


@pytest.mark.parametrize("name", READERS)
def test_images_are_normalized_as_the_backbone_says(monkeypatch, name):
    module, encode = READERS[name]
    monkeypatch.setattr(module, "normalize", stop)
    with pytest.raises(Seen) as seen:
        encode()
    assert seen.value.args == (MEAN, STD)


def test_programs_take_them_for_lone_files(monkeypatch, tmp_path):
    weights, photos = write(tmp_path / "vit.ckpt", official_weights(depth=1)), tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(photos / "a.png")
    files = f"--images={photos}", f"--checkpoint={weights}", f"--output={tmp_path / 'out'}", "--size=48"
    monkeypatch.setattr(photometric, "normalize", stop)
    with pytest.raises(Seen) as seen:
        run_program("cluster", *files, "--image_mean=0.43,0.411,0.296", "--image_std=0.213,0.156,0.143")
    assert seen.value.args == (MEAN, STD)
    for flag, message in (
        ("--image_mean=a,b,c", "--image_mean=a,b,c: expected numbers, joined by commas"),
        ("--image_mean=123,116,103", r"vit.ckpt: image_mean=\(123.0, 116.0, 103.0\): numbers from 0 to 1"),
        ("--image_std=0.5", r"image_std=\(0.5,\): give one number for each of 3 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            run_program("cluster", *files, flag)


class State(NamedTuple):
    """As much of a state as a step needs before it normalizes."""

    step: int


def test_training_normalizes_as_the_backbone_says(monkeypatch):
    recipe, mesh = tiny_recipe(backbone=CONFIG), make_mesh()
    for name in ("make_update", "state_shapes", "state_shardings"):
        monkeypatch.setattr(step, name, lambda *args, **settings: None)
    monkeypatch.setattr(step, "augment", lambda rng, views, config, *colors: stop(views, *colors))
    with pytest.raises(Seen) as seen:
        step.make_train_step(recipe, steps_per_epoch=2, mesh=mesh).trace(State(1), abstract_batch(recipe, mesh=mesh))
    assert seen.value.args == (MEAN, STD)
    monkeypatch.setattr(photometric, "normalize", stop)
    monkeypatch.setattr(photometric, "apply_draws", lambda planes, draws, **limits: planes)
    for augment in (photometric.augment, photometric.augment_local):
        with pytest.raises(Seen) as seen:
            augment(jax.random.key(0), np.zeros((1, 2, 8, 8, 3), np.uint8), recipe.data.photometric, MEAN, STD)
        assert seen.value.args == (MEAN, STD)


@pytest.mark.parametrize("variant", ["vit_tiny", "resnet_50", "convnext_tiny"])
def test_every_kind_of_backbone_knows_them(variant):
    module = make_backbone(
        BackboneConfig(variant=variant, patch_size=32, image_mean=MEAN, image_std=STD), image_size=64
    )
    assert (module.image_mean, module.image_std) == (MEAN, STD)
    for name, value in (("image_mean", (0.5, 0.5)), ("image_mean", (0.5, np.nan, 0.5)), ("image_std", (0.0, 0.5, 0.5))):
        with pytest.raises(ValueError, match=f"^{name}="):
            BackboneConfig(variant=variant, **{name: value})

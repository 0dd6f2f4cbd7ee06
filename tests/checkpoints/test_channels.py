"""Weights for images of other channels: read, run, written and read again."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from croc_jax.checkpoints.export import export_backbone
from croc_jax.checkpoints.manager import save_backbone
from croc_jax.checkpoints.pretrained import load_pretrained
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.evaluation.backbones import load_backbone
from croc_jax.models import BackboneConfig
from croc_jax.pixel_format import RGB8, PixelFormat
from croc_jax.training.config import Recipe
from tests.checkpoints.reference_vit import forward
from tests.checkpoints.tiny_weights import PATCH, SIDE, equal_trees, official_weights, random_params, write

MEAN, STD = (0.1, 0.2, 0.3, 0.4), (0.5, 0.4, 0.3, 0.2)
DEEP = PixelFormat(channels=4, dtype="uint16", range=(0.0, 10_000.0))
EACH = PixelFormat(channels=4, dtype="float32", range=(0.0, 1.0, -1.0, 1.0, 0.25, 8.0, 0.0, 255.0))
CONFIGS = {
    "vit": BackboneConfig(width=64, depth=1, num_heads=1, patch_size=4, image_mean=MEAN, image_std=STD),
    "dinov2": BackboneConfig(
        width=64, depth=1, num_heads=1, patch_size=4, layer_scale=True, image_mean=MEAN, image_std=STD
    ),
    "resnet": BackboneConfig(
        variant="resnet_50", width=64, stages=(1, 1, 1, 1), patch_size=32, image_mean=MEAN, image_std=STD
    ),
    "convnext": BackboneConfig(
        variant="convnext_tiny", width=64, stages=(1, 1, 1, 1), patch_size=32, image_mean=MEAN, image_std=STD
    ),
}


def test_features_are_those_of_images_mapped_and_normalized(tmp_path):
    weights = official_weights(channels=4)
    file = write(tmp_path / "four.safetensors", weights)
    images = np.random.default_rng(0).integers(0, 12_000, (2, SIDE * PATCH, SIDE * PATCH, 4), dtype=np.uint16)
    backbone = load_backbone(file, image_mean=MEAN, image_std=STD, image_dtype="uint16", image_range=(0, 10_000))
    assert backbone.module.pixels == DEEP and "image_" not in backbone.note
    unit = np.clip(images / 10_000, 0, 1)
    cls_token, patches = forward(weights, (unit - MEAN) / np.array(STD), num_heads=1)
    found = backbone.encode(images)
    np.testing.assert_allclose(found.cls, cls_token, atol=5e-5)
    np.testing.assert_allclose(found.patches, patches, atol=5e-5)
    np.testing.assert_array_equal(backbone.encode([*images]).cls, found.cls)
    with pytest.raises(ValueError, match=r"images \(1, 12, 12, 3\) uint8: expected \[b H W 4\] uint16"):
        backbone.encode(np.zeros((1, 12, 12, 3), np.uint8))


def test_what_nobody_states_is_asked_for_or_named(tmp_path):
    weights, folder = official_weights(channels=4), tmp_path / "folder"
    file, given = write(tmp_path / "four.safetensors", weights), {"image_mean": MEAN, "image_std": STD}
    with pytest.raises(
        ValueError, match="for images of 4 channels, and no file beside it.* for image_mean and image_std"
    ):
        load_backbone(file)
    with pytest.raises(ValueError, match=r"image_std=\(0.5,\): give one number for each of 4 channels"):
        load_backbone(file, image_mean=MEAN, image_std=(0.5,))
    with pytest.raises(ValueError, match=r"four.safetensors: image_range=\(\): floating-point values have no range"):
        load_backbone(file, **given, image_dtype="float32")
    assert "assumed: num_heads=1, norm_epsilon=1e-06, image_dtype=uint8" in load_backbone(file, **given).note
    # timm leaves the numbers of RGB in the config of a network for other channels.
    folder.mkdir()
    write(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps({"architecture": "vit", "mean": MEAN[:3], "std": STD[:3]}))
    with pytest.raises(ValueError, match="for image_mean and image_std: give them"):
        load_backbone(folder)
    (folder / "config.json").write_text(json.dumps({"architecture": "vit", "mean": MEAN[:2], "std": STD}))
    with pytest.raises(ValueError, match=r"folder: image_mean=\(0.1, 0.2\): give one number for each of 4 channels"):
        load_backbone(folder)
    (folder / "config.json").write_text(json.dumps({"architecture": "vit", "mean": MEAN, "std": STD}))
    assert load_pretrained(folder).config.image_mean == MEAN


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_comes_back(tmp_path, name):
    config = CONFIGS[name]
    params = random_params(config, size=32)
    # timm's ResNets are wide, and their files large.
    for form in ("hf",) if name == "resnet" else ("timm", "hf"):
        output = tmp_path / ("hf" if form == "hf" else f"{form}.safetensors")
        file = export_backbone(params, config, image_size=32, output=output, form=form, pixels=DEEP)
        first = [array.shape[1] for key, array in safetensors.numpy.load_file(file).items() if array.ndim == 4]
        assert 4 in first and 3 not in first
        found = load_pretrained(output)
        equal_trees(found.params, params)
        assert found.config.channels == 4
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["num_channels"] == 4
    assert found.pixels == DEEP and (found.config.image_mean, found.config.image_std) == (MEAN, STD)
    assert not {"image_mean", "image_dtype"} & found.guessed.keys()


def test_image_processors_of_hugging_face_normalize_stored_values(tmp_path):
    config, values = CONFIGS["vit"], np.random.default_rng(0).uniform(0.3, 0.9, (5, 4))
    for pixels in (EACH, DEEP, PixelFormat(channels=4)):
        export_backbone(
            random_params(config, size=32), config, image_size=32, output=tmp_path, form="hf", pixels=pixels
        )
        low, high = map(np.array, pixels.limits)
        says = json.loads((tmp_path / "preprocessor_config.json").read_text())
        scaled = (low + values * (high - low)) * (says.get("rescale_factor", 1) if says["do_rescale"] else 1)
        theirs = (scaled - says["image_mean"]) / says["image_std"]
        np.testing.assert_allclose(theirs, (values - MEAN) / np.array(STD), rtol=1e-9, atol=1e-12)
        found = load_pretrained(tmp_path)
        assert found.pixels == pixels and (found.config.image_mean, found.config.image_std) == (MEAN, STD)
    # Of RGB in 8 bits, libraries know all there is to say.
    rgb = BackboneConfig(width=64, depth=1, num_heads=1, patch_size=4)
    export_backbone(random_params(rgb, size=32), rgb, image_size=32, output=tmp_path, form="hf")
    assert not {"image_dtype", "image_range"} & json.loads((tmp_path / "preprocessor_config.json").read_text()).keys()
    assert load_pretrained(tmp_path).pixels == RGB8


def test_a_workdir_has_them(tmp_path):
    config, size = dataclasses.replace(CONFIGS["vit"], variant="vit_tiny", width=8), 8
    params = random_params(config, size=size)
    data = DataConfig(channels=4, dtype="uint16", range=(0.0, 10_000.0), views=ViewsConfig(crop_size=size))
    save_backbone(params, Recipe(backbone=config, data=data), step=3, workdir=tmp_path / "run")
    backbone = load_backbone(tmp_path / "run")
    assert backbone.module.pixels == DEEP and backbone.module.image_mean == MEAN
    with pytest.raises(ValueError, match="image_dtype=uint8: the config of the run .* has it; leave it out"):
        load_backbone(tmp_path / "run", image_dtype="uint8")

"""Settings that no shape shows are read from the files beside weights, or refused."""

import json
import re

import numpy as np
import pytest

from croc_jax.checkpoints.description import read_description
from croc_jax.checkpoints.infer_architecture import read_backbone
from croc_jax.checkpoints.pretrained import load_pretrained
from croc_jax.evaluation.backbones import load_backbone
from croc_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from tests.checkpoints.reference_vit import forward
from tests.checkpoints.tiny_weights import PATCH, SIDE, official_weights, write

HALF = (0.5, 0.5, 0.5)
# DINOv3's for satellite images.
MEAN, STD = (0.43, 0.411, 0.296), (0.213, 0.156, 0.143)


def describe(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return read_description(folder)


@pytest.mark.parametrize(
    ("files", "colors"),
    [
        ({"preprocessor_config": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}}, (HALF, HALF)),
        ({"preprocessor_config": {"image_mean": 0.5, "image_std": 0.5, "rescale_factor": 1 / 255}}, (0.5, 0.5)),
        ({"preprocessor_config": {"do_normalize": False, "image_mean": [0.5] * 3}}, (0, 1)),
        ({"preprocessor_config": {"image_mean": [0.1] * 13, "image_std": 1}}, ((0.1,) * 13, 1)),
        ({"processor_config": {"image_processor": {"image_mean": MEAN, "image_std": STD}}}, (MEAN, STD)),
        ({"config": {"architecture": "vit", "pretrained_cfg": {"mean": MEAN, "std": STD}}}, (MEAN, STD)),
        ({"config": {"architecture": "vit", "mean": MEAN, "std": STD}}, (MEAN, STD)),
        ({"config": {"model_type": "vit"}}, (None, None)),
    ],
)
def test_mean_and_deviation(tmp_path, files, colors):
    found = describe(tmp_path, **files)
    assert (found.image_mean, found.image_std) == colors


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"preprocessor_config": {"do_normalize": True, "image_mean": [0.5] * 3}}, "does not state image_std: add"),
        ({"preprocessor_config": {"rescale_factor": 1 / 127.5}}, r"rescale_factor=0.00784314; only 1/255"),
        ({"preprocessor_config": {"do_rescale": False}}, "does not rescale images"),
        (
            {"preprocessor_config": {"image_mean": ["a"] * 3, "image_std": 1}},
            r"image_mean=\['a', .*expected a number for each",
        ),
        ({"preprocessor_config": {"image_mean": [], "image_std": 1}}, r"image_mean=\[\]: expected a number for each"),
        ({"preprocessor_config": "{"}, "cannot read .*preprocessor_config.json"),
        ({"preprocessor_config": "[1]"}, "holds a list, not a dictionary"),
        ({"config": {"pretrained_cfg": 3}}, "pretrained_cfg=3 is no dictionary"),
        ({"processor_config": {"image_processor": [1]}}, r"image_processor=\[1\] is no dictionary"),
        ({"config": {"layer_norm_eps": "1e-6"}}, "layer_norm_eps='1e-6' is no float above 0"),
        ({"config": {"num_attention_heads": -2}}, "num_attention_heads=-2 is no int above 0"),
        ({"config": "[" * 10**5}, "cannot read .*config.json"),
    ],
)
def test_files_that_cannot_be_understood_are_named(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        describe(tmp_path, **files)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "vit", "hidden_act": "gelu_new"}, r"\(hidden_act or act_layer\) is 'gelu_new'; only the exact"),
        ({"model_type": "dinov2", "hidden_act": "quick_gelu"}, "is 'quick_gelu'"),
        ({"architecture": "vit_small", "model_args": {"act_layer": "silu"}}, "is 'silu'"),
        ({"architecture": "vit_base_patch16_clip_quickgelu_224"}, "is 'quick_gelu'"),
        ({"architecture": "vit_small", "model_args": {"norm_layer": "layernorm"}}, "norm_layer='layernorm' is set"),
        ({"model_type": "dinov3_vit", "rope_theta": 10000.0}, "rope_theta=10000.0; only 100 is supported"),
        ({"model_type": "vit", "hidden_act": "gelu"}, None),
        ({"model_type": "vit", "hidden_act": "gelu_python"}, None),
    ],
)
def test_what_no_network_here_computes_is_refused(tmp_path, config, message):
    found = read_backbone(official_weights(depth=1), description=describe(tmp_path, config=config))
    if message is None:
        assert found.problems == []
    else:
        assert re.search(message, "; ".join(found.problems))


@pytest.mark.parametrize(
    ("config", "epsilon"),
    [({"layer_norm_eps": 1e-5}, 1e-5), ({"model_type": "vit"}, 1e-12), ({"model_type": "dinov2"}, 1e-6), ({}, 1e-6)],
)
def test_the_epsilon_is_that_of_the_library(tmp_path, config, epsilon):
    found = read_backbone(official_weights(depth=1), description=describe(tmp_path, config=config))
    assert found.config.norm_epsilon == epsilon and ("norm_epsilon" in found.guessed) == (config == {})


def test_features_are_those_of_images_normalized_as_the_weights_want(tmp_path):
    weights = official_weights()
    write(tmp_path / "model.safetensors", weights)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    lone = write(tmp_path / "lone.ckpt", weights)
    images = np.random.default_rng(0).integers(0, 256, (1, SIDE * PATCH, SIDE * PATCH, 3), dtype=np.uint8)
    for file, given, (mean, std) in (
        (tmp_path, {}, (HALF, (0.25, 0.25, 0.25))),
        (tmp_path, {"image_mean": MEAN}, (MEAN, (0.25, 0.25, 0.25))),
        (lone, {"image_mean": MEAN, "image_std": STD}, (MEAN, STD)),
        (lone, {}, (IMAGENET_MEAN, IMAGENET_STD)),
    ):
        backbone = load_backbone(file, **given)
        assert (backbone.recipe.backbone.image_mean, backbone.recipe.backbone.image_std) == (mean, std)
        assert ("image_mean=" in backbone.note) == (file == lone and not given)
        cls_token, _ = forward(weights, (images / 255 - np.array(mean)) / np.array(std), num_heads=1)
        np.testing.assert_allclose(backbone.encode(images).cls, cls_token, atol=5e-5)
    with pytest.raises(ValueError, match=r"lone.ckpt: image_std=\(0.5, 0.5, 0.0\): numbers above 0, up to 1"):
        load_pretrained(lone, image_std=(0.5, 0.5, 0.0))
    with pytest.raises(ValueError, match="numbers from 0 to 1, one a channel"):
        load_pretrained(lone, image_mean=(123.7, 116.3, 103.5))

"""Weights of ResNet and ConvNeXt go in and out of every library, bit by bit."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from croc_jax.checkpoints import pretrained
from croc_jax.checkpoints.export import export_backbone
from croc_jax.checkpoints.init_from import check_architecture
from croc_jax.checkpoints.official import to_official
from croc_jax.checkpoints.param_mapping_convnet import detect_family
from croc_jax.checkpoints.pretrained import load_pretrained
from croc_jax.evaluation.backbones import load_backbone
from croc_jax.models import BackboneConfig, make_backbone
from tests.checkpoints import tiny_weights
from tests.checkpoints.tiny_weights import equal_trees, official_weights, write

# timm's and torchvision's stem has 64 features.
RESNET = BackboneConfig(variant="resnet_50", stages=(1, 2, 1, 1), patch_size=32, dtype="float32")
CONVNEXT = BackboneConfig(variant="convnext_tiny", width=64, stages=(1, 2, 1, 1), patch_size=32, dtype="float32")
CONFIGS = {"resnet": RESNET, "convnext": CONVNEXT}
NAMES = {
    ("resnet", "official"): ("layer2.1.bn3.running_var", "stage_1_block_1/norm_3/variance"),
    ("resnet", "timm"): ("layer3.0.downsample.1.weight", "stage_2_block_0/norm_shortcut/scale"),
    ("resnet", "hf"): ("encoder.stages.1.layers.0.layer.2.convolution.weight", "stage_1_block_0/conv_3/kernel"),
    ("convnext", "official"): ("downsample_layers.3.1.bias", "downsample_3/bias"),
    ("convnext", "timm"): ("stages.1.blocks.1.gamma", "stage_1_block_1/scale"),
    ("convnext", "hf"): ("embeddings.layernorm.bias", "stem_norm/bias"),
}
random_params = functools.cache(functools.partial(tiny_weights.random_params, size=32))


@pytest.mark.parametrize(("family", "form"), NAMES)
def test_every_format_comes_back(tmp_path, family, form):
    params, config = random_params(CONFIGS[family]), CONFIGS[family]
    output = tmp_path / ("model" if form == "hf" else "model.safetensors")
    file = export_backbone(params, config, image_size=224, output=output, form=form)
    found = load_pretrained(output)
    assert found.config == dataclasses.replace(config, dtype="auto", width=2048 if family == "resnet" else 64)
    assert found.image_size == 224
    equal_trees(found.params, params)
    weights, (theirs, ours) = safetensors.numpy.load_file(file), NAMES[family, form]
    expected = functools.reduce(lambda tree, name: tree[name], ours.split("/"), params)
    np.testing.assert_array_equal(weights[theirs], expected.transpose(3, 2, 0, 1) if expected.ndim == 4 else expected)
    # ResNet has the same names in torchvision and timm.
    assert detect_family(weights) == (family, "official" if family == "resnet" and form == "timm" else form)


def test_other_stems_are_refused_where_the_library_has_none(tmp_path):
    config = dataclasses.replace(RESNET, width=1024)
    for form in ("official", "timm"):
        with pytest.raises(ValueError, match="width=1024: .* begin with 64 features, not 32; choose hf"):
            export_backbone(random_params(config), config, image_size=224, output=tmp_path / "m.safetensors", form=form)


def test_other_networks_are_refused_by_name(tmp_path):
    whole = to_official({"backbone": random_params(RESNET)}, RESNET)
    whole = {name.removeprefix("backbone."): array for name, array in whole.items()}
    whole |= {"fc.weight": np.zeros((3, 3), np.float32), "bn1.num_batches_tracked": np.zeros((), np.int64)}
    changes = [
        (("layer2.1.bn3.bias", "layer1.0.conv3.weight"), {"se.weight": np.ones(3)}, "is no known resnet: "
         "unknown weights se.weight; missing stage_0_block_0/conv_3/kernel; missing stage_1_block_1/norm_3/bias$"),
        ([name for name in whole if name.startswith("layer4")], {}, "no blocks of stage 3; missing stage_3_"),
        ((), {"bn1.weight": np.ones(3, np.float32)}, r"norm/scale is \(3,\), expected \(64,\)"),
    ]  # fmt: skip
    for dropped, added, message in changes:
        weights = {name: array for name, array in whole.items() if name not in dropped} | added
        with pytest.raises(ValueError, match=message):
            load_pretrained(write(tmp_path / "model.safetensors", weights))


def test_children_with_numbers_and_basic_blocks(monkeypatch):
    params = random_params(RESNET)
    names = to_official({"backbone": params}, RESNET)
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    numbered = {}
    for name, array in names.items():
        first, _, rest = name.removeprefix("backbone.").partition(".")
        numbered[f"backbone.{numbers[first]}.{rest}"] = array
    monkeypatch.setattr(pretrained, "read_contents", lambda file: {"state_dict": numbered})
    found = load_pretrained(Path("model.ckpt"))
    assert found.prefix == "state_dict.backbone."
    equal_trees(found.params, params)
    for name in [name for name in numbered if "conv3" in name]:
        del numbered[name]
    with pytest.raises(ValueError, match="no known vision transformer, ResNet with bottlenecks, or ConvNeXt behind"):
        load_pretrained(Path("model.ckpt"))


@pytest.mark.parametrize("family", CONFIGS)
def test_whole_checkpoints_hold_them_among_other_things(monkeypatch, family):
    params = random_params(CONFIGS[family])
    weights = to_official({"backbone": params}, CONFIGS[family]) | {"head.mlp.0.weight": np.ones((2, 2), np.float32)}
    contents = {"model": {name.removeprefix("backbone."): array for name, array in weights.items()}, "epoch": 3}
    monkeypatch.setattr(pretrained, "read_contents", lambda file: contents)
    found = load_pretrained(Path("model.pth"))
    equal_trees(found.params, params)
    assert found.epoch == 3 and detect_family(official_weights()) is None


def test_the_same_weights_give_denser_tokens(tmp_path):
    output = tmp_path / "m.safetensors"
    coarse = load_backbone(export_backbone(random_params(CONVNEXT), CONVNEXT, image_size=224, output=output, form="hf"))
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    fine = coarse.with_patch_size(16)
    assert fine.encode(images).patches.shape == (1, 4 * 6, 64)
    assert fine.recipe.backbone.patch_size == 16 and fine.params is coarse.params
    with pytest.raises(ValueError, match="patch_size=14"):
        coarse.with_patch_size(14)
    with pytest.raises(ValueError, match="patch_size=16: this transformer was trained on patches of 4 pixels"):
        load_backbone(write(tmp_path / "vit.safetensors", official_weights())).with_patch_size(16)


def test_runs_start_from_them_at_any_distance_of_tokens(tmp_path):
    check_architecture(RESNET, dataclasses.replace(RESNET, patch_size=8), tmp_path)
    with pytest.raises(ValueError, match=r"add --config.backbone.stages=1,2,1,1$"):
        check_architecture(RESNET, dataclasses.replace(RESNET, stages=None), tmp_path)
    with pytest.raises(ValueError, match="add --config.backbone.variant=resnet_50$"):
        check_architecture(RESNET, CONVNEXT, tmp_path)


@pytest.mark.parametrize(("family", "name"), [("resnet", "resnet50"), ("convnext", "convnext_tiny")])
def test_timm_loads_it_strictly(tmp_path, family, name):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    params, config = random_params(CONFIGS[family]), CONFIGS[family]
    export_backbone(params, config, image_size=224, output=tmp_path / "model.pth", form="timm")
    sizes = {"layers": [1, 2, 1, 1]} if family == "resnet" else {"depths": [1, 2, 1, 1], "dims": [8, 16, 32, 64]}
    model = timm.create_model(name, num_classes=0, **sizes).eval()
    model.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True), strict=True)
    assert_equal(model(torch.ones(1, 3, 64, 64)), config, params)


@pytest.mark.parametrize("family", CONFIGS)
def test_hugging_face_loads_it(tmp_path, family):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    params, config = random_params(CONFIGS[family]), CONFIGS[family]
    export_backbone(params, config, image_size=224, output=tmp_path, form="hf")
    model, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"]
    assert_equal(model.eval()(torch.ones(1, 3, 64, 64)).pooler_output.flatten(1), config, params)


def assert_equal(pooled, config, params):
    module = make_backbone(config, image_size=32)
    found = jax.jit(module.apply)({"params": params}, np.ones((1, 64, 64, 3), np.float32))
    expected = pooled.detach().numpy()
    np.testing.assert_allclose(found.cls, expected, atol=1e-4 * max(1, np.abs(expected).max()))

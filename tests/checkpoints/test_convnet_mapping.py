"""Weights of ResNet and ConvNeXt go in and out of every library, bit by bit."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from croc_jax.checkpoints import pretrained
from croc_jax.checkpoints.export import export_backbone
from croc_jax.checkpoints.init_from import check_architecture
from croc_jax.checkpoints.manifest import flatten_tree
from croc_jax.checkpoints.official import to_official
from croc_jax.checkpoints.param_mapping_convnet import detect_family, stages_of
from croc_jax.checkpoints.pretrained import load_pretrained
from croc_jax.evaluation.backbones import load_backbone
from croc_jax.models import BackboneConfig, make_backbone
from tests.checkpoints.test_export import equal_trees
from tests.checkpoints.test_pretrained import official_weights

# timm's and torchvision's stem has 64 features.
RESNET = BackboneConfig(variant="resnet_50", stages=(1, 2, 1, 1), patch_size=32, dtype="float32")
CONVNEXT = BackboneConfig(variant="convnext_tiny", width=64, stages=(1, 2, 1, 1), patch_size=32, dtype="float32")
CONFIGS = {"resnet": RESNET, "convnext": CONVNEXT}
NAMES = {
    ("resnet", "official"): ("layer2.1.bn3.running_var", "stage_1_block_1/norm_3/variance"),
    ("resnet", "timm"): ("layer3.0.downsample.1.weight", "stage_2_block_0/norm_shortcut/scale"),
    ("resnet", "hf"): (
        "encoder.stages.1.layers.0.layer.2.convolution.weight",
        "stage_1_block_0/conv_3/kernel",
    ),
    ("convnext", "official"): ("downsample_layers.3.1.bias", "downsample_3/bias"),
    ("convnext", "timm"): ("stages.1.blocks.1.gamma", "stage_1_block_1/scale"),
    ("convnext", "hf"): ("embeddings.layernorm.bias", "stem_norm/bias"),
}


def random_params(config):
    shapes = jax.eval_shape(make_backbone(config, image_size=32).init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
        return (np.abs(noise) + 0.5 if path[-1].key == "variance" else noise).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes["params"])


def read(path, tree):
    for name in path.split("/"):
        tree = tree[name]
    return tree


@pytest.mark.parametrize("form", ["official", "timm", "hf"])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_format_comes_back(tmp_path, family, form):
    params, config = random_params(CONFIGS[family]), CONFIGS[family]
    output = tmp_path / ("model" if form == "hf" else "model.safetensors")
    file = export_backbone(params, config, image_size=224, output=output, form=form)
    found = load_pretrained(output)
    expected = dataclasses.replace(config, dtype="auto", width=2048 if family == "resnet" else 64)
    assert found.config == expected and found.image_size == 224
    equal_trees(found.params, params)
    weights = safetensors.numpy.load_file(file)
    theirs, ours = NAMES[family, form]
    expected = read(ours, params)
    np.testing.assert_array_equal(weights[theirs], expected.transpose(3, 2, 0, 1) if expected.ndim == 4 else expected)
    # ResNet has the same names in torchvision and timm.
    assert detect_family(weights) == (family, "official" if family == "resnet" and form == "timm" else form)


@pytest.mark.parametrize(
    ("config", "change", "forms", "message"),
    [
        (CONVNEXT, {"norm_epsilon": 1e-5}, ("official", "hf"), "norm_epsilon=1e-05: ConvNeXt has 1e-06 there, .* timm"),
        (RESNET, {"width": 1024}, ("official", "timm"), "width=1024: .* begin with 64 features, not 32; choose hf"),
    ],
)
def test_what_a_library_does_not_have_is_refused(tmp_path, config, change, forms, message):
    config = dataclasses.replace(config, **change)
    params = random_params(config)
    for form in forms:
        with pytest.raises(ValueError, match=message):
            export_backbone(params, config, image_size=224, output=tmp_path / "m.safetensors", form=form)
    assert not list(tmp_path.iterdir())
    (other,) = {"official", "timm", "hf"}.difference(forms)
    assert export_backbone(params, config, image_size=224, output=tmp_path / "m.safetensors", form=other).is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: (w.pop("layer2.1.bn3.bias"), w.pop("layer1.0.conv3.weight"), w.update({"se.weight": np.ones(3)})),
            r"is no resnet that we know: unknown weights se.weight; missing stage_0_block_0/conv_3/kernel "
            r"\(layer1.0.conv3.weight\); missing stage_1_block_1/norm_3/bias \(layer2.1.bn3.bias\)$",
        ),
        (
            lambda w: [w.pop(name) for name in list(w) if name.startswith("layer4")],
            "no blocks of stage 3; missing stage_3_",
        ),
        (lambda w: w.update({"se.weight": w["conv1.weight"]}), "unknown weights se.weight"),
        (lambda w: w.update({"bn1.weight": np.ones(3, np.float32)}), r"norm/scale is \(3,\), expected \(64,\)"),
    ],
)
def test_other_networks_are_refused_by_name(tmp_path, change, message):
    weights = {
        name.removeprefix("backbone."): a
        for name, a in to_official({"backbone": random_params(RESNET)}, RESNET).items()
    }
    weights |= {"fc.weight": np.zeros((3, 3), np.float32), "bn1.num_batches_tracked": np.zeros((), np.int64)}
    change(weights)
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path / "model.safetensors")


@pytest.mark.parametrize("family", CONFIGS)
def test_whole_checkpoints_hold_them_among_other_things(monkeypatch, family):
    params = random_params(CONFIGS[family])
    weights = to_official({"backbone": params}, CONFIGS[family]) | {"head.mlp.0.weight": np.ones((2, 2), np.float32)}
    contents = {"model": {name.removeprefix("backbone."): array for name, array in weights.items()}, "epoch": 3}
    monkeypatch.setattr(pretrained, "read_contents", lambda file: contents)
    found = load_pretrained(Path("model.pth"))
    equal_trees(found.params, params)
    assert found.epoch == 3
    assert stages_of(flatten_tree(params)) == (1, 2, 1, 1) and detect_family(official_weights()) is None


def test_the_same_weights_give_denser_tokens(tmp_path):
    file = export_backbone(
        random_params(CONVNEXT), CONVNEXT, image_size=224, output=tmp_path / "m.safetensors", form="timm"
    )
    coarse = load_backbone(file)
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    fine = coarse.with_patch_size(16)
    assert coarse.encode(images).patches.shape == (1, 2 * 3, 64) and fine.encode(images).patches.shape == (1, 4 * 6, 64)
    assert fine.recipe.backbone.patch_size == 16 and fine.params is coarse.params
    with pytest.raises(ValueError, match="patch_size=14"):
        coarse.with_patch_size(14)


def test_the_patches_of_a_transformer_stay(tmp_path):
    safetensors.numpy.save_file(official_weights(), tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match="patch_size=16: this transformer was trained on patches of 4 pixels"):
        load_backbone(tmp_path / "vit.safetensors").with_patch_size(16)


def test_runs_start_from_them_at_any_distance_of_tokens(tmp_path):
    check_architecture(RESNET, dataclasses.replace(RESNET, patch_size=8), tmp_path)
    with pytest.raises(ValueError, match=r"add --config.backbone.stages=\(1, 2, 1, 1\)$"):
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

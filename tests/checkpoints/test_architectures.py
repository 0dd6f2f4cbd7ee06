"""Each library's own model has the names and shapes that are written, no more and no fewer; others are refused."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from croc_jax.checkpoints.architectures import ExportError
from croc_jax.checkpoints.convert import to_official
from croc_jax.checkpoints.export import export_backbone
from croc_jax.checkpoints.pretrained import load_foreign_backbone
from croc_jax.models import BackboneConfig
from tests.checkpoints.official import read_official
from tests.checkpoints.test_export import equal_trees, features, random_params

WIDTH, HIDDEN, PATCH, SIZE = 64, 176, 14, 28
PLAIN = BackboneConfig(width=WIDTH, depth=1, num_heads=2, patch_size=PATCH, mlp_ratio=HIDDEN / WIDTH, dtype="float32")
DINOV2 = dataclasses.replace(PLAIN, layer_scale=True)
DINOV2_GATED = dataclasses.replace(DINOV2, mlp="swiglu", num_registers=3)
DINOV3 = dataclasses.replace(DINOV2, positions="rope", num_registers=4, norm_epsilon=1e-5)
DINOV3_GATED = dataclasses.replace(DINOV3, mlp="swiglu")


def without_key_biases(params):
    bias = params["block_0"]["attention"]["qkv"]["bias"].copy()
    bias[WIDTH : 2 * WIDTH] = 0
    qkv = {**params["block_0"]["attention"]["qkv"], "bias": bias}
    block = {**params["block_0"], "attention": {**params["block_0"]["attention"], "qkv": qkv}}
    return {**params, "block_0": block}


def written(tmp_path, params, config, form):
    output = tmp_path / ("model" if form == "hf" else "model.safetensors")
    file = export_backbone(params, config, image_size=SIZE, output=output, form=form)
    return safetensors.numpy.load_file(file)


# As the modules of the libraries list their state, one block deep.
SHARED = {
    "cls_token": (1, 1, WIDTH),
    "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
    "patch_embed.proj.bias": (WIDTH,),
    "blocks.0.norm1.weight": (WIDTH,),
    "blocks.0.norm1.bias": (WIDTH,),
    "blocks.0.attn.qkv.weight": (3 * WIDTH, WIDTH),
    "blocks.0.attn.proj.weight": (WIDTH, WIDTH),
    "blocks.0.attn.proj.bias": (WIDTH,),
    "blocks.0.norm2.weight": (WIDTH,),
    "blocks.0.norm2.bias": (WIDTH,),
    "norm.weight": (WIDTH,),
    "norm.bias": (WIDTH,),
}
QKV_BIAS = {"blocks.0.attn.qkv.bias": (3 * WIDTH,)}
SCALES = {f"blocks.0.ls{n}.gamma": (WIDTH,) for n in (1, 2)}
POSITIONS = {"pos_embed": (1, (SIZE // PATCH) ** 2 + 1, WIDTH)}


def linear(name, outputs, inputs):
    return {f"blocks.0.mlp.{name}.weight": (outputs, inputs), f"blocks.0.mlp.{name}.bias": (outputs,)}


MLP = {**linear("fc1", HIDDEN, WIDTH), **linear("fc2", WIDTH, HIDDEN)}
GATED_MLP = {**linear("w12", 2 * HIDDEN, WIDTH), **linear("w3", WIDTH, HIDDEN)}
DINOV3_MLP = {**linear("w1", HIDDEN, WIDTH), **linear("w2", HIDDEN, WIDTH), **linear("w3", WIDTH, HIDDEN)}
TIMM_MLP = {**linear("fc1_g", HIDDEN, WIDTH), **linear("fc1_x", HIDDEN, WIDTH), **linear("fc2", WIDTH, HIDDEN)}
MASK_TOKEN = {"mask_token": (1, WIDTH)}
OF_DINOV3 = {
    **MASK_TOKEN,
    "storage_tokens": (1, 4, WIDTH),
    "rope_embed.periods": (WIDTH // 2 // 4,),
    "blocks.0.attn.qkv.bias_mask": (3 * WIDTH,),
}
TIMM_DINOV3 = {
    "reg_token": (1, 4, WIDTH),
    "blocks.0.attn.q_bias": (WIDTH,),
    "blocks.0.attn.v_bias": (WIDTH,),
    "blocks.0.gamma_1": (WIDTH,),
    "blocks.0.gamma_2": (WIDTH,),
}
STATES = {
    "dino": (PLAIN, "official", (QKV_BIAS, POSITIONS, MLP)),
    "dinov2": (DINOV2, "official", (QKV_BIAS, POSITIONS, SCALES, MLP, MASK_TOKEN)),
    "dinov2 gated": (
        DINOV2_GATED,
        "official",
        (QKV_BIAS, POSITIONS, SCALES, GATED_MLP, MASK_TOKEN, {"register_tokens": (1, 3, WIDTH)}),
    ),
    "dinov3": (DINOV3, "official", (QKV_BIAS, SCALES, MLP, OF_DINOV3)),
    "dinov3 gated": (DINOV3_GATED, "official", (QKV_BIAS, SCALES, DINOV3_MLP, OF_DINOV3)),
    "timm dinov3": (DINOV3, "timm", (MLP, TIMM_DINOV3)),
    "timm dinov3 gated": (DINOV3_GATED, "timm", (TIMM_MLP, TIMM_DINOV3)),
}


@pytest.mark.parametrize("name", STATES)
def test_the_state_of_a_module_is_written_exactly(tmp_path, name):
    config, form, parts = STATES[name]
    expected = dict(SHARED)
    for part in parts:
        expected |= part
    params = without_key_biases(random_params(config, size=SIZE))
    weights = written(tmp_path, params, config, form)
    assert {name: array.shape for name, array in weights.items()} == expected
    assert all(array.dtype == np.float32 for array in weights.values())
    if form == "official":
        # A whole run has the same.
        run = to_official({"backbone": params}, config)
        assert run.keys() == {f"backbone.{name}" for name in expected}
        equal_trees(read_official(run)["backbone"], params)


def test_what_is_none_of_ours_has_no_effect(tmp_path):
    params = random_params(DINOV3, size=SIZE)
    weights = written(tmp_path, without_key_biases(params), DINOV3, "official")
    np.testing.assert_array_equal(weights["blocks.0.attn.qkv.bias_mask"], np.repeat([1, 0, 1], WIDTH))
    # The rotations' slowest period is a hundred times the fastest, but for one step of eight.
    np.testing.assert_allclose(weights["rope_embed.periods"], 100 ** (np.arange(8) / 8), rtol=1e-6)
    assert not weights["mask_token"].any()
    # Keys that have learned a bias keep it.
    mask = written(tmp_path, params, DINOV3, "official")["blocks.0.attn.qkv.bias_mask"]
    np.testing.assert_array_equal(mask, np.ones(3 * WIDTH))


FAMILIES = {"dinov2": DINOV2, "dinov3": DINOV3, "dinov3 gated": DINOV3_GATED}


@pytest.mark.parametrize("form", ["official", "timm"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_comes_back(tmp_path, name, form):
    # Heads are taken to be 64 features wide.
    config = dataclasses.replace(FAMILIES[name], num_heads=1)
    params = random_params(config, size=SIZE)
    params = without_key_biases(params) if form == "timm" else params
    written(tmp_path, params, config, form)
    found = load_foreign_backbone(tmp_path / "model.safetensors")
    equal_trees(found.params, params)
    resizing = "offset" if (name, form) == ("dinov2", "official") else "antialias"
    expected = dataclasses.replace(config, depth=1, dtype="auto", position_resizing=resizing)
    assert found.config == expected


def test_timm_has_a_model_without_biases_of_queries_and_values(tmp_path):
    params = without_key_biases(random_params(DINOV3, size=SIZE))
    params["block_0"]["attention"]["qkv"]["bias"][:] = 0
    weights = written(tmp_path, params, DINOV3, "timm")
    assert not [name for name in weights if name.endswith(("q_bias", "v_bias"))]
    equal_trees(load_foreign_backbone(tmp_path / "model.safetensors").params, params)


# Ratio that Hugging Face multiplies with, and hidden features that it makes of it.
RATIOS = [(2, 128, "gelu"), (4, 256, "gelu"), (4, 176, "swiglu"), (3, 128, "swiglu"), (1, 48, "swiglu")]


@pytest.mark.parametrize(("ratio", "hidden", "mlp"), RATIOS)
def test_hugging_face_computes_the_hidden_features_that_there_are(tmp_path, ratio, hidden, mlp):
    config = dataclasses.replace(DINOV2, mlp=mlp, mlp_ratio=hidden / WIDTH, norm_epsilon=1e-5)
    weights = written(tmp_path, random_params(config, size=SIZE), config, "hf")
    stated = json.loads((tmp_path / "model" / "config.json").read_text())
    assert stated["mlp_ratio"] == ratio and isinstance(stated["mlp_ratio"], int)
    assert stated["layer_norm_eps"] == 1e-5
    name = "weights_in" if mlp == "swiglu" else "fc1"
    assert len(weights[f"encoder.layer.0.mlp.{name}.bias"]) == (hidden * 2 if mlp == "swiglu" else hidden)


REFUSED = {
    "gated vit": (PLAIN, {"mlp": "swiglu"}, "hf", "mlp='swiglu', layer_scale=False: Hugging Face has no such model"),
    "registers of a vit": (PLAIN, {"num_registers": 2}, "hf", "num_registers=2, layer_scale=False"),
    "rope without scale": (PLAIN, {"positions": "rope"}, "hf", "positions='rope', layer_scale=False"),
    "broken ratio": (DINOV2, {"mlp_ratio": 2.5}, "hf", "mlp_ratio=2.5: Hugging Face's DINOv2 takes whole numbers"),
    "gated, to hf": (DINOV2_GATED, {"mlp_ratio": 8 / 3}, "hf", "a multiple of 8 hidden features, not 171; choose timm"),
    "gated": (DINOV3_GATED, {"mlp_ratio": 8 / 3}, "official", "mlp_ratio=2.66667: official has a multiple of 8"),
    "keys": (DINOV3, {}, "timm", "biases of keys that are not 0: timm has none; choose official or hf"),
    "epsilon": (DINOV2, {"norm_epsilon": 1e-5}, "official", "norm_epsilon=1e-05: the official code has 1e-06 there"),
    "epsilon of dinov3": (DINOV3, {"norm_epsilon": 1e-4}, "official", "the official code has 1e-05 or 1e-06 there"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_library_does_not_have_is_refused_in_one_line(tmp_path, name):
    config, change, form, message = REFUSED[name]
    config = dataclasses.replace(config, **change)
    with pytest.raises(ExportError, match=message) as error:
        written(tmp_path, random_params(config, size=SIZE), config, form)
    assert "\n" not in str(error.value) and "; choose " in str(error.value)
    assert not list(tmp_path.iterdir())


TIMM = {
    "vit_small_patch14_dinov2": (DINOV2, "official", "vision_transformer"),
    "vit_small_patch16_dinov3_qkvb": (DINOV3, "official", "eva"),
    "vit_small_plus_patch16_dinov3_qkvb": (DINOV3_GATED, "official", "eva"),
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_converts_official_files(tmp_path, name):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    config, form, module = TIMM[name]
    params = without_key_biases(random_params(config, size=SIZE))
    weights = {key: torch.tensor(array) for key, array in written(tmp_path, params, config, form).items()}
    model = make_timm(timm, name, config)
    convert = getattr(timm.models, module).checkpoint_filter_fn
    model.load_state_dict(convert(weights, model), strict=True)
    assert_equal_features(torch, model, config, params)


@pytest.mark.parametrize("name", [name for name in TIMM if "dinov3" in name])
def test_timm_loads_dinov3_strictly(tmp_path, name):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    config = TIMM[name][0]
    params = without_key_biases(random_params(config, size=SIZE))
    weights = {key: torch.tensor(array) for key, array in written(tmp_path, params, config, "timm").items()}
    model = make_timm(timm, name, config)
    model.load_state_dict(weights, strict=True)
    assert_equal_features(torch, model, config, params)


def make_timm(timm, name, config):
    sizes = {"depth": 1, "embed_dim": WIDTH, "num_heads": 2, "mlp_ratio": config.mlp_ratio}
    return timm.create_model(name, num_classes=0, img_size=SIZE, patch_size=PATCH, **sizes).eval()


def assert_equal_features(torch, model, config, params):
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.forward_features(images).numpy()
    found = features(config, params, images, size=SIZE)
    np.testing.assert_allclose(found.cls, expected[:, 0], atol=1e-4)
    np.testing.assert_allclose(found.patches, expected[:, 1 + config.num_registers :], atol=1e-4)


HF = {
    "ratio 2": dataclasses.replace(DINOV2, mlp_ratio=2.0),
    "gated": DINOV2_GATED,
    "no registers": dataclasses.replace(DINOV3, num_registers=0),
    "epsilon": dataclasses.replace(DINOV2, mlp_ratio=3.0, norm_epsilon=0.1),
}


@pytest.mark.parametrize("name", HF)
def test_hugging_face_loads_it(tmp_path, name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config, params = HF[name], random_params(HF[name], size=SIZE)
    written(tmp_path, params, config, "hf")
    model, report = transformers.AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"]
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.eval()(images).last_hidden_state.numpy()
    found = features(config, params, images, size=SIZE)
    np.testing.assert_allclose(found.cls, expected[:, 0], atol=1e-4)
    np.testing.assert_allclose(found.patches, expected[:, 1 + config.num_registers :], atol=1e-4)

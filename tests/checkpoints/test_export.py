"""Each library's own model has the names and shapes that are written, and what is written comes back bit by bit."""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from croc_jax.checkpoints.export import export_backbone, write_arrays
from croc_jax.checkpoints.official import export_run, load_networks, to_official
from croc_jax.checkpoints.pretrained import load_pretrained
from croc_jax.models import BackboneConfig, HeadConfig, make_backbone
from tests.checkpoints import tiny_weights
from tests.checkpoints.official import read_official
from tests.checkpoints.tiny_weights import equal_trees, save_run
from tests.training.tiny import tiny_recipe

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HIDDEN, PATCH, SIZE = 64, 176, 14, 28
PLAIN = BackboneConfig(width=WIDTH, depth=1, num_heads=2, patch_size=PATCH, mlp_ratio=HIDDEN / WIDTH, dtype="float32")
DINOV2 = dataclasses.replace(PLAIN, layer_scale=True)
GATED = dataclasses.replace(DINOV2, mlp="swiglu")
REGISTERS = dataclasses.replace(DINOV2, num_registers=4, position_resizing="antialias")
GATED_REGISTERS = dataclasses.replace(GATED, num_registers=3)
DINOV3 = dataclasses.replace(REGISTERS, positions="rope", norm_epsilon=1e-5)
DINOV3_GATED = dataclasses.replace(DINOV3, mlp="swiglu")
random_params = functools.cache(functools.partial(tiny_weights.random_params, size=SIZE))


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
OFFICIAL_DINOV3 = {
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
DINOV2_REGISTERS = {"register_tokens": (1, 3, WIDTH)}
STATES = {
    "dino": (PLAIN, "official", (QKV_BIAS, POSITIONS, MLP)),
    "dinov2": (DINOV2, "official", (QKV_BIAS, POSITIONS, SCALES, MLP, MASK_TOKEN)),
    "dinov2 gated": (
        GATED_REGISTERS,
        "official",
        (QKV_BIAS, POSITIONS, SCALES, GATED_MLP, MASK_TOKEN, DINOV2_REGISTERS),
    ),
    "dinov3": (DINOV3, "official", (QKV_BIAS, SCALES, MLP, OFFICIAL_DINOV3)),
    "dinov3 gated": (DINOV3_GATED, "official", (QKV_BIAS, SCALES, DINOV3_MLP, OFFICIAL_DINOV3)),
    "timm dinov3": (DINOV3, "timm", (MLP, TIMM_DINOV3)),
    "timm dinov3 gated": (DINOV3_GATED, "timm", (TIMM_MLP, TIMM_DINOV3)),
}


@pytest.mark.parametrize("name", STATES)
def test_the_state_of_a_module_is_written_exactly(tmp_path, name):
    config, form, parts = STATES[name]
    expected = dict(SHARED)
    for part in parts:
        expected |= part
    params = without_key_biases(random_params(config))
    weights = written(tmp_path, params, config, form)
    assert {name: array.shape for name, array in weights.items()} == expected
    assert all(array.dtype == np.float32 for array in weights.values())
    if form == "official":
        # A whole run has the same.
        run = to_official({"backbone": params}, config)
        assert run.keys() == {f"backbone.{name}" for name in expected}
        equal_trees(read_official(run)["backbone"], params)


def test_extra_arrays_have_no_effect(tmp_path):
    params = random_params(DINOV3)
    weights = written(tmp_path, without_key_biases(params), DINOV3, "official")
    np.testing.assert_array_equal(weights["blocks.0.attn.qkv.bias_mask"], np.repeat([1, 0, 1], WIDTH))
    # The rotations' slowest period is a hundred times the fastest, but for one step of eight.
    np.testing.assert_allclose(weights["rope_embed.periods"], 100 ** (np.arange(8) / 8), rtol=1e-6)
    assert not weights["mask_token"].any()
    # Keys that have learned a bias keep it.
    mask = written(tmp_path, params, DINOV3, "official")["blocks.0.attn.qkv.bias_mask"]
    np.testing.assert_array_equal(mask, np.ones(3 * WIDTH))


FAMILIES = {
    "plain": PLAIN,
    # Hugging Face's takes integers alone.
    "dinov2": dataclasses.replace(DINOV2, mlp_ratio=4.0),
    "gated": GATED,
    "registers": dataclasses.replace(REGISTERS, mlp_ratio=2.0),
    "dinov3": DINOV3,
    "dinov3 gated": DINOV3_GATED,
}


@pytest.mark.parametrize("form", ["official", "timm", "hf"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_format_comes_back(tmp_path, name, form):
    # Heads are taken to be 64 features wide.
    config = dataclasses.replace(FAMILIES[name], num_heads=1)
    params = random_params(config)
    params = without_key_biases(params) if (form, config.positions) == ("timm", "rope") else params
    written(tmp_path, params, config, form)
    found = load_pretrained(tmp_path / ("model" if form == "hf" else "model.safetensors"))
    resizing = "plain" if form == "hf" else "offset" if form == "official" or name == "plain" else "antialias"
    resizing = "antialias" if config.num_registers else resizing
    assert found.config == dataclasses.replace(config, dtype="auto", position_resizing=resizing)
    assert found.image_size == SIZE or config.positions == "rope"
    if (form, name) == ("timm", "registers"):
        # The position of [CLS] is added to it there.
        position, ours = found.params["position_embedding"], params["position_embedding"]
        assert not position[:, 0].any()
        np.testing.assert_array_equal(found.params["cls_token"], params["cls_token"] + ours[:, :1])
        np.testing.assert_array_equal(position[:, 1:], ours[:, 1:])
        params = {**params, **{name: found.params[name] for name in ("cls_token", "position_embedding")}}
    equal_trees(found.params, params)


def test_timm_has_a_model_without_biases_of_queries_and_values(tmp_path):
    params = without_key_biases(random_params(DINOV3))
    params["block_0"]["attention"]["qkv"]["bias"][:] = 0  # a copy
    weights = written(tmp_path, params, DINOV3, "timm")
    assert not [name for name in weights if name.endswith(("q_bias", "v_bias"))]
    equal_trees(load_pretrained(tmp_path / "model.safetensors").params, params)


# Ratio that Hugging Face multiplies with, and hidden features that it makes of it.
@pytest.mark.parametrize(("ratio", "hidden", "mlp"), [(2, 128, "gelu"), (3, 128, "swiglu"), (1, 48, "swiglu")])
def test_hugging_face_computes_the_hidden_features_that_there_are(tmp_path, ratio, hidden, mlp):
    config = dataclasses.replace(DINOV2, mlp=mlp, mlp_ratio=hidden / WIDTH, norm_epsilon=1e-5)
    weights = written(tmp_path, random_params(config), config, "hf")
    stated = json.loads((tmp_path / "model" / "config.json").read_text())
    assert stated["mlp_ratio"] == ratio and isinstance(stated["mlp_ratio"], int)
    assert stated["layer_norm_eps"] == 1e-5
    name = "weights_in" if mlp == "swiglu" else "fc1"
    assert len(weights[f"encoder.layer.0.mlp.{name}.bias"]) == (hidden * 2 if mlp == "swiglu" else hidden)


REFUSED = [
    (PLAIN, {"mlp": "swiglu"}, "hf", "mlp='swiglu', layer_scale=False: Hugging Face has no such model"),
    (PLAIN, {"positions": "rope"}, "hf", "positions='rope', layer_scale=False"),
    (DINOV2, {"mlp_ratio": 2.5}, "hf", "mlp_ratio=2.5: Hugging Face's DINOv2 takes integers"),
    (GATED, {"mlp_ratio": 8 / 3}, "hf", "a multiple of 8 hidden features, not 171; choose timm"),
    (DINOV3_GATED, {"mlp_ratio": 8 / 3}, "official", "mlp_ratio=2.66667: official has a multiple of 8"),
    (DINOV3, {}, "timm", "biases of keys that are not 0: timm has none; choose official or hf"),
    (PLAIN, {}, "onnx", "format='onnx': choose "),
]


def test_what_a_library_does_not_have_is_refused(tmp_path, monkeypatch):
    for config, change, form, message in REFUSED:
        config = dataclasses.replace(config, **change)
        with pytest.raises(ValueError, match=message):
            written(tmp_path, random_params(config), config, form)
    with pytest.raises(ValueError, match="ends in .safetensors or .pth"):
        write_arrays({}, tmp_path / "model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="needs PyTorch"):
        write_arrays({}, tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())


# Model of timm; config; format, and timm's module that converts official files.
TIMM = {
    "vit_small_patch14_dinov2": (DINOV2, "timm", ""),
    "vit_small_patch14_reg4_dinov2": (REGISTERS, "timm", ""),
    "vit_giant_patch14_dinov2": (GATED, "timm", ""),
    "vit_small_patch16_dinov3_qkvb": (DINOV3, "timm", ""),
    "vit_small_plus_patch16_dinov3_qkvb": (DINOV3_GATED, "timm", ""),
    "official vit_small_patch14_dinov2": (DINOV2, "official", "vision_transformer"),
    "official vit_small_patch16_dinov3_qkvb": (DINOV3, "official", "eva"),
    "official vit_small_plus_patch16_dinov3_qkvb": (DINOV3_GATED, "official", "eva"),
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_loads_it_strictly(tmp_path, name):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    config, form, module = TIMM[name]
    params = without_key_biases(random_params(config))
    weights = {key: torch.tensor(array) for key, array in written(tmp_path, params, config, form).items()}
    # timm's DINOv2 halves the hidden features of gated MLPs.
    ratio = config.mlp_ratio * (2 if config is GATED else 1)
    sizes = {"depth": 1, "embed_dim": WIDTH, "num_heads": 2, "mlp_ratio": ratio, "img_size": SIZE, "patch_size": PATCH}
    model = timm.create_model(name.split()[-1], num_classes=0, **sizes).eval()
    if module:
        weights = getattr(timm.models, module).checkpoint_filter_fn(weights, model)
    model.load_state_dict(weights, strict=True)
    assert_equal_features(torch, model.forward_features, config, params)


HF = {
    **FAMILIES,
    "no registers": dataclasses.replace(DINOV3, num_registers=0),
    "epsilon": dataclasses.replace(DINOV2, mlp_ratio=3.0, norm_epsilon=0.1),
}


@pytest.mark.parametrize("name", HF)
def test_hugging_face_loads_it(tmp_path, name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config, params = HF[name], random_params(HF[name])
    written(tmp_path, params, config, "hf")
    model, report = transformers.AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["unexpected_keys"] and all("pooler" in key for key in report["missing_keys"])
    assert_equal_features(torch, lambda images: model.eval()(images).last_hidden_state, config, params)


def assert_equal_features(torch, tokens_of, config, params):
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tokens_of(images).numpy()
    module = make_backbone(config, image_size=SIZE)
    found = jax.jit(module.apply)({"params": params}, images.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(found.cls, expected[:, 0], atol=1e-4)
    np.testing.assert_allclose(found.patches, expected[:, 1 + config.num_registers :], atol=1e-4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run whose student, teacher and centers differ, and its state."""
    workdir = tmp_path_factory.mktemp("run")
    recipe = tiny_recipe(
        backbone=BackboneConfig(width=64, depth=2, num_heads=1, patch_size=8, dtype="float32"),
        head=HeadConfig(hidden_dim=16, bottleneck_dim=8, num_prototypes=12, num_prototypes_dense=10),
    )
    return workdir, save_run(workdir, recipe, 7)


def assert_run(found, state):
    equal_trees(found.student, state.student)
    equal_trees(found.teacher, state.teacher)
    np.testing.assert_array_equal(found.center, state.center)
    np.testing.assert_array_equal(found.center_dense, state.center_dense)


def test_a_run_goes_to_the_official_code_and_back(run, tmp_path):
    torch = pytest.importorskip("torch")
    workdir, state = run
    file = export_run(workdir, tmp_path / "checkpoint.pth")
    assert_run(load_networks(file), state)
    contents = torch.load(file, weights_only=True)
    assert contents["croc_loss"]["center"].shape == (1, 12) and contents["epoch"] == 7
    assert all(name.startswith("module.") for name in contents["student"])
    np.testing.assert_array_equal(
        contents["teacher"]["head.last_layer.weight_v"].numpy(), state.teacher["head"]["last_layer"]["direction"]
    )


def test_a_run_needs_no_pytorch_to_go_and_come_back(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    workdir, state = run
    file = export_run(workdir, tmp_path / "run.safetensors")
    with safetensors.safe_open(file, framework="numpy") as opened:
        names = set(opened.keys())
        assert opened.metadata() == {"format": "pt"}
    assert {"student.backbone.cls_token", "teacher.head.last_layer_c.weight_g", "croc_loss.center_c"} < names
    # As a file, it is a source like any other.
    again = export_run(file, tmp_path / "again.safetensors")
    for found in (load_networks(file), load_networks(again)):
        assert_run(found, state)
        assert found.epoch == 7
    arrays = safetensors.numpy.load_file(file)
    for epoch in ({}, {"epoch": np.ones(2, np.float32)}):
        arrays.pop("epoch", None)
        other = tmp_path / "other.safetensors"
        safetensors.numpy.save_file(arrays | epoch, other)
        assert load_networks(other).epoch == 0
    student = load_pretrained(file, which="student")
    equal_trees(student.params, state.student["backbone"])
    assert student.epoch == 7

"""Official weights give the features that they give in PyTorch; others are refused with every name."""

import functools
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import croc_jax
from croc_jax.checkpoints import pretrained
from croc_jax.checkpoints.infer_architecture import count_heads
from croc_jax.checkpoints.pretrained import load_pretrained
from croc_jax.evaluation.backbones import load_backbone
from croc_jax.models import BackboneConfig
from tests.checkpoints.reference_vit import forward
from tests.checkpoints.tiny_weights import (
    DEPTH,
    PATCH,
    SIDE,
    WIDTH,
    dinov3_weights,
    equal_trees,
    official_weights,
    write,
)


def test_features_equal_a_float64_reference(tmp_path):
    weights = official_weights()
    backbone = croc_jax.load_backbone(str(write(tmp_path / "vit.safetensors", weights)))
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE * PATCH, SIDE * PATCH, 3), dtype=np.uint8)
    features, mean, deviation = backbone.encode(images), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    cls_token, patches = forward(weights, (images / 255 - mean) / deviation, num_heads=1)
    np.testing.assert_allclose(features.cls, cls_token, atol=2e-5)
    np.testing.assert_allclose(features.patches, patches, atol=2e-5)
    sizes = {"width": WIDTH, "depth": DEPTH, "num_heads": 1, "mlp_ratio": 2.0}
    assert backbone.recipe.backbone == BackboneConfig(patch_size=PATCH, **sizes)
    assert backbone.recipe.data.views.crop_size == SIDE * PATCH and backbone.step == 0
    with pytest.raises(ValueError, match=r"images \(12, 12, 3\) uint8: expected \[b H W 3\]"):
        backbone.encode(images[0])
    with pytest.raises(AttributeError, match="no attribute 'load'"):
        _ = croc_jax.load


def test_standard_sizes_are_known_by_name(tmp_path):
    weights = official_weights(width=192, depth=12, mlp_ratio=4)
    found = load_pretrained(write(tmp_path / "tiny.safetensors", weights))
    assert found.config == BackboneConfig(variant="vit_tiny", patch_size=PATCH)


def read_as(monkeypatch, contents):
    """Reads contents as if a .pth file held them."""
    monkeypatch.setattr(pretrained, "read_contents", lambda file: contents)
    return functools.partial(load_pretrained, Path("model.pth"))


def test_prefixes_and_heads_of_whole_checkpoints(monkeypatch):
    weights = official_weights()
    plain = read_as(monkeypatch, weights)()
    prefixed = {f"module.backbone.{name}": array for name, array in weights.items()}
    for contents in (prefixed | {"module.head.mlp.0.weight": np.ones(2)}, weights | {"head.mlp.0.weight": np.ones(2)}):
        found = read_as(monkeypatch, contents)()
        assert found.config == plain.config
        equal_trees(found.params, plain.params)


def test_teacher_and_student_of_pytorch_files(tmp_path):
    torch = pytest.importorskip("torch")
    students, teachers = official_weights(1), official_weights(2)
    contents = {
        "student": {f"module.backbone.{name}": torch.tensor(array) for name, array in students.items()},
        "teacher": {f"backbone.{name}": torch.tensor(array) for name, array in teachers.items()},
        "epoch": 300,
    }
    torch.save(contents, tmp_path / "checkpoint.pth")
    for which, weights in (("student", students), ("teacher", teachers)):
        found = load_pretrained(tmp_path / "checkpoint.pth", which=which)
        np.testing.assert_array_equal(found.params["position_embedding"], weights["pos_embed"])
        assert found.epoch == 300


def test_weights_among_other_things_are_found(monkeypatch):
    weights, averaged = official_weights(), official_weights(2)
    others = {"optimizer": {"state": {}}, "epoch": 7, "args": None}
    for wrap in ("model", "state_dict", "model_state", "model_ema", "state_dict_ema"):
        found = read_as(monkeypatch, {wrap: weights, **others})(which="student")
        np.testing.assert_array_equal(found.params["position_embedding"], weights["pos_embed"])
        assert found.epoch == 7
    inner = read_as(monkeypatch, {"model": {"state_dict": {f"model.{name}": a for name, a in weights.items()}}})()
    np.testing.assert_array_equal(inner.params["position_embedding"], weights["pos_embed"])
    # A moving average is the teacher.
    read = read_as(monkeypatch, {"model": weights, "model_ema": averaged})
    for which, expected in (("student", weights), ("teacher", averaged)):
        np.testing.assert_array_equal(read(which=which).params["cls_token"], expected["cls_token"])
    with pytest.raises(ValueError, match="which='ema': choose 'teacher' or 'student'$"):
        read_as(monkeypatch, weights)(which="ema")


def test_rotations_are_not_a_missing_position_embedding(monkeypatch):
    weights = official_weights()
    del weights["pos_embed"]
    with pytest.raises(ValueError, match="missing position_embedding"):
        read_as(monkeypatch, weights)()
    for sign, shape in {"rope_embed.periods": (16,), "storage_tokens": (1, 4, WIDTH)}.items():
        assert read_as(monkeypatch, weights | {sign: np.ones(shape, np.float32)})().config.positions == "rope"
    # What only training needs is left out.
    weights = dinov3_weights()
    local = {f"local_cls_norm.{end}": np.ones(256, np.float32) for end in ("weight", "bias")}
    equal_trees(read_as(monkeypatch, weights | local)().params, read_as(monkeypatch, weights)().params)
    with pytest.raises(ValueError, match="unknown weights local_cls_norms$"):
        read_as(monkeypatch, weights | {"local_cls_norms": np.ones(3)})()


ONES = np.ones(WIDTH, np.float32)
# What replaces some weights (None: they are missing), and the error.
OTHERS = [
    ({"cls_token": None}, "missing cls_token"),
    ({"blocks.1.attn.qkv.bias": None}, "missing block_1/attention/qkv/bias"),
    ({"blocks.0.ls1.gamma": ONES}, "missing block_0/scale_2; missing block_1/scale_1"),
    ({"blocks.0.adapter": ONES, "blocks.0.attn.head.weight": ONES}, "unknown weights blocks.0.adapter, .*head.weight"),
    ({"norm.bias": np.ones(3)}, r"norm/bias is \(3,\), expected \(64,\)"),
    ({"pos_embed": np.ones((1, 12, WIDTH))}, "12 positions of 64 features"),
    ({"pos_embed": np.ones(10)}, r"position_embedding \(10,\), expected one more than"),
    ({"patch_embed.proj.weight": ONES}, r"patch_embed.proj.weight is \(64,\), but 4 axes are needed$"),
    ({"patch_embed.proj.weight": np.ones((WIDTH, 4, PATCH, 3))}, "takes patches of 4 x 3 pixels, expected square ones"),
    ({"patch_embed.proj.weight": np.ones((WIDTH, 17, PATCH, PATCH))}, "image_channels=17: choose 1 to 16"),
    ({"norm.bias": np.ones(WIDTH, np.uint16)}, "norm.bias is of type uint16"),
    ({"module.norm.bias": ONES}, "norm.bias is there twice"),
    ({"blocks.0.attn.q_bias": ONES}, "block_0/attention/qkv/bias is there twice"),
    (
        {"blocks.999999.norm1.bias": ONES, "blocks.99999999999.x": ONES},
        "unknown weights blocks.999999.norm1.*, bl.*x$",
    ),
    ({"norm.bias": np.ones(0, np.float32)}, r"norm.bias is \(0,\), without any value$"),
    ({"norm.bias": np.full(WIDTH, np.nan, np.float32)}, "norm/bias holds NaN or infinity$"),
]


def test_other_architectures_are_refused_by_name(monkeypatch):
    for change, message in OTHERS:
        weights = {name: array for name, array in (official_weights() | change).items() if array is not None}
        with pytest.raises(ValueError, match=message):
            read_as(monkeypatch, weights)()


def test_one_error_lists_all(monkeypatch):
    weights = official_weights()
    for name in ("cls_token", "blocks.0.norm1.weight", "blocks.0.mlp.fc1.bias", "norm.weight"):
        del weights[name]
    weights |= {"blocks.0.adapter": np.ones(3), "norm.bias": np.ones(3), "patch_embed.proj.weight": np.ones(3)}
    weights |= {"optimizer": {"state": {}}, "epoch": 3}
    with pytest.raises(ValueError) as caught:
        read_as(monkeypatch, weights)()
    assert str(caught.value) == (
        "model.pth is no known vision transformer: unknown weights blocks.0.adapter; "
        "patch_embed.proj.weight is (3,), but 4 axes are needed; missing block_0/mlp_1/bias; "
        "missing block_0/norm_1/scale; missing cls_token; missing norm/scale; norm/bias is (3,), expected (64,)"
    )


def test_parts_of_a_matrix_are_missed_one_by_one(monkeypatch):
    weights = official_weights()
    for block in range(DEPTH):
        for end in ("weight", "bias"):
            parts = np.split(weights.pop(f"blocks.{block}.attn.qkv.{end}"), 3)
            for kind, part in zip(("query", "key", "value"), parts, strict=True):
                weights[f"encoder.layer.{block}.attention.attention.{kind}.{end}"] = part
    assert read_as(monkeypatch, weights)().config.depth == DEPTH
    prefix = "encoder.layer.0.attention.attention."
    lacking = {name: array for name, array in weights.items() if not name.startswith(f"{prefix}key")}
    del lacking["encoder.layer.1.attention.attention.value.weight"]
    with pytest.raises(ValueError) as caught:
        read_as(monkeypatch, lacking)()
    for part in ("1 of block_0/attention/qkv/kernel", "1 of block_0/attention/qkv/bias", "2 of block_1/attention/qkv"):
        assert f"missing parts {part}" in str(caught.value)
    with pytest.raises(ValueError, match=r"the parts of block_0/attention/qkv/bias are \(3,\), \(64,\), \(64"):
        read_as(monkeypatch, weights | {f"{prefix}query.bias": np.ones(3)})()


def test_folders_in_several_files(tmp_path):
    weights, index = official_weights(), tmp_path / "model.safetensors.index.json"
    # As Hugging Face writes what is too large for one file.
    files = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(weights)}
    for file in set(files.values()):
        write(tmp_path / file, {name: array for name, array in weights.items() if files[name] == file})
    index.write_text(json.dumps({"weight_map": files}))
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 4, "layer_norm_eps": 1e-5}))
    for path in (tmp_path, index):
        found = load_backbone(path)
        np.testing.assert_array_equal(found.params["position_embedding"], weights["pos_embed"])
        assert found.recipe.backbone.num_heads == 4 and found.recipe.backbone.norm_epsilon == 1e-5
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no file .*model-1.safetensors"):
        load_backbone(tmp_path)
    damaged = {
        "it holds a list": "[1]",
        "does not name files beside it": '{"weight_map": {"a": "\\u0000", "b": "../b"}}',
    }
    for reason, text in damaged.items():
        index.write_text(text)
        with pytest.raises(ValueError, match=f"index.json:? {reason}"):
            load_backbone(tmp_path)


def test_folders_of_pytorch_files(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(array) for name, array in official_weights().items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        np.testing.assert_array_equal(load_backbone(path).params["position_embedding"], tensors["pos_embed"])


def test_a_config_json_distinguishes_timm_from_dino(tmp_path):
    write(tmp_path / "model.safetensors", official_weights())
    assert load_pretrained(tmp_path).config.position_resizing == "offset"
    settings = {"architecture": "vit_small_patch16_224", "model_args": {"num_heads": 2}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = load_pretrained(tmp_path).config
    assert config.position_resizing == "antialias" and config.num_heads == 2


def test_safetensors_of_other_types_and_files_that_are_none(tmp_path):
    weights = official_weights()
    halves = {name: array.astype(ml_dtypes.bfloat16) for name, array in weights.items()}
    found = load_pretrained(write(tmp_path / "half.safetensors", halves)).params["cls_token"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, halves["cls_token"].astype(np.float32))
    eighth = {**weights, "norm.bias": weights["norm.bias"].astype(ml_dtypes.float8_e4m3fn)}
    with pytest.raises(ValueError, match="norm.bias is of type F8_E4M3, which is not read: save it as float32$"):
        load_pretrained(write(tmp_path / "eighth.safetensors", eighth))
    with pytest.raises(FileNotFoundError, match="none.pth"):
        load_pretrained(tmp_path / "none.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match="is no file of weights: it begins with b'no weights'"):
        load_pretrained(tmp_path / "text.safetensors")


def test_the_number_of_heads_is_inferred_or_stated(monkeypatch, tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(ValueError, match="num_heads=4.*is a run|num_heads=4: the config of the run"):
        croc_jax.load_backbone(tmp_path, num_heads=4)
    assert read_as(monkeypatch, dinov3_weights(periods=16))().config.num_heads == 4
    assert read_as(monkeypatch, dinov3_weights())(num_heads=8).config.num_heads == 8
    # Their periods are certain, whatever the default is.
    assert read_as(monkeypatch, dinov3_weights())(default_heads=8).config.num_heads == 2
    plain = read_as(monkeypatch, official_weights(width=192, depth=1))
    heads = {"num_heads": 2}, {"default_heads": 6}, {"default_heads": 5}
    assert [plain(**options).config.num_heads for options in heads] == [2, 6, 3]
    with pytest.raises(ValueError, match="num_heads=5 does not divide 192 features"):
        plain(num_heads=5)
    with pytest.raises(ValueError, match=r"96 features do not make heads of 64: state their number.*num_heads"):
        read_as(monkeypatch, official_weights(width=96, depth=1))()


@pytest.mark.parametrize(
    ("size", "rope", "heads", "certain"),
    [
        ((1280, 32), False, 16, True),
        ((1280, 32), True, 20, False),
        ((4096, 40), True, 32, True),
        ((1024, 24), False, 16, False),
    ],
)
def test_heads_of_well_known_sizes(size, rope, heads, certain):
    width, depth = size
    assert count_heads({}, None, width=width, depth=depth, rope=rope) == (heads, certain, [])
    assert count_heads({}, 8, width=width, depth=depth, rope=rope) == (8, True, [])

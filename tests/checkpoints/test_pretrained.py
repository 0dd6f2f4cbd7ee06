"""Official weights give the features that they give in PyTorch; others are refused with every name."""

import functools
import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import croc_jax
from croc_jax.checkpoints import pretrained
from croc_jax.checkpoints.infer_architecture import count_heads
from croc_jax.checkpoints.pretrained import load_pretrained
from croc_jax.evaluation.backbones import load_backbone
from croc_jax.models import BackboneConfig
from tests.checkpoints.reference_vit import forward

WIDTH, DEPTH, PATCH, SIDE = 64, 2, 4, 3


def official_weights(seed=0, *, width=WIDTH, depth=DEPTH, mlp_ratio=2):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return (0.2 * rng.standard_normal(shape)).astype(np.float32)

    weights = {
        "cls_token": draw(1, 1, width),
        "pos_embed": draw(1, SIDE**2 + 1, width),
        "patch_embed.proj.weight": draw(width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": draw(width),
        "norm.weight": 1 + draw(width),
        "norm.bias": draw(width),
    }
    for i in range(depth):
        shapes = {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (mlp_ratio * width, width),
            "mlp.fc1.bias": (mlp_ratio * width,),
            "mlp.fc2.weight": (width, mlp_ratio * width),
            "mlp.fc2.bias": (width,),
        }
        weights |= {f"blocks.{i}.{name}": draw(*shape) for name, shape in shapes.items()}
    return weights


def write(file, weights):
    safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in weights.items()}, file)
    return file


def test_features_equal_a_float64_reference(tmp_path):
    weights = official_weights()
    backbone = load_backbone(write(tmp_path / "vit.safetensors", weights))
    images = np.random.default_rng(1).standard_normal((2, SIDE * PATCH, SIDE * PATCH, 3)).astype(np.float32)
    features = jax.jit(backbone.module.apply)({"params": backbone.params}, images)
    cls_token, patches = forward(weights, images, num_heads=1)
    np.testing.assert_allclose(features.cls, cls_token, atol=2e-5)  # pyright: ignore
    np.testing.assert_allclose(features.patches, patches, atol=2e-5)  # pyright: ignore
    assert backbone.recipe.backbone == BackboneConfig(
        patch_size=PATCH, width=WIDTH, depth=DEPTH, num_heads=1, mlp_ratio=2.0
    )
    assert backbone.recipe.data.views.crop_size == SIDE * PATCH and backbone.step == 0


def test_a_notebook_loads_and_encodes_in_two_lines(tmp_path):
    file = write(tmp_path / "vit.safetensors", official_weights())
    backbone = croc_jax.load_backbone(str(file))
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE * PATCH, SIDE * PATCH, 3), dtype=np.uint8)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = forward(official_weights(), (images / 255 - mean) / deviation, num_heads=1)[1]
    np.testing.assert_allclose(backbone.encode(images).patches, expected, atol=2e-5)
    with pytest.raises(ValueError, match=r"images \(12, 12, 3\) uint8: expected \[b H W 3\]"):
        backbone.encode(images[0])
    with pytest.raises(AttributeError, match="no attribute 'load'"):
        _ = croc_jax.load


def test_prefixes_and_heads_of_whole_checkpoints(tmp_path):
    weights, head = official_weights(), {"head.mlp.0.weight": np.zeros((2, 2), np.float32)}
    plain = load_pretrained(write(tmp_path / "plain.safetensors", weights))
    prefixed = {f"module.backbone.{name}": array for name, array in weights.items()}
    same = load_pretrained(write(tmp_path / "a.safetensors", prefixed | {"module.head.mlp.0.weight": np.ones(2)}))
    other = load_pretrained(write(tmp_path / "b.safetensors", {**weights, **head}))
    for found in (same, other):
        assert found.config == plain.config
        jax.tree.map(np.testing.assert_array_equal, found.params, plain.params)


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
    with pytest.raises(ValueError, match="holds no 'ema', only epoch, student, teacher"):
        load_pretrained(tmp_path / "checkpoint.pth", which="ema")


def read_as(monkeypatch, contents):
    """Reads contents as if a .pth file held them."""
    monkeypatch.setattr(pretrained, "read_contents", lambda file: contents)
    return functools.partial(load_pretrained, Path("model.pth"))


@pytest.mark.parametrize("wrap", ["model", "state_dict", "model_state", "model_ema", "state_dict_ema"])
def test_weights_among_other_things_are_found(monkeypatch, wrap):
    weights = official_weights()
    read = read_as(monkeypatch, {wrap: weights, "optimizer": {"state": {}}, "epoch": 7, "args": None})
    for which in ("teacher", "student"):
        found = read(which=which)
        np.testing.assert_array_equal(found.params["position_embedding"], weights["pos_embed"])
        assert found.epoch == 7
    inner = read_as(monkeypatch, {"model": {"state_dict": {f"model.{name}": a for name, a in weights.items()}}})()
    np.testing.assert_array_equal(inner.params["position_embedding"], weights["pos_embed"])


def test_a_moving_average_is_the_teacher(monkeypatch):
    trained, averaged = official_weights(1), official_weights(2)
    read = read_as(monkeypatch, {"model": trained, "model_ema": averaged})
    for which, weights in (("student", trained), ("teacher", averaged)):
        np.testing.assert_array_equal(read(which=which).params["cls_token"], weights["cls_token"])
    with pytest.raises(ValueError, match="holds no 'student', only teacher"):
        read_as(monkeypatch, {"teacher": trained})(which="student")


def test_a_backbone_alone_is_neither_teacher_nor_anything_else(monkeypatch):
    read = read_as(monkeypatch, official_weights())
    assert read(which="student").config == read(which="teacher").config
    with pytest.raises(ValueError, match="which='ema': choose 'teacher' or 'student'; model.pth holds one"):
        read(which="ema")


def dinov3_weights(*, width=256, periods=32):
    weights = official_weights(width=width)
    del weights["pos_embed"]
    return weights | {"rope_embed.periods": np.ones(periods, np.float32)}


def test_what_only_training_needs_is_left_out(monkeypatch):
    weights = dinov3_weights()
    local = {f"local_cls_norm.{end}": np.ones(256, np.float32) for end in ("weight", "bias")}
    found, expected = read_as(monkeypatch, weights | local)(), read_as(monkeypatch, weights)()
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    with pytest.raises(ValueError, match="unknown weights local_cls_norms$"):
        read_as(monkeypatch, weights | {"local_cls_norms": np.ones(3)})()


def test_a_missing_position_embedding_is_no_rotation(monkeypatch):
    weights = official_weights()
    del weights["pos_embed"]
    with pytest.raises(ValueError, match=r"missing position_embedding \(pos_embed\)"):
        read_as(monkeypatch, weights)()
    for sign in ("rope_embed.periods", "storage_tokens"):
        shape = (1, 4, WIDTH) if sign == "storage_tokens" else (16,)
        assert read_as(monkeypatch, weights | {sign: np.ones(shape, np.float32)})().config.positions == "rope"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("cls_token"), "missing cls_token"),
        (lambda w: w.pop("blocks.1.attn.qkv.bias"), r"missing block_1/attention/qkv/bias \(blocks.1.attn.qkv.bias\)"),
        (
            lambda w: w.update({"blocks.0.ls1.gamma": np.ones(WIDTH)}),
            r"missing block_0/scale_2 \(blocks.0.ls2.gamma\); missing block_1/scale_1 \(",
        ),
        (lambda w: w.update({"blocks.0.adapter": np.ones(WIDTH)}), "unknown weights blocks.0.adapter"),
        (
            lambda w: w.update({"blocks.0.attn.head.weight": np.ones(WIDTH)}),
            "unknown weights .*attn.head.weight",
        ),
        (lambda w: w.update({"norm.bias": np.ones(3)}), r"norm/bias is \(3,\), expected \(64,\)"),
        (lambda w: w.update({"pos_embed": np.ones((1, 12, WIDTH))}), "12 positions of 64 features"),
        (
            lambda w: w.update({"pos_embed": np.ones(10)}),
            r"position_embedding \(10,\), expected one more than",
        ),
        (
            lambda w: w.update({"patch_embed.proj.weight": np.ones(WIDTH)}),
            r"patch_embed.proj.weight is \(64,\), but 4 axes are needed$",
        ),
        (
            lambda w: w.update({"patch_embed.proj.weight": np.ones((WIDTH, 4, PATCH, PATCH))}),
            "takes 64 values, expected 3 colors of square patches$",
        ),
        (lambda w: w.update({"norm.bias": np.ones(WIDTH, np.uint16)}), "norm.bias is of type uint16"),
        (lambda w: w.update({"module.norm.bias": np.ones(WIDTH)}), "norm.bias is there twice"),
        (lambda w: w.update({"blocks.0.attn.q_bias": np.ones(WIDTH)}), "block_0/attention/qkv/bias is there twice"),
    ],
)
def test_other_architectures_are_refused_by_name(tmp_path, change, message):
    weights = official_weights()
    change(weights)
    with pytest.raises(ValueError, match=message):
        load_pretrained(write(tmp_path / "other.safetensors", weights))


def test_one_error_lists_all(monkeypatch):
    weights = official_weights()
    for name in ("cls_token", "blocks.0.norm1.weight", "blocks.0.mlp.fc1.bias", "norm.weight"):
        del weights[name]
    weights |= {"blocks.0.adapter": np.ones(3), "norm.bias": np.ones(3), "patch_embed.proj.weight": np.ones(3)}
    weights |= {"optimizer": {"state": {}}, "epoch": 3}
    with pytest.raises(ValueError) as caught:
        read_as(monkeypatch, weights)()
    assert str(caught.value) == (
        "model.pth is no vision transformer that we know: unknown weights blocks.0.adapter, optimizer; "
        "patch_embed.proj.weight is (3,), but 4 axes are needed; "
        "missing block_0/mlp_1/bias (blocks.0.mlp.fc1.bias); missing block_0/norm_1/scale (blocks.0.norm1.weight); "
        "missing cls_token; missing norm/scale (norm.weight); norm/bias is (3,), expected (64,)"
    )
    with pytest.raises(ValueError, match="unknown weights a, b; missing block_0/.*; missing cls_token"):
        read_as(monkeypatch, {"b": np.ones(3), "a": np.ones(3)})()


def test_parts_of_a_matrix_are_missed_one_by_one(monkeypatch):
    weights = official_weights()
    for block in range(DEPTH):
        whole = {end: weights.pop(f"blocks.{block}.attn.qkv.{end}") for end in ("weight", "bias")}
        for end, array in whole.items():
            for kind, part in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                weights[f"encoder.layer.{block}.attention.attention.{kind}.{end}"] = part
    assert read_as(monkeypatch, weights)().config.depth == DEPTH
    prefix = "encoder.layer.0.attention.attention."
    lacking = {name: array for name, array in weights.items() if not name.startswith(f"{prefix}key")}
    del lacking["encoder.layer.1.attention.attention.value.weight"]
    with pytest.raises(ValueError) as caught:
        read_as(monkeypatch, lacking)()
    for message in (
        "missing parts 1 of block_0/attention/qkv/kernel",
        "missing parts 1 of block_0/attention/qkv/bias",
        "missing parts 2 of block_1/attention/qkv/kernel",
    ):
        assert message in str(caught.value)
    with pytest.raises(ValueError, match=r"the parts of block_0/attention/qkv/bias are \(3,\), \(64,\), \(64"):
        read_as(monkeypatch, weights | {f"{prefix}query.bias": np.ones(3)})()


def split_in_two(folder, weights):
    """Writes the weights as Hugging Face does those that are too large for one file."""
    files = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(weights)}
    for file in set(files.values()):
        write(folder / file, {name: array for name, array in weights.items() if files[name] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def test_folders_in_several_files(tmp_path):
    weights = official_weights()
    split_in_two(tmp_path, weights)
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 4, "layer_norm_eps": 1e-5}))
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        found = load_backbone(path)
        np.testing.assert_array_equal(found.params["position_embedding"], weights["pos_embed"])
        assert found.recipe.backbone.num_heads == 4 and found.recipe.backbone.norm_epsilon == 1e-5
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no file .*model-1.safetensors"):
        load_backbone(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"index.json: it holds a list"):
        load_backbone(tmp_path)


def test_folders_of_pytorch_files(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(array) for name, array in official_weights().items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        found = load_backbone(path)
        np.testing.assert_array_equal(found.params["position_embedding"], tensors["pos_embed"])


def test_the_description_tells_timm_from_dino(tmp_path):
    write(tmp_path / "model.safetensors", official_weights())
    assert load_pretrained(tmp_path).config.position_resizing == "offset"
    settings = {"architecture": "vit_small_patch16_224", "model_args": {"num_heads": 2}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = load_pretrained(tmp_path).config
    assert config.position_resizing == "antialias" and config.num_heads == 2


def test_types_of_numbers_in_safetensors(tmp_path):
    weights = official_weights()
    halves = {name: array.astype(ml_dtypes.bfloat16) for name, array in weights.items()}
    found = load_pretrained(write(tmp_path / "half.safetensors", halves))
    assert found.params["cls_token"].dtype == np.float32
    np.testing.assert_array_equal(found.params["cls_token"], halves["cls_token"].astype(np.float32))
    eighth = {**weights, "norm.bias": weights["norm.bias"].astype(ml_dtypes.float8_e4m3fn)}
    with pytest.raises(ValueError, match="norm.bias is of type F8_E4M3, which is not read: save it as float32$"):
        load_pretrained(write(tmp_path / "eighth.safetensors", eighth))


def test_keys_that_are_no_strings_are_refused(monkeypatch):
    for contents in ({0: np.ones(3), 1: np.ones(3)}, {"model": {0: np.ones(3), 1: np.ones(3)}}):
        with pytest.raises(ValueError, match="model.pth has keys that are no strings, such as 0, 1: save"):
            read_as(monkeypatch, contents)()


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pth"):
        load_pretrained(tmp_path / "none.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match="is no safetensors file"):
        load_pretrained(tmp_path / "text.safetensors")


def test_the_number_of_heads_is_inferred_or_stated(monkeypatch, tmp_path):
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
    monkeypatch.undo()
    with pytest.raises(ValueError, match="num_heads=4: the config of the run .* has it"):
        croc_jax.load_backbone(tmp_path, num_heads=4)
    file = write(tmp_path / "vit.safetensors", official_weights())
    assert croc_jax.load_backbone(file, num_heads=4).module.num_heads == 4  # pyright: ignore


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


def test_standard_sizes_are_known_by_name(tmp_path):
    weights = official_weights(width=192, depth=12, mlp_ratio=4)
    found = load_pretrained(write(tmp_path / "tiny.safetensors", weights))
    assert found.config == BackboneConfig(variant="vit_tiny", patch_size=PATCH)

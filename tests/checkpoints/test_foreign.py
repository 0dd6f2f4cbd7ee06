"""Official weights give the features that they give in PyTorch; others are refused with every name."""

import jax
import numpy as np
import pytest
import safetensors.numpy

import croc_jax
from croc_jax.checkpoints.foreign import ForeignWeightsError, load_foreign_backbone
from croc_jax.evaluation.backbones import trained_backbone
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
    backbone = trained_backbone(write(tmp_path / "vit.safetensors", weights))
    images = np.random.default_rng(1).standard_normal((2, SIDE * PATCH, SIDE * PATCH, 3)).astype(np.float32)
    features = backbone.module.apply({"params": backbone.params}, images)
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
    plain = load_foreign_backbone(write(tmp_path / "plain.safetensors", weights))
    prefixed = {f"module.backbone.{name}": array for name, array in weights.items()}
    same = load_foreign_backbone(write(tmp_path / "a.safetensors", prefixed | {"module.head.mlp.0.weight": np.ones(2)}))
    other = load_foreign_backbone(write(tmp_path / "b.safetensors", {**weights, **head}))
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
        found = load_foreign_backbone(tmp_path / "checkpoint.pth", which=which)
        np.testing.assert_array_equal(found.params["position_embedding"], weights["pos_embed"])
        assert found.epoch == 300
    with pytest.raises(ForeignWeightsError, match="holds no 'ema', only epoch, student, teacher"):
        load_foreign_backbone(tmp_path / "checkpoint.pth", which="ema")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("cls_token"), "lacks cls_token"),
        (lambda w: w.pop("blocks.1.attn.qkv.bias"), "no block_1/attention/qkv/bias"),
        (lambda w: w.update({"blocks.0.ls1.gamma": np.ones(WIDTH)}), "no block_0/scale_2; no block_1/scale_1"),
        (lambda w: w.update({"blocks.0.adapter": np.ones(WIDTH)}), "no place for the weights blocks.0.adapter"),
        (lambda w: w.update({"norm.bias": np.ones(3)}), r"norm/bias is \(3,\), not \(64,\)"),
        (lambda w: w.update({"pos_embed": np.ones((1, 12, WIDTH))}), "12 positions of 64 features"),
    ],
)
def test_other_architectures_are_refused_by_name(tmp_path, change, message):
    weights = official_weights()
    change(weights)
    with pytest.raises(ForeignWeightsError, match=message):
        load_foreign_backbone(write(tmp_path / "other.safetensors", weights))


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pth"):
        load_foreign_backbone(tmp_path / "none.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ForeignWeightsError, match="is no safetensors file"):
        load_foreign_backbone(tmp_path / "text.safetensors")


def test_standard_sizes_are_known_by_name(tmp_path):
    weights = official_weights(width=192, depth=12, mlp_ratio=4)
    found = load_foreign_backbone(write(tmp_path / "tiny.safetensors", weights))
    assert found.config == BackboneConfig(variant="vit_tiny", patch_size=PATCH)

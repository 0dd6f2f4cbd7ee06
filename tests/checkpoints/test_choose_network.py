"""Of whole training checkpoints, the teacher is found behind any prefix."""

from pathlib import Path

import numpy as np
import pytest

from croc_jax.checkpoints.choose_network import choose_network

ONE = np.ones(3, np.float32)
FILE = Path("run.ckpt")


def vit(value):
    """Returns some names of a transformer, with a value that tells one from another."""
    names = ("cls_token", "patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.11.mlp.fc1.bias")
    return {name: np.full(3, value, np.float32) for name in names}


def resnet(value):
    return {name: np.full(3, value, np.float32) for name in ("conv1.weight", "layer1.0.conv1.weight", "fc.weight")}


def behind(prefix, weights):
    return {prefix + name: array for name, array in weights.items()}


STUDENT, TEACHER = vit(0), vit(1)
LIGHTNING = {"pytorch-lightning_version": "2.1", "optimizer_states": [{}], "hyper_parameters": None, "epoch": 3}
# What a program saves, and the prefixes of its two networks.
CHECKPOINTS = {
    "dino": (
        {"student": behind("module.backbone.", STUDENT), "teacher": behind("backbone.", TEACHER), "args": None},
        ("teacher.backbone.", "student.backbone."),
    ),
    "dinov2": (
        {"model": behind("student.backbone.", STUDENT) | behind("teacher.backbone.", TEACHER) | {"dino_loss.c": ONE}},
        ("model.teacher.backbone.", "model.student.backbone."),
    ),
    "dinov3": (
        behind("student.backbone.", STUDENT) | behind("teacher.backbone.", TEACHER) | behind("gram_teacher.b.", vit(7)),
        ("teacher.backbone.", "student.backbone."),
    ),
    "lightly": (
        {"state_dict": behind("student_backbone.", STUDENT) | behind("teacher_backbone.", TEACHER), **LIGHTNING},
        ("state_dict.teacher_backbone.", "state_dict.student_backbone."),
    ),
    "lightly-train": (
        {
            "state_dict": behind("student_embedding_model.wrapped_model._model.", STUDENT)
            | behind("teacher_embedding_model.wrapped_model._model.", TEACHER)
        },
        tuple(f"state_dict.{of}_embedding_model.wrapped_model._model." for of in ("teacher", "student")),
    ),
    "solo-learn": (
        {"state_dict": behind("backbone.", STUDENT) | behind("momentum_backbone.", TEACHER), **LIGHTNING},
        ("state_dict.momentum_backbone.", "state_dict.backbone."),
    ),
    "moco v3": (
        {"state_dict": behind("module.base_encoder.", STUDENT) | behind("module.momentum_encoder.", TEACHER)},
        ("state_dict.momentum_encoder.", "state_dict.base_encoder."),
    ),
    "moco v2": (
        {"state_dict": behind("module.encoder_q.", resnet(0)) | behind("module.encoder_k.", resnet(1))},
        ("state_dict.encoder_k.", "state_dict.encoder_q."),
    ),
    "i-jepa": (
        {"encoder": behind("module.", STUDENT), "target_encoder": behind("module.", TEACHER)},
        ("target_encoder.", "encoder."),
    ),
    "timm": ({"state_dict": STUDENT, "state_dict_ema": TEACHER}, ("state_dict_ema.", "state_dict.")),
    "average beside it": (STUDENT | behind("ema.", TEACHER), ("ema.", "")),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_teacher_is_taken_and_its_prefix_named(name):
    contents, prefixes = CHECKPOINTS[name]
    contents = contents | {"optimizer": {"state": {"0": {"exp_avg": ONE}}}, "head.mlp.0.weight": ONE}
    for which, prefix, value in zip(("teacher", "student"), prefixes, (1, 0), strict=True):
        found = choose_network(contents, FILE, which=which)
        arrays = {name: array for name, array in found.weights.items() if not name.startswith("head")}
        expected = resnet(value) if name == "moco v2" else vit(value)
        assert found.prefix == prefix and arrays.keys() == expected.keys()
        assert all((array == value).all() for array in arrays.values())
        other = next(other for other in prefixes if other != prefix)
        assert (f"of {prefix}" if prefix else "without a prefix") in found.note and other in found.note


@pytest.mark.parametrize(
    ("contents", "prefix"),
    [
        ({"model": TEACHER | {"decoder_blocks.0.norm1.weight": ONE}, "epoch": 8}, "model."),
        ({"classy_state_dict": {"base_model": {"model": {"trunk": behind("_feature_blocks.", resnet(1))}}}},
         "classy_state_dict.base_model.model.trunk._feature_blocks."),
        (behind("visual.trunk.", TEACHER) | {"text.token_embedding.weight": ONE}, "visual.trunk."),
        (behind("module._orig_mod.", TEACHER), ""),
        (TEACHER | {"blocks.0._fsdp_wrapped_module.norm2.bias": ONE}, ""),
    ],
)  # fmt: skip
def test_one_network_needs_no_name(contents, prefix):
    for which in ("teacher", "student"):
        found = choose_network(contents, FILE, which=which)
        assert found.prefix == prefix and "layer1.0.conv1.weight" in found.weights or "cls_token" in found.weights
        assert not any("module" in name or "_orig_mod" in name for name in found.weights)
        assert bool(found.note) == bool(prefix)


def test_what_is_no_single_network_is_explained_in_a_line():
    gpt = {f"transformer.h.{index}.attn.weight": ONE for index in range(5000)} | {"lm_head.weight": ONE}
    cyclic = {}
    cyclic["self"] = cyclic
    for contents, message in (
        (gpt, r"holds no known backbone: its 5001 arrays begin with transformer.h \(5000\), lm_head \(1\)$"),
        ({f"{'x' * 10**4}{index}": ONE for index in range(99)}, r"its 99 arrays begin with xxx.* and \d+ more$"),
        ({"epoch": 1, "optimizer": {}}, "holds no known backbone: no array lies in it"),
        (cyclic, "no array lies in it"),
        (behind("left.", STUDENT) | behind("right.", TEACHER), r"several backbones, left. \(4 arrays\), right. \(4"),
        ({f"x{index}.patch_embed.proj.weight": ONE for index in range(999)}, "run.ckpt: there are 999 backbones"),
        ({"teacher.backbone.blocks.0._fsdp_wrapped_module._flat_param": ONE}, "FSDP has joined"),
        (TEACHER | {"module.cls_token": ONE}, "run.ckpt: cls_token is there twice, with and without a wrapper"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            choose_network(contents, FILE, which="teacher")
        assert len(str(caught.value)) < 600 and str(caught.value).isprintable()
    for which, other in (("teacher", "student"), ("student", "teacher")):
        with pytest.raises(ValueError, match=rf"holds no {which!r}, only a {other}: choose that \({other}.backbone.\)"):
            choose_network({other: behind("backbone.", TEACHER)}, FILE, which=which)

"""Weights of timm and Hugging Face give the features that they give there, at other sizes of images, too."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from croc_jax.checkpoints.pretrained import load_pretrained
from croc_jax.models import make_backbone

torch = pytest.importorskip("torch")

SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


def shuffle(model):
    """Every weight counts, also those that start at 0 or 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if "token" in name or "pos" in name else 0.08
            base = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(base + scale * torch.randn_like(parameter))
    return model.eval()


def features_of(loaded, images):
    module = make_backbone(dataclasses.replace(loaded.config, dtype="float32"), image_size=loaded.image_size)
    return jax.jit(module.apply)({"params": loaded.params}, images.permute(0, 2, 3, 1).numpy())


def assert_equal_features(loaded, tokens_of, *, patch_size, first):
    for size in ((loaded.image_size, loaded.image_size), (3 * patch_size, 5 * patch_size)):
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = tokens_of(images).numpy()
        found = features_of(loaded, images)
        np.testing.assert_allclose(found.cls, expected[:, 0], atol=1e-4)
        np.testing.assert_allclose(found.patches, expected[:, first:], atol=1e-4)


HUGGING_FACE = {
    "ViT": ({"intermediate_size": 256, "image_size": 64, "patch_size": 16}, 0),
    "Dinov2": ({"image_size": 70, "patch_size": 14}, 0),
    "Dinov2 giant": ({"image_size": 70, "patch_size": 14, "use_swiglu_ffn": True}, 0),
    "Dinov2WithRegisters": ({"image_size": 70, "patch_size": 14, "num_register_tokens": 3}, 3),
    "DINOv3ViT": ({"intermediate_size": 256, "num_register_tokens": 4, "patch_size": 16}, 4),
    "DINOv3ViT gated": (
        {
            "intermediate_size": 192,
            "num_register_tokens": 2,
            "patch_size": 16,
            "use_gated_mlp": True,
            "hidden_act": "silu",
        },
        2,
    ),
}


def make_hugging_face(name):
    transformers = pytest.importorskip("transformers")
    settings, registers = HUGGING_FACE[name]
    kind = name.split()[0]
    config = getattr(transformers, f"{kind}Config")(**SMALL, **settings)
    extra = {"add_pooling_layer": False} if kind == "ViT" else {}
    return shuffle(getattr(transformers, f"{kind}Model")(config, **extra)), registers


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face(tmp_path, name):
    model, registers = make_hugging_face(name)
    # Large models come in several files.
    model.save_pretrained(tmp_path, **({"max_shard_size": "500KB"} if name == "Dinov2" else {}))
    assert (tmp_path / "model.safetensors.index.json").is_file() == (name == "Dinov2")
    loaded = load_pretrained(tmp_path)
    assert loaded.config.num_registers == registers and loaded.config.num_heads == 2
    patch_size = loaded.config.patch_size
    options = {"interpolate_pos_encoding": True} if name == "ViT" else {}

    def tokens_of(images):
        return model(images, **options).last_hidden_state

    assert_equal_features(loaded, tokens_of, patch_size=patch_size, first=1 + registers)


CONVOLUTIONAL = {
    "timm resnet50": {"layers": [1, 2, 1, 1]},
    "timm convnext_tiny": {"depths": [1, 2, 1, 1], "dims": [16, 32, 64, 128]},
    "ResNet": {"embedding_size": 16, "hidden_sizes": [64, 128, 256, 512], "depths": [1, 2, 1, 1]},
    "ConvNext": {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 2, 1, 1]},
    "DINOv3ConvNext": {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 2, 1, 1]},
}


def shuffle_statistics(model):
    """Running statistics count, too."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return model


def assert_equal_maps(loaded, map_of, *, patch_size, sizes=((64, 64), (64, 96))):
    loaded = loaded._replace(config=dataclasses.replace(loaded.config, patch_size=patch_size), image_size=64)
    for size in sizes:
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = map_of(images).flatten(2).mT.numpy()
        found = features_of(loaded, images)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(found.patches, expected, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONAL if not name.startswith("timm ")])
def test_convolutional_networks_of_hugging_face(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(**CONVOLUTIONAL[name])
    model = shuffle_statistics(shuffle(getattr(transformers, f"{name}Model")(config)))
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.config.stages == (1, 2, 1, 1) and loaded.config.variant == detected(name)

    def map_of(images):
        found = model(images).last_hidden_state
        if name == "ResNet":
            return found
        if name == "DINOv3ConvNext":
            rows, columns = (side // 32 for side in images.shape[2:])
            return found[:, 1:].mT.unflatten(2, (rows, columns))
        return model.layernorm(found.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    assert_equal_maps(loaded, map_of, patch_size=32)


def detected(name):
    return "resnet_50" if name == "ResNet" else "convnext_tiny"


@pytest.mark.parametrize("patch_size", [32, 16, 8])
@pytest.mark.parametrize("name", [name for name in CONVOLUTIONAL if name.startswith("timm ")])
def test_convolutional_networks_of_timm(tmp_path, name, patch_size):
    timm = pytest.importorskip("timm")
    settings = {"num_classes": 0, "output_stride": patch_size, **CONVOLUTIONAL[name]}
    model = shuffle_statistics(shuffle(timm.create_model(name.removeprefix("timm "), **settings)))
    torch.save(model.state_dict(), tmp_path / "model.pth")
    loaded = load_pretrained(tmp_path / "model.pth")

    def map_of(images):
        found = model.forward_features(images)
        return model.head.norm(found) if "convnext" in name else found

    assert_equal_maps(loaded, map_of, patch_size=patch_size)


TIMM = {
    "vit_small_patch16_224": {"img_size": 64},
    "vit_small_patch14_dinov2": {"img_size": 70},
    "vit_small_patch14_reg4_dinov2": {"img_size": 70},
    "vit_giant_patch14_dinov2": {"img_size": 70},
    "vit_small_patch16_dinov3": {"img_size": 64},
    "vit_small_patch16_dinov3_qkvb": {"img_size": 64},
    "vit_small_plus_patch16_dinov3": {"img_size": 64},
}


@pytest.mark.parametrize("name", TIMM)
def test_timm(tmp_path, name):
    timm = pytest.importorskip("timm")
    settings = {"depth": 2, "embed_dim": 128, "num_heads": 2, "dynamic_img_size": True, "num_classes": 0}
    model = shuffle(timm.create_model(name, **settings, **TIMM[name]))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    # The names of plain transformers are DINO's, but that timm wrote this file.
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "num_features": 128}))
    loaded = load_pretrained(tmp_path)
    patch_size = loaded.config.patch_size
    assert_equal_features(loaded, model.forward_features, patch_size=patch_size, first=1 + loaded.config.num_registers)

"""Weights of timm and Hugging Face give the features that they give there, at other sizes of images, too."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from croc_jax.checkpoints.pretrained import load_pretrained
from croc_jax.models import make_backbone
from croc_jax.models.position_embedding import resize_position_embedding

torch = pytest.importorskip("torch")
from tests.checkpoints.torch_libraries import complete_torchvision  # noqa: E402

complete_torchvision()
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


# DINOv2 learned positions for 37 x 37 patches, 518 pixels, and is mostly used on fewer.
GRID, PATCH = 37, 14
SIZES = ((224, 224), (140, 322), (560, 210))


def resize_positions(positions, pixels, **options):
    """Returns [CLS]'s position and the resized ones, by PyTorch."""
    grid = positions[:, 1:].reshape(1, GRID, GRID, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, mode="bicubic", align_corners=False, **options)
    assert resized.shape[2:] == tuple(side // PATCH for side in pixels)
    return torch.cat([positions[:, :1], resized.flatten(2).mT], dim=1)


# What the libraries ask of PyTorch: Meta's own code of DINOv2, which asks for a size larger by 0.1 (and, for networks
# with registers, as timm), Hugging Face, and timm.
ASKED = {
    "offset": lambda rows, columns: {"scale_factor": ((rows + 0.1) / GRID, (columns + 0.1) / GRID)},
    "plain": lambda rows, columns: {"size": (rows, columns)},
    "antialias": lambda rows, columns: {"size": (rows, columns), "antialias": True},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resizing", ASKED)
def test_position_embeddings_are_resized_as_by_pytorch(resizing, size):
    positions = torch.randn(1, GRID**2 + 1, 8, generator=torch.Generator().manual_seed(0))
    grid = size[0] // PATCH, size[1] // PATCH
    # In single precision, PyTorch rounds the places that it samples.
    expected = resize_positions(positions.double(), size, **ASKED[resizing](*grid))
    found = resize_position_embedding(positions.numpy(), (GRID, GRID), grid, resizing=resizing)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def save_dinov2(folder, model, naming):
    """Writes a model of timm as timm or Meta name it; returns the file."""
    state = {name: array.clone() for name, array in model.state_dict().items()}
    if naming == "meta":
        if "reg_token" in state:
            # Meta keeps a position of [CLS].
            state["register_tokens"] = state.pop("reg_token")
            positions = torch.cat([0.3 * torch.ones_like(state["cls_token"]), state["pos_embed"]], dim=1)
            state |= {"pos_embed": positions, "cls_token": state["cls_token"] - 0.3}
        state["mask_token"] = torch.zeros(1, 128)
    torch.save(state, folder / f"{naming}.pth")
    return folder / f"{naming}.pth"


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_dinov2_at_fewer_patches_than_it_learned(tmp_path, name):
    timm = pytest.importorskip("timm")
    settings = {"depth": 1, "embed_dim": 128, "num_heads": 2, "num_classes": 0}
    model = shuffle(timm.create_model(name, dynamic_img_size=True, **settings))
    first, size = (5 if "reg4" in name else 1), SIZES[1]
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    fixed = timm.create_model(name, img_size=size, **settings).eval()
    with torch.no_grad():
        # timm resizes while it runs, or when it loads weights for images of another size.
        expected = {"timm": model.forward_features(images)}
        fixed.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(model.state_dict(), fixed))
        np.testing.assert_allclose(fixed.forward_features(images), expected["timm"], atol=1e-5)
        # Meta's code has timm's blocks; with registers, it resizes as timm.
        if first == 1:
            grid = size[0] // PATCH, size[1] // PATCH
            fixed.pos_embed.copy_(resize_positions(model.pos_embed, size, **ASKED["offset"](*grid)))
        expected["meta"] = fixed.forward_features(images)
    assert ((expected["meta"] - expected["timm"]).abs().max() > 0.01) == (first == 1)
    for naming, tokens in expected.items():
        loaded = load_pretrained(save_dinov2(tmp_path, model, naming))
        assert loaded.image_size == GRID * PATCH
        found = features_of(loaded, images)
        np.testing.assert_allclose(found.cls, tokens[:, 0], atol=1e-4)
        np.testing.assert_allclose(found.patches, tokens[:, first:], atol=1e-4)


def test_hugging_face_s_dinov2_at_fewer_patches_than_it_learned(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(**SMALL | {"num_hidden_layers": 1}, image_size=GRID * PATCH, patch_size=PATCH)
    model = shuffle(transformers.Dinov2Model(config))
    model.save_pretrained(tmp_path)
    loaded, images = load_pretrained(tmp_path), torch.randn(1, 3, *SIZES[1])
    with torch.no_grad():
        tokens = model(images).last_hidden_state
    found = features_of(loaded, images)
    np.testing.assert_allclose(found.cls, tokens[:, 0], atol=1e-4)
    np.testing.assert_allclose(found.patches, tokens[:, 1:], atol=1e-4)

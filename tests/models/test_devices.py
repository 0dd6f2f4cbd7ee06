"""What "auto" means on devices that are not here."""

import logging
import types

import jax.numpy as jnp
import pytest

from croc_jax.models import BackboneConfig, devices, make_backbone
from croc_jax.models.devices import PRODUCTS, choose_execution, platform_of


def device(platform, version="", kind="", **attributes):
    client = types.SimpleNamespace(platform_version=version)
    return types.SimpleNamespace(platform=platform, client=client, device_kind=kind, **attributes)


CPU, TPU = device("cpu", "cpu", "cpu"), device("tpu", "Built on ...", "TPU v5 lite")
H100 = device("gpu", "PJRT C API\ncuda 12090", "NVIDIA H100 80GB HBM3", compute_capability="9.0")
# Described by a topology, to compile for: there is no driver.
DESCRIBED = device("gpu", "NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3", compute_capability="9.0")
T4 = device("gpu", "cuda 12090", "Tesla T4", compute_capability="7.5")
MI250X = device("gpu", "rocm 60200", "AMD Instinct MI250X", compute_capability="9.0")
FLOAT32, BFLOAT16 = ((jnp.dtype(name),) * 2 for name in ("float32", "bfloat16"))
AUTO = {"dtype": "auto", "attention": "auto", "remat": False, "head_width": 64}


@pytest.mark.parametrize(
    ("found", "expected"),
    [(CPU, "cpu"), (TPU, "tpu"), (H100, "cuda"), (DESCRIBED, "cuda"), (T4, "cuda"), (MI250X, "rocm")],
)
def test_platforms_are_distinguished(found, expected):
    assert platform_of(found) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (CPU, (*FLOAT32, "xla", (*PRODUCTS, "scores"), False)),
        (TPU, (*BFLOAT16, "xla_tpu", (), False)),
        (H100, (*BFLOAT16, "cudnn", PRODUCTS, True)),
        (DESCRIBED, (*BFLOAT16, "cudnn", PRODUCTS, True)),
        (MI250X, (*BFLOAT16, "xla", PRODUCTS, True)),
    ],
    ids=["cpu", "tpu", "h100", "described", "mi250x"],
)
def test_auto_follows_the_device(found, expected):
    assert choose_execution(**AUTO, device=found) == expected
    assert choose_execution(**AUTO | {"remat": True}, device=found)[3:] == ((), False)


@pytest.mark.parametrize("found", [CPU, TPU, H100, MI250X])
def test_mixed_computes_in_float32_and_multiplies_by_parameters_in_bfloat16(found):
    execution = choose_execution(**AUTO | {"dtype": "mixed"}, device=found)
    assert (execution.dtype, execution.multiply) == (jnp.float32, jnp.bfloat16)
    assert execution.attention == choose_execution(**AUTO | {"dtype": "float32"}, device=found).attention


def test_mixed_is_for_transformers():
    with pytest.raises(ValueError, match="dtype='mixed': for transformers alone; choose 'auto', 'float32' or"):
        make_backbone(BackboneConfig(variant="resnet_50", dtype="mixed"), image_size=224)
    with pytest.raises(ValueError, match="dtype='half': choose 'auto', 'float32', 'bfloat16' or, for a .*, 'mixed'"):
        make_backbone(BackboneConfig(dtype="half"), image_size=224)


@pytest.mark.parametrize(
    ("found", "changes", "reason"),
    [
        (H100, {"dtype": "float32"}, "needs bfloat16, not float32"),
        (H100, {"head_width": 20}, "multiple of 8 features, 128 at most, not 20"),
        (H100, {"head_width": 136}, "128 at most, not 136"),
        (T4, {}, "needs compute capability 8.0, not 7.5 of Tesla T4"),
    ],
)
def test_what_cudnn_refuses_is_one_warning(caplog, found, changes, reason):
    devices._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert choose_execution(**AUTO | changes, device=found).attention == "xla"
    assert len(caplog.messages) == 1 and reason in caplog.messages[0]
    with pytest.raises(ValueError, match=reason):
        choose_execution(**AUTO | changes | {"attention": "cudnn"}, device=found)


@pytest.mark.parametrize("found", [CPU, TPU, MI250X])
def test_other_devices_take_the_attention_of_xla_without_a_warning(caplog, found):
    assert choose_execution(**AUTO, device=found).attention.startswith("xla")
    assert not caplog.messages
    with pytest.raises(ValueError, match=f"attention='cudnn': needs CUDA, not {platform_of(found)}"):
        choose_execution(**AUTO | {"attention": "cudnn"}, device=found)


def test_a_backbone_is_made_for_a_device():
    made = make_backbone(BackboneConfig(), image_size=224, device=H100)
    assert (made.dtype, made.attention, made.unrolled) == (jnp.bfloat16, "cudnn", True)
    assert make_backbone(BackboneConfig(variant="resnet_50"), image_size=224, device=TPU).dtype == jnp.bfloat16
    assert make_backbone(BackboneConfig(), image_size=224).dtype == jnp.float32

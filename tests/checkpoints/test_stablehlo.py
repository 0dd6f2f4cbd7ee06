"""A backbone that is exported as a program gives the module's features at sizes it was not traced for."""

import dataclasses
import sys

import jax
import numpy as np
import pytest
from jax import export

from croc_jax.checkpoints.stablehlo import export_program, make_encode_fn, program_difference
from croc_jax.models import BackboneConfig, devices
from croc_jax.pixel_format import PixelFormat
from tests.checkpoints.tiny_weights import random_params

pytest.importorskip("flatbuffers")
PLAIN = BackboneConfig(width=32, depth=1, num_heads=2, patch_size=4, dtype="float32")
CONFIGS = {
    "two channels": dataclasses.replace(
        PLAIN, position_resizing="antialias", num_registers=2, image_mean=(0.1, 0.5), image_std=(0.5, 0.2)
    ),
    "convnext": BackboneConfig(
        variant="convnext_tiny", width=32, stages=(1, 1, 1, 1), patch_size=8, dtype="float32", drop_path_rate=0.0
    ),
    "rope": dataclasses.replace(PLAIN, positions="rope", layer_scale=True, mlp="swiglu"),
}
SIZE = 16


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_program_takes_images_of_any_size(tmp_path, config):
    params = random_params(config, size=SIZE)
    deep = PixelFormat(channels=2, dtype="uint16", range=(0.0, 10_000.0))
    pixels = deep if config.channels == 2 else PixelFormat()
    settings = {"image_size": SIZE, "pixels": pixels}
    file = export_program(params, config, output=tmp_path / "a.stablehlo", platforms=("cpu", "cuda"), **settings)
    program = export.deserialize(bytearray(file.read_bytes()))
    assert program.platforms == ("cpu", "cuda")
    most = int(pixels.limits[1][0])
    images = np.random.default_rng(0).integers(0, most, (3, 8, 24, pixels.channels), dtype=pixels.dtype)
    found, expected = program.call(images), jax.jit(make_encode_fn(params, config, **settings))(images)
    assert found["patches"].shape == (3, 8 // config.patch_size, 24 // config.patch_size, 32)
    for name in ("cls", "patches"):
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5)
    with pytest.raises(ValueError, match="remainder 2"):
        program.call(np.zeros((1, 10, 16, pixels.channels), pixels.dtype))


def test_the_device_that_exports_does_not_matter(tmp_path, monkeypatch):
    params, files = random_params(PLAIN, size=SIZE), []
    for here in ("cpu", "tpu"):
        monkeypatch.setattr(devices, "platform_of", lambda device, here=here: here)
        output = tmp_path / f"{here}.stablehlo"
        files.append(export_program(params, PLAIN, image_size=SIZE, output=output, platforms=("cpu", "tpu")))
    one, other = (export.deserialize(bytearray(file.read_bytes())).mlir_module() for file in files)
    assert one == other
    others = random_params(PLAIN, size=SIZE, seed=1)
    assert program_difference(others, PLAIN, image_size=SIZE, file=files[0]) > 1e-2


def test_mistakes_are_named_before_the_work(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"ends in .stablehlo"):
        export_program({}, PLAIN, image_size=SIZE, output=tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ValueError, match=r"flatbuffers: pip install 'croc_jax\[export\]'$"):
        export_program({}, PLAIN, image_size=SIZE, output=tmp_path / "a.stablehlo")

"""launch/gallery.py from the command line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints.tiny_weights import official_weights, write
from tests.evaluation.test_davis import write_davis

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(2):
        image = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
    write_davis(folder / "davis", names=("still",), count=3)
    write(folder / "vit.safetensors", official_weights())
    return folder


def gallery(inputs, *flags):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [
        sys.executable, "launch/gallery.py", f"--checkpoint={inputs / 'vit.safetensors'}",
        f"--images={inputs / 'images'}", f"--video={inputs / 'davis'}", f"--output={inputs / 'out'}", "--grid=4",
        "--video_rows=8", *flags,
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_four_pictures_are_drawn(inputs):
    done = gallery(inputs)
    assert done.returncode == 0, done.stderr
    for name in ("merging", "clusters", "components", "video"):
        with Image.open(inputs / "out" / f"{name}.png") as picture:
            assert picture.width > 300
    assert "the objects of still overlap" in done.stdout and "J = " in done.stdout

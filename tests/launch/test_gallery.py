"""launch/gallery.py from the command line, on images and a video of one's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from scenes import make_scene, write_film

from tests.checkpoints.test_pretrained import official_weights, write

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    (folder / "images").mkdir()
    for index in range(2):
        image = make_scene(0, "train", index, size=(48, 64)).image
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
    write_film(folder / "film", num_frames=3, size=(48, 80))
    write(folder / "vit.safetensors", official_weights())
    return folder


def gallery(inputs, *flags):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [
        sys.executable, "launch/gallery.py", f"--checkpoint={inputs / 'vit.safetensors'}",
        f"--images={inputs / 'images'}", f"--video={inputs / 'film'}", f"--output={inputs / 'out'}", "--grid=4",
        "--video_rows=8", *flags,
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_four_pictures_are_drawn(inputs):
    done = gallery(inputs)
    assert done.returncode == 0, done.stderr
    for name in ("merging", "clusters", "components", "video"):
        with Image.open(inputs / "out" / f"{name}.png") as picture:
            assert picture.width > 300
    assert "film-0" in done.stdout and "J = " in done.stdout


def test_an_unknown_image_is_named_beside_the_known_ones(inputs):
    done = gallery(inputs, "--clusters_of=2")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("no image '2' among 0.png, 1.png")

"""launch/cluster.py from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.checkpoints.test_pretrained import official_weights, write

ROOT = Path(__file__).resolve().parents[2]


def cluster(*flags):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "launch/cluster.py", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_every_image_gets_labels_of_its_size_and_a_damaged_one_is_skipped(tmp_path):
    weights, folder = write(tmp_path / "vit.safetensors", official_weights()), tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 60)), ("inner/b.jpg", (50, 30)), ("c.png", (33, 33))):
        pixels = np.kron(rng.integers(0, 256, (2, 2, 3)), np.ones((30, 30, 1)))[: size[0], : size[1]]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    damaged = folder / "c.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    flags = f"--images={folder}", f"--checkpoint={weights}", f"--output={tmp_path / 'out'}"
    done = cluster(*flags, "--size=24", "--k_start=6", "--batch_size=2")
    assert done.returncode == 0, done.stderr
    assert "2 images, 1 skipped" in done.stdout and "skipped " in done.stdout and "c.png" in done.stdout
    numbers = json.loads((tmp_path / "out" / "clusters.json").read_text())
    assert set(numbers) == {"a.png", "inner/b.png"}
    for name, size in (("a.png", (60, 40)), ("inner/b.png", (30, 50))):
        with Image.open(tmp_path / "out" / "labels" / name) as labels:
            assert labels.mode == "P" and labels.size == size
            ids = np.unique(np.asarray(labels))
        assert ids.tolist() == list(range(numbers[name])) and 2 <= numbers[name] <= 6
    with Image.open(tmp_path / "out" / "overview.png") as sheet:
        assert sheet.width > 2 * 448
    done = cluster(*flags, "--size=25")
    assert done.returncode == 1 and "--size=25" in done.stderr.strip().splitlines()[-1]


def test_more_clusters_than_colors_and_images_of_one_stem(tmp_path):
    weights, folder = write(tmp_path / "vit.safetensors", official_weights()), tmp_path / "photos"
    (folder / "other").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "a.png", "b.png", "other/a.jpg"):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / name)
    flags = f"--images={folder}", f"--checkpoint={weights}", f"--output={tmp_path / 'out'}"
    done = cluster(*flags, "--size=48", "--k_start=40", "--lambda_pos=0", "--batch_size=4")
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "out" / "clusters.json").read_text())
    assert set(numbers) == {"a.jpg.png", "a.png.png", "b.png.png", "other/a.png"}
    for name, count in numbers.items():
        with Image.open(tmp_path / "out" / "labels" / name) as labels:
            assert np.unique(np.asarray(labels)).tolist() == list(range(count))
            colors = np.array(labels.getpalette()).reshape(-1, 3)
        np.testing.assert_array_equal(colors[16:count], colors[: max(count - 16, 0)])
    assert max(numbers.values()) > 16
    done = cluster(*flags, "--k_start=257")
    assert done.returncode == 1 and "--k_start=257" in done.stderr.strip().splitlines()[-1]

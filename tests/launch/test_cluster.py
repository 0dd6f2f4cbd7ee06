"""launch/cluster.py from the command line."""

import json

import numpy as np
from PIL import Image

from tests.checkpoints.tiny_weights import official_weights, write
from tests.launch.program import run_program


def test_every_image_gets_labels_of_its_size_and_a_damaged_one_is_skipped(tmp_path, capsys):
    weights, folder = write(tmp_path / "vit.safetensors", official_weights()), tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    rng = np.random.default_rng(0)
    sizes = {"a.jpg": (48, 64), "a.png": (40, 60), "inner/b.jpg": (50, 30), "c.png": (33, 33)}
    for name, (height, width) in sizes.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
    damaged = folder / "c.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    files = f"--images={folder}", f"--checkpoint={weights}", f"--output={tmp_path / 'out'}"
    run_program("cluster", *files, "--size=48", "--k_start=40", "--lambda_pos=0", "--batch_size=2")
    text = capsys.readouterr().out
    assert "3 images, 1 skipped" in text and f"skipped: cannot read {damaged} (" in text
    numbers = json.loads((tmp_path / "out" / "clusters.json").read_text())
    assert set(numbers) == {"a.jpg.png", "a.png.png", "inner/b.jpg.png"}
    for name, count in numbers.items():
        with Image.open(tmp_path / "out" / "labels" / name) as labels:
            assert labels.mode == "P" and labels.size == sizes[name.removesuffix(".png")][::-1]
            assert np.unique(np.asarray(labels)).tolist() == list(range(count))
            colors = np.array(labels.getpalette()).reshape(-1, 3)
        np.testing.assert_array_equal(colors[16:count], colors[: max(count - 16, 0)])
    assert max(numbers.values()) > 16, "more clusters than colors"
    with Image.open(tmp_path / "out" / "overview.png") as sheet:
        assert sheet.width > 2 * 448

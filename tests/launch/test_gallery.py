"""launch/gallery.py from the command line."""

import numpy as np
from PIL import Image

from tests.checkpoints.tiny_weights import official_weights, write
from tests.evaluation.test_davis import write_davis
from tests.launch.program import run_program


def test_four_pictures_are_drawn(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(2):
        image = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
    write_davis(tmp_path / "davis", names=("still",), count=3)
    weights = write(tmp_path / "vit.safetensors", official_weights())
    files = f"--checkpoint={weights}", f"--images={tmp_path / 'images'}", f"--video={tmp_path / 'davis'}"
    run_program("gallery", *files, f"--output={tmp_path / 'out'}", "--grid=4", "--video_rows=8")
    for name in ("merging", "clusters", "components", "video"):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert picture.width > 300
    text = capsys.readouterr().out
    assert "the objects of still overlap" in text and "J = " in text

"""Images for programs; a machine for launch templates."""

import numpy as np
import pytest
from PIL import Image

from tests.launch.templates import Desk


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Twelve images with labels."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / split / f"{index}.png")
            Image.fromarray((pixels[..., 0] > 127).astype(np.uint8)).save(folder / "labels" / split / f"{index}.png")
    return folder


@pytest.fixture
def desk(tmp_path):
    """A machine where every command of a cluster is a fake."""
    return Desk(tmp_path)

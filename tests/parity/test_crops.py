"""Crops equal torchvision's; positions equal those of the official coordinate images."""

import json

import numpy as np
import pytest

from croc_jax.clustering import patch_positions
from croc_jax.data.crops import Box, crop_view
from tests.parity.goldens import golden_cases


@pytest.mark.parametrize("golden", golden_cases("crops*.npz"))
def test_crops_equal_torchvision(golden):
    image, expected = golden["image"], golden["crops"]
    size = json.loads(str(golden["config"]))["size"]
    boxes = [Box(*(int(side) for side in box[:4]), flip=bool(box[4])) for box in golden["boxes"]]
    views = np.stack([crop_view(image, box, size) for box in boxes])
    assert views.shape == expected.shape
    assert np.abs(views.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("golden", golden_cases("crops*.npz"))
def test_positions_equal_the_coordinate_images(golden):
    config = json.loads(str(golden["config"]))
    side = config["size"] // config["patch_size"]
    positions = patch_positions(golden["boxes"], (side, side))
    assert np.abs(np.asarray(positions) - golden["patch_positions"]).max() < 0.01

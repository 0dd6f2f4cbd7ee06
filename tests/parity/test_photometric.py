"""Each photometric operation equals Pillow's, by the goldens."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.data import photometric
from tests.parity.goldens import golden_cases

OPERATIONS = {
    "brightness": (photometric.adjust_brightness, "brightness"),
    "contrast": (photometric.adjust_contrast, "contrast"),
    "saturation": (photometric.adjust_saturation, "saturation"),
    "hue": (photometric.adjust_hue, "hue"),
    "grayscale": (photometric.to_grayscale, None),
    "blur": (photometric.gaussian_blur, "blur_radius"),
    "solarize": (photometric.solarize, None),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("golden", golden_cases("photometric*.npz"))
def test_operation_equals_pillow(golden, name):
    operation, parameter = OPERATIONS[name]
    parameters = json.loads(str(golden["params"]))
    planes = jnp.asarray(np.moveaxis(golden["image"], -1, 0), jnp.float32)
    limit = {"max_radius": max(2.0, parameters["blur_radius"])} if name == "blur" else {}
    result = operation(planes, *([jnp.float32(parameters[parameter])] if parameter else []), **limit)
    error = np.abs(np.moveaxis(np.asarray(result), 0, -1) - golden[name].astype(np.float32))
    if name == "blur":
        assert error.mean() < 1
    else:
        assert error.max() <= 2


@pytest.mark.parametrize("golden", golden_cases("photometric*.npz"))
def test_normalization_equals_torchvision(golden):
    np.testing.assert_allclose(photometric.normalize(golden["image"]), golden["normalize"], rtol=0, atol=2e-6)

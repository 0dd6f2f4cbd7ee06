"""J and F are those of the official DAVIS evaluation."""

import numpy as np
import pytest

from croc_jax.evaluation.davis_metrics import boundary_accuracy, region_similarity
from tests.parity.goldens import golden_cases


@pytest.mark.parametrize("golden", golden_cases("davis_metrics.npz"))
def test_measures_equal_the_official_ones(golden):
    pairs = list(zip(golden["prediction"], golden["ground_truth"], strict=True))
    np.testing.assert_allclose([region_similarity(*pair) for pair in pairs], golden["J"], atol=1e-9)
    np.testing.assert_allclose([boundary_accuracy(*pair) for pair in pairs], golden["F"], atol=1e-9)

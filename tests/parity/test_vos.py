"""Label propagation gives what the official code gives."""

import json

import numpy as np
import pytest

from croc_jax.evaluation.propagation import LabelQueue, PropagationConfig, segment
from tests.parity.goldens import golden_cases


@pytest.mark.parametrize("golden", golden_cases("vos_*.npz"))
def test_labels_and_segmentations_equal_the_official_ones(golden):
    settings = json.loads(str(golden["config"]))
    config = PropagationConfig(
        num_last_frames=settings["num_last_frames"],
        neighborhood=settings["neighborhood_radius"],
        topk=settings["topk"],
        temperature=settings["temperature"],
    )
    features = np.moveaxis(golden["features"], 1, -1)
    first = np.eye(settings["num_labels"], dtype=np.float32)[golden["first_segmentation"]]
    np.testing.assert_array_equal(np.moveaxis(first, -1, 0), golden["soft"][0])
    queue = LabelQueue(features[0], first, config)
    for tokens, soft, segmentation in zip(features[1:], golden["soft"][1:], golden["segmentation"], strict=True):
        labels = queue.label(tokens)
        np.testing.assert_allclose(np.moveaxis(np.asarray(labels), -1, 0), soft, atol=1e-5)
        np.testing.assert_array_equal(segment(labels, patch_size=settings["patch_size"]), segmentation)

"""Confusions, IoU and Hungarian matching equal the reference's."""

import numpy as np
import pytest

from croc_jax.evaluation.metrics import class_iou, confusion_matrix, match_clusters, mean_iou
from tests.parity.goldens import golden_cases


@pytest.mark.parametrize("golden", golden_cases("miou_*.npz"))
def test_miou_equals_the_reference(golden):
    confusion = confusion_matrix(golden["labels"], golden["clusters"], num_classes=int(golden["num_classes"]))
    np.testing.assert_array_equal(confusion, golden["confusion"])
    np.testing.assert_allclose(class_iou(confusion), golden["class_iou"], rtol=0, atol=1e-12)
    assert mean_iou(confusion) == pytest.approx(float(golden["miou"]), rel=0, abs=1e-12)


@pytest.mark.parametrize("golden", golden_cases("miou_*.npz"))
def test_hungarian_matching_equals_the_reference(golden):
    confusion = confusion_matrix(golden["labels"], golden["clusters"], num_classes=int(golden["num_classes"]))
    matching = match_clusters(confusion)
    np.testing.assert_array_equal(matching.clusters, golden["hungarian"])
    assert matching.miou == pytest.approx(float(golden["hungarian_miou"]), rel=0, abs=1e-12)

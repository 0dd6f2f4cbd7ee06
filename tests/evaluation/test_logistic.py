"""Logistic regression finds what scikit-learn finds."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from croc_jax.evaluation.logistic import UNLABELED, Limits, Scale, apply_scaled, fit_logistic, make_chunks
from croc_jax.evaluation.logreg import LogregConfig, num_validation, patch_classes, present_classes

RNG = np.random.default_rng(0)
ROWS, WIDTH = 200, 4


@pytest.mark.parametrize(("num_classes", "c"), [(3, 1.0), (2, 0.01)])
def test_the_optimum_is_scikit_learns(num_classes, c):
    features = RNG.normal(3, 2, (ROWS, WIDTH)).astype(np.float32)
    noisy = features @ RNG.standard_normal((WIDTH, num_classes)) + 3 * RNG.standard_normal((ROWS, num_classes))
    classes = noisy.argmax(1).astype(np.int32)
    classes[:40] = UNLABELED
    scaler = StandardScaler().fit(features)
    expected = LogisticRegression(C=c, tol=1e-10, max_iter=5000).fit(scaler.transform(features[40:]), classes[40:])
    scale = Scale(scaler.mean_.astype(np.float32), (1 / scaler.scale_).astype(np.float32))
    chunks = make_chunks(features, classes, device_bytes=0)
    sizes = {"num_classes": num_classes, "num_labeled": ROWS - 40}
    head = fit_logistic(chunks, scale, Limits(1000, 1e-12, 5), c=c, **sizes)
    probabilities = softmax(np.asarray(apply_scaled(head, scale, features), float), axis=1)
    np.testing.assert_allclose(probabilities, expected.predict_proba(scaler.transform(features)), atol=2e-4)


def test_features_that_stay_on_the_device_come_in_the_same_parts():
    features, classes = RNG.normal(size=(9000, 2)).astype(np.float16), RNG.integers(0, 3, 9000)
    for streamed, resident in zip(
        *(make_chunks(features, classes, device_bytes=of)() for of in (0, 10**9)), strict=True
    ):
        for one, other in zip(streamed, resident, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_patch_has_the_most_frequent_id_of_its_pixels():
    ids = RNG.choice(np.array([0, 3, 7, 255], np.uint8), (12, 20))
    patches = ids.reshape(3, 4, 5, 4).swapaxes(1, 2).reshape(3, 5, 16)
    np.testing.assert_array_equal(patch_classes(ids, (3, 5)), stats.mode(patches, axis=-1).mode)


def test_what_nothing_can_be_learned_from_is_named():
    with pytest.raises(ValueError, match=r"validation_share=0.1: 0 of 9 training images would choose C"):
        num_validation(9, LogregConfig())
    assert num_validation(9, LogregConfig(c_values=(1.0,))) == 0 and num_validation(25, LogregConfig()) == 2
    with pytest.raises(ValueError, match=r"of the class \[4\] or ignored"):
        present_classes(np.array([4, 255, 4], np.uint8))

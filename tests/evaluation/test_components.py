"""Principal components are scikit-learn's, and those of several states are turned onto each other."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from croc_jax.evaluation.components import align_components, principal_components, unit_variance


def test_components_are_those_of_scikit_learn_common_to_all_images():
    features = np.random.default_rng(0).standard_normal((2, 40, 7)) * (5, 4, 3, 2, 1, 1, 1) + 9
    found = principal_components(features.astype(np.float32)).reshape(-1, 3)
    expected = PCA(3, svd_solver="full").fit_transform(features.reshape(-1, 7))
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-5)
    np.testing.assert_allclose(unit_variance(found), found / expected.std(axis=0), atol=1e-5)
    assert not unit_variance(np.zeros((4, 3))).any()


@pytest.mark.parametrize("features", [np.zeros((1, 4, 2)), np.full((1, 4, 3), np.nan)])
def test_features_that_have_no_components(features):
    with pytest.raises(ValueError, match="features"):
        principal_components(features)


def test_states_that_differ_by_order_sign_scale_and_rotation_of_their_axes_look_the_same():
    rng = np.random.default_rng(1)
    scores = np.linalg.qr(rng.standard_normal((50, 4)))[0]
    last = scores[:, :3] - scores[:, :3].mean(axis=0)
    last = np.linalg.qr(last)[0]
    turned = last @ np.linalg.qr(rng.standard_normal((3, 3)))[0]
    other = np.linalg.qr(rng.standard_normal((50, 3)))[0]
    aligned = align_components([7 * other, turned, last[:, ::-1] * (1, -2, 3), last])
    np.testing.assert_allclose(aligned[1:], np.stack([last * np.sqrt(50)] * 3), atol=1e-9)
    # Of another state, no rotation is nearer: what a rotation by any small angle changes is a maximum.
    product = aligned[0].T @ aligned[1]
    np.testing.assert_allclose(product, product.T, atol=1e-9)
    assert np.linalg.eigvalsh(product).min() >= 0

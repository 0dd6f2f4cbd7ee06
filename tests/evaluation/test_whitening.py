"""Normalized tokens have the statistics that their normalization promises."""

import numpy as np
import pytest

from croc_jax.evaluation import whitening
from croc_jax.evaluation.whitening import fit_scale

RNG = np.random.default_rng(0)
MIXING = RNG.standard_normal((6, 6)) * np.array([3, 1, 1, 0.5, 0.3, 0.3])
TOKENS = (RNG.standard_normal((50, 4, 5, 6)) @ MIXING.T + [5, -2, 0, 1, 0, 0]).astype(np.float32)


def normalized(kind, tokens=TOKENS):
    mean, transform = fit_scale(tokens, kind)
    return (tokens.astype(np.float64) - np.asarray(mean)) @ np.asarray(transform, np.float64)


def test_fit_scale_has_the_statistics_that_its_normalization_promises():
    np.testing.assert_array_equal(normalized("none"), TOKENS)
    flat = normalized("standardize").reshape(-1, 6)
    np.testing.assert_allclose(flat.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(flat.var(0), 1, rtol=1e-4)
    assert np.corrcoef(flat.T)[0, 1] == pytest.approx(np.corrcoef(TOKENS.reshape(-1, 6).T)[0, 1], abs=1e-5)
    flat = normalized("whiten").reshape(-1, 6)
    np.testing.assert_allclose(np.cov(flat.T, bias=True), np.eye(6), atol=5e-3)


def test_statistics_do_not_depend_on_the_chunks(monkeypatch):
    whole = fit_scale(TOKENS, "whiten")
    monkeypatch.setattr(whitening, "IMAGES_AT_ONCE", 7)
    parts = fit_scale(TOKENS, "whiten")
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-5)
    np.testing.assert_allclose(np.abs(whole[1]), np.abs(parts[1]), rtol=1e-3, atol=1e-3)


def test_constant_features_stay_finite():
    constant = TOKENS.copy()
    constant[..., 2] = 4.0
    for kind in ("standardize", "whiten"):
        assert np.isfinite(normalized(kind, constant)).all()
    assert np.isfinite(normalized("whiten", np.ones_like(TOKENS))).all()

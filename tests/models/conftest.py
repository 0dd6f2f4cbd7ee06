"""Strict shapes for all tests of the models."""

import pytest


@pytest.fixture(autouse=True)
def _strict(strict_ranks):
    """Applies to each test of this folder."""

"""Shared by tests of the workdir: locks end with the test."""

import pytest

from croc_jax.runtime import lock


@pytest.fixture(autouse=True)
def release(monkeypatch):
    """Releases what a test has locked, and does not wait for other programs."""
    held = {}
    monkeypatch.setattr(lock, "_held", held)
    monkeypatch.setattr(lock, "_SECONDS_TO_WAIT", 0.0)
    yield
    for file in held.values():
        file.close()

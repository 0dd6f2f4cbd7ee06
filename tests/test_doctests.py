"""The examples in docstrings of public functions run, and give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "croc_jax"
FILES = [file.relative_to(PACKAGE.parent) for file in sorted(PACKAGE.rglob("*.py")) if ">>> " in file.read_text()]
MODULES = [".".join(file.with_suffix("").parts) for file in FILES]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name):
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert attempted and not failed


def test_the_method_has_examples():
    shown = {"clustering.api", "clustering.cross_view", "clustering.positions", "losses", "training.schedules"}
    assert {f"croc_jax.{name}" for name in shown} <= set(MODULES)

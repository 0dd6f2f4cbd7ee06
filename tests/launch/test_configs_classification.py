"""Configs of the classification protocols hold exactly the settings that their protocols know."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from croc_jax.evaluation.classification import ClassificationProtocol
from croc_jax.evaluation.features import MemoryBudget
from croc_jax.evaluation.knn import KnnProtocol

ROOT = Path(__file__).resolve().parents[2]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / "eval" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "variant", "protocol"),
    [
        ("knn", (), KnnProtocol),
        ("classification", ("small",), ClassificationProtocol),
        ("classification", ("dino",), ClassificationProtocol),
    ],
)
def test_every_setting_is_in_the_config(name, variant, protocol):
    module = load(name)
    config = module.get_config(*variant).to_dict()
    assert config["protocol"] == name and f"--config=configs/eval/{name}.py" in module.__doc__
    assert set(config[name]) == {field.name for field in dataclasses.fields(protocol)}
    protocol(**config[name])
    MemoryBudget(**config["budget"])
    assert (ROOT / config["recipe"]).is_file()


def test_the_official_settings_are_the_defaults():
    assert KnnProtocol(**load("knn").get_config()["knn"].to_dict()) == KnnProtocol()
    dino = load("classification").get_config("dino")["classification"].to_dict()
    assert ClassificationProtocol(**dino) == ClassificationProtocol()
    with pytest.raises(ValueError, match="variant='large'"):
        load("classification").get_config("large")

"""Configs of evaluation hold exactly the settings that their protocols know."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from croc_jax.evaluation.classification import ClassificationProtocol
from croc_jax.evaluation.discovery import DiscoveryProtocol
from croc_jax.evaluation.features import MemoryBudget
from croc_jax.evaluation.knn import KnnProtocol
from croc_jax.evaluation.linear import LinearProtocol
from croc_jax.evaluation.retrieval import RetrievalProtocol
from croc_jax.evaluation.unsupervised import UnsupervisedProtocol
from croc_jax.evaluation.video import VideoProtocol
from croc_jax.report.paper import PROTOCOL_SETTINGS

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [
    ("linear", "small", LinearProtocol),
    ("linear", "paper", LinearProtocol),
    ("linear", "demo", LinearProtocol),
    ("unsupervised", "classes", UnsupervisedProtocol),
    ("unsupervised", "over", UnsupervisedProtocol),
    ("retrieval", None, RetrievalProtocol),
    ("davis", None, VideoProtocol),
    ("knn", None, KnnProtocol),
    ("classification", "small", ClassificationProtocol),
    ("classification", "dino", ClassificationProtocol),
    ("discovery", None, DiscoveryProtocol),
]


def load(name, variant=None):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / "eval" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, (module.get_config(variant) if variant else module.get_config()).to_dict()


def test_every_config_is_here():
    assert {name for name, *_ in CONFIGS} == {file.stem for file in (ROOT / "configs" / "eval").glob("*.py")}


@pytest.mark.parametrize(("name", "variant", "protocol"), CONFIGS)
def test_every_setting_is_in_the_config(name, variant, protocol):
    module, config = load(name, variant)
    assert f"--config=configs/eval/{name}.py" in module.__doc__
    section = config[config["protocol"]]
    assert set(section) == {field.name for field in dataclasses.fields(protocol)}
    protocol(**section)
    MemoryBudget(**config["budget"])
    assert config["dataset"]["root"] == "" and config["which"] == "teacher"
    assert (ROOT / config["recipe"]).is_file()


@pytest.mark.parametrize("name", ["linear", "unsupervised"])
def test_the_papers_protocols_have_the_papers_settings(name):
    section = load(name, {"linear": "paper", "unsupervised": "classes"}[name])[1][name]
    found = {field: list(v) if isinstance(v := section[field], tuple) else v for field in PROTOCOL_SETTINGS[name]}
    assert found == PROTOCOL_SETTINGS[name]


def test_the_official_settings_are_the_defaults():
    for name, variant, protocol in (
        ("knn", None, KnnProtocol),
        ("classification", "dino", ClassificationProtocol),
        ("davis", None, VideoProtocol),
        ("discovery", None, DiscoveryProtocol),
    ):
        config = load(name, variant)[1]
        assert protocol(**config[config["protocol"]]) == protocol()


def test_unknown_variants_are_named():
    for name in ("linear", "unsupervised", "classification"):
        with pytest.raises(ValueError, match="variant='large'"):
            load(name, "large")

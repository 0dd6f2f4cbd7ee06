"""Configs of evaluation hold exactly the settings that their protocols know."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from croc_jax.evaluation import MemoryBudget, find_protocols, get_protocol
from croc_jax.report.paper import PROTOCOL_SETTINGS

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = {
    "linear": ("small", "paper", "demo", "dinov2", "dinov3"),
    "unsupervised": ("classes", "over"),
    "classification": ("small", "dino"),
}
FILES = sorted(file.stem for file in (ROOT / "configs" / "eval").glob("*.py"))
CONFIGS = [(name, variant) for name in FILES for variant in VARIANTS.get(name, (None,))]


def load(name, variant=None):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / "eval" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, (module.get_config(variant) if variant else module.get_config()).to_dict()


def test_every_protocol_has_a_config():
    assert {load(*one)[1]["protocol"] for one in CONFIGS} == set(find_protocols())


@pytest.mark.parametrize(("name", "variant"), CONFIGS)
def test_every_setting_is_in_the_config(name, variant):
    module, config = load(name, variant)
    assert f"--config=configs/eval/{name}.py" in module.__doc__
    protocol = get_protocol(config["protocol"])
    section = config[protocol.name]
    assert set(section) == {field.name for field in dataclasses.fields(protocol.config)}
    protocol.config(**section)
    MemoryBudget(**config["budget"])
    assert config["dataset"]["root"] == "" and config["which"] == "teacher"
    assert (ROOT / config["recipe"].partition(":")[0]).is_file()


@pytest.mark.parametrize("name", ["linear", "unsupervised"])
def test_the_papers_protocols_have_the_papers_settings(name):
    section = load(name, {"linear": "paper", "unsupervised": "classes"}[name])[1][name]
    found = {field: list(v) if isinstance(v := section[field], tuple) else v for field in PROTOCOL_SETTINGS[name]}
    assert found == PROTOCOL_SETTINGS[name]


def test_the_official_settings_are_the_defaults():
    variants = {"classification": "dino", "linear": "dinov2"}
    for name, variant in ((name, variants.get(name)) for name in ("knn", "davis", "discovery", "logreg", *variants)):
        config = load(name, variant)[1]
        kind = get_protocol(config["protocol"]).config
        assert kind(**config[config["protocol"]]) == kind()


@pytest.mark.parametrize("name", VARIANTS)
def test_unknown_variants_are_named(name):
    with pytest.raises(ValueError, match="variant='large'"):
        load(name, "large")

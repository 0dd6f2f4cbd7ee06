"""What the site says about the sources is what the package does; `make docs` builds the site itself."""

import dataclasses
import importlib
import pkgutil
import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml

import croc_jax
from croc_jax import clustering
from croc_jax.evaluation import find_protocols
from croc_jax.training.config import Recipe, flatten, recipe_to_dict
from tests.launch.test_configs import FILES, read

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ROW = re.compile(r"^\| <code>(.+?)</code> \| (?:<code>(.*?)</code>)? \| (.*) \|$", re.MULTILINE)

ODD = '''
class Odd:
    """Has two fields.

    Attributes:
        a: is told.
    """

    a: int = 1
    b: int = 2
'''


@pytest.fixture(scope="module")
def hooks():
    sys.path.insert(0, str(DOCS))
    yield importlib.import_module("hooks")
    sys.path.remove(str(DOCS))


@pytest.fixture
def reading(hooks):
    yield sys.modules["reading"]
    hooks.parse.cache_clear()


def plain(text):
    return (
        text.replace("<wbr>", "").replace("&#124;", "|").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    )


def rows(page):
    """{field: (second column, third column)} of all tables of a page."""
    return {plain(name): (plain(second), third) for name, second, third in ROW.findall(page)}


def section(page, title):
    return re.search(rf"^### `{re.escape(title)}`\n(.*?)(?=^### |\Z)", page, re.MULTILINE | re.DOTALL)[1]


def nav_files(entries):
    for entry in entries:
        target = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from nav_files(target) if isinstance(target, list) else [target]


def test_every_page_is_in_the_navigation():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(nav_files(site["nav"])) == sorted(str(file.relative_to(DOCS)) for file in DOCS.rglob("*.md"))


def test_every_public_module_is_on_an_api_page(hooks):
    modules = [module.name for module in pkgutil.walk_packages(croc_jax.__path__, "croc_jax.")]
    public = [name for name in modules if not any(part.startswith("_") for part in name.split("."))]
    pages = [hooks.on_page_markdown(file.read_text()) for file in sorted((DOCS / "api").glob("*.md"))]
    documented = re.findall(r"^::: (\S+)$", "\n".join(pages), re.MULTILINE)
    assert sorted(documented) == sorted(public)


def test_what_a_room_exports_is_listed(hooks):
    page = hooks.fill_modules("croc_jax.clustering")
    listed = re.findall(r"^\| \[`(\w+)`\]\[([\w.]+)\] \| \S", page, re.MULTILINE)
    assert sorted(name for name, _ in listed) == sorted(clustering.__all__)
    for name, home in listed:
        found = getattr(clustering, name)
        assert home == f"{found.__module__}.{name}"


def test_every_field_of_a_recipe_has_its_default_and_a_meaning(hooks):
    found = rows(hooks.fill_recipe())
    defaults = flatten(recipe_to_dict(Recipe()))
    assert {name: default for name, (default, _) in found.items()} == {
        name: hooks.show(value) for name, value in defaults.items()
    }
    assert all(meaning.strip() for _, meaning in found.values())


def test_config_files_list_what_they_change(hooks):
    page, defaults = hooks.fill_configs(), flatten(recipe_to_dict(Recipe()))
    for file in FILES:
        settings = flatten(recipe_to_dict(read(file.stem)))
        changed = {name: hooks.show(value) for name, value in settings.items() if value != defaults[name]}
        listed = {name: value for name, (value, _) in rows(section(page, file.name)).items()}
        assert listed == changed, file.name


def test_variants_list_what_they_set(hooks):
    part, file = plain(section(hooks.fill_configs(), "croc_vit.py")), ROOT / "configs" / "croc_vit.py"
    listed = dict(re.findall(r"^\| <code>:(\w+)</code> \| (.*) \|$", part, re.MULTILINE))
    variants = runpy.run_path(str(file))["VARIANTS"]
    assert listed.keys() == variants.keys()
    for name, fields in variants.items():
        expected = {f"{field}={hooks.show(value)}" for field, value in fields.items()}
        assert set(re.findall(r"<code>(.*?)</code>", listed[name])) == expected


def test_protocol_files_list_all_their_fields_in_all_variants(hooks):
    page = hooks.fill_protocols()
    for file in (ROOT / "configs" / "eval").glob("*.py"):
        part = section(page, f"eval/{file.name}")
        get_config = runpy.run_path(str(file))["get_config"]
        fields = flatten(get_config().to_dict())
        assert set(re.findall(r"^\| <code>(\S+?)</code>", part.replace("<wbr>", ""), re.MULTILINE)) == {
            name for name in fields if name != "protocol"
        }
        for variant in re.findall(r"`:(\w+)`", re.search(r"^\| field .*$", part, re.MULTILINE)[0]):
            get_config(variant)
    linear = section(page, "eval/linear.py").replace("<wbr>", "")
    values = " | ".join(f"<code>{value}</code>" for value in ("linear.lr", 0.05, 0.01, 0.05))
    assert f"| {values} | learning rate at the start. |" in linear
    fields = {field.name for field in dataclasses.fields(find_protocols()["linear"].config)}
    assert fields == {name.removeprefix("linear.") for name in re.findall(r"<code>(linear\.\w+)</code>", linear)}


def test_conventions_are_those_of_the_registry(reading):
    found = {name: (entry.config, entry.conventions) for name, entry in reading.read_protocols().items()}
    assert found == {name: (p.config.__name__, p.conventions) for name, p in find_protocols().items()}


def test_a_field_without_a_meaning_stops_the_build(reading, tmp_path, monkeypatch):
    (tmp_path / "odd.py").write_text(ODD)
    monkeypatch.setattr(reading, "ROOT", tmp_path)
    with pytest.raises(reading.DocumentationError, match="says nothing about b"):
        reading.read_fields("odd", "Odd")


def test_meanings_may_take_several_lines(reading):
    docstring = "Odd.\n\nAttributes:\n    a: of it,\n        and more.\n    b: alike.\n\nMore."
    assert reading.read_attributes(docstring) == {"a": "of it, and more.", "b": "alike."}


def test_an_unknown_filler_stops_the_build(hooks):
    with pytest.raises(hooks.DocumentationError, match="choose one of modules"):
        hooks.on_page_markdown("# Page\n\n<!-- fill: nothing -->\n")


@pytest.mark.parametrize(
    ("tag", "outside"),
    [
        ('<script src="https://example.org/a.js"></script>', True),
        ("<link rel=stylesheet href=//example.org/a.css>", True),
        ('<script src="../javascripts/a.js"></script>', False),
        ('<a href="https://example.org">elsewhere</a>', False),
    ],
)
def test_pages_load_nothing_from_the_network(hooks, tag, outside):
    if not outside:
        assert hooks.on_post_page(tag) == tag
        return
    with pytest.raises(hooks.DocumentationError, match="example.org"):
        hooks.on_post_page(tag)
